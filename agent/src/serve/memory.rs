//! Gives the node's memory back after a peak.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use tunproxy_linux_net::memory;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(10);

/// Free memory that may stay for the next burst: as many octets, and an eighth of what is in use.
const SPARE: usize = 2 << 20;

/// What comes and goes in an agent that does nothing.
const TRIFLE: usize = 64 << 10;

/// Where glibc's allocator reads its settings, once, before `main`; for this one it has no call.
const TUNABLES: &str = "GLIBC_TUNABLES";

/// Freed blocks of one size that a thread keeps for itself; glibc's own number is 7. They count as in use, and each of
/// them, wherever the load left it, keeps a page: with 7, four threads hold up to 7 MiB of a memory at rest of 1 MiB.
const CACHE: &str = "glibc.malloc.tcache_count=1";

/// Begins this program anew with an allocator that can give back what is free, unless the environment has settings of
/// its own for it. Comes back when it is so already, or cannot be: the program runs as well, with some MiB more.
pub fn restart_with_small_caches() {
    if !cfg!(target_env = "gnu") || std::env::var_os(TUNABLES).is_some() {
        return;
    }
    let mut arguments = std::env::args_os();
    let (Ok(program), Some(name)) = (std::env::current_exe(), arguments.next()) else { return };
    let error = Command::new(program).arg0(name).args(arguments).env(TUNABLES, CACHE).exec();
    // Nothing is set up yet that a log line could go to.
    eprintln!("the allocator keeps its own settings: {error}");
}

/// Looks for ever.
pub(super) async fn give_back() {
    let mut last = Seen::default();
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        // An allocator that does not tell gives back by itself.
        let Some(now) = Seen::now() else { return };
        if now.is_worth_a_look(last) {
            memory::give_back();
            last = Seen::now().unwrap_or(now);
        }
    }
}

/// Octets that the allocator has handed out, and that are in memory.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    allocated: usize,
    resident: usize,
}

impl Seen {
    fn now() -> Option<Self> {
        Some(Self { allocated: memory::allocated()?, resident: memory::resident().ok()? })
    }

    /// What is in memory and not handed out: the program itself, its stacks, parts of pages, and what is free.
    fn overhead(self) -> usize {
        self.resident.saturating_sub(self.allocated)
    }

    /// Whether much has become free since free memory went back last: there is more that is not in use, or what was in
    /// use then, and kept pages from going, is gone. Little of it keeps many pages: one small block is enough for each. So
    /// that second limit is a share of what was in use, and what falls to nothing in steps is looked at after each.
    fn is_worth_a_look(self, last: Self) -> bool {
        let spare = SPARE + self.allocated / 8;
        let gone = last.allocated.saturating_sub(self.allocated);
        self.overhead() > last.overhead() + spare || gone > (last.allocated / 8).max(TRIFLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seen(allocated: usize, resident: usize) -> Seen {
        Seen { allocated: allocated << 20, resident: resident << 20 }
    }

    #[test]
    fn only_what_became_free_is_worth_a_look() {
        // The load needs what it has; when it has gone, most of it is free.
        let last = seen(3, 11);
        assert!(!seen(80, 90).is_worth_a_look(last));
        assert!(seen(10, 90).is_worth_a_look(last));
        assert!(!seen(10, 19).is_worth_a_look(last));
        // Nothing is known yet.
        assert!(seen(3, 12).is_worth_a_look(Seen::default()));
        // Under load every page had something in use on it.
        let last = seen(30, 45);
        assert!(!seen(29, 45).is_worth_a_look(last));
        assert!(seen(4, 20).is_worth_a_look(last));
        // The last of the load's blocks, four a page, held all those pages when the others had gone.
        let last = seen(4, 21);
        assert!(seen(2, 21).is_worth_a_look(last));
    }
}
