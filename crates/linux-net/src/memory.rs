//! What this process holds of the node's memory, and how it gives some of it back.

use std::io;

/// Octets of this process that are in memory now, from `/proc/self/statm`.
///
/// # Errors
/// `/proc` is not there, or not Linux's.
pub fn resident() -> io::Result<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    let pages =
        pages.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no pages in /proc/self/statm"))?;
    Ok(pages * rustix::param::page_size())
}

/// Octets that the allocator has handed out, as far as it says.
pub fn allocated() -> Option<usize> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it has no arguments and gives a copy.
        let info = unsafe { libc::mallinfo2() };
        Some(info.uordblks + info.hblkhd)
    }
    #[cfg(not(target_env = "gnu"))]
    None
}

/// Gives free memory of the allocator back to the kernel. glibc keeps what threads have freed in their arenas, for good
/// where something above it is in use; other allocators give back by themselves.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes each arena's lock while it looks at it, as any other call of the allocator does.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    #[cfg(target_env = "gnu")]
    fn what_is_freed_below_something_in_use_goes_back() {
        // A sanitizer has an allocator of its own (scripts/sanitize.sh).
        if ["ASAN_OPTIONS", "TSAN_OPTIONS"].iter().any(|name| std::env::var_os(name).is_some()) {
            return;
        }
        // Small enough to be taken from the arena, each touched; every 64th stays.
        let mut blocks: Vec<Vec<u8>> = (0..64 * 1024).map(|_| vec![1; 1024]).collect();
        let (full, allocated_before) = (resident().unwrap(), allocated().unwrap());
        let mut number = 0;
        blocks.retain(|_| {
            number += 1;
            number % 64 == 0
        });
        let freed = allocated_before.saturating_sub(allocated().unwrap());
        assert!(freed > 60 * MIB, "{freed} octets of 63 MiB are said to be free");
        give_back();
        let given = full.saturating_sub(resident().unwrap());
        assert!(given > 40 * MIB, "{given} octets of 63 MiB went back");
        drop(blocks);
    }
}
