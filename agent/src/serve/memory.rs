//! Gives the node's memory back after a peak.

use std::time::Duration;

use tunproxy_linux_net::memory;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(10);

/// Free memory that may stay for the next burst: as many octets, and an eighth of what is in use.
const SPARE: usize = 2 << 20;

/// Looks for ever.
pub(super) async fn give_back() {
    let mut overhead = Overhead::default();
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        // An allocator that does not tell gives back by itself.
        let (Ok(resident), Some(allocated)) = (memory::resident(), memory::allocated()) else { return };
        if !overhead.is_exceeded(resident, allocated) {
            continue;
        }
        memory::give_back();
        if let (Ok(resident), Some(allocated)) = (memory::resident(), memory::allocated()) {
            overhead = Overhead(resident.saturating_sub(allocated));
        }
    }
}

/// Octets that were resident beyond what was allocated when free memory had just gone back: the program itself, its
/// stacks, and parts of pages. Only what is well above it can go back, so nothing is looked for in vain twice.
#[derive(Debug, Default)]
struct Overhead(usize);

impl Overhead {
    fn is_exceeded(&self, resident: usize, allocated: usize) -> bool {
        resident.saturating_sub(allocated) > self.0 + SPARE + allocated / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn only_what_is_free_is_worth_a_look() {
        let overhead = Overhead(8 * MIB);
        // The load of 80 MiB needs what it has; when it has gone, 70 of them are free.
        assert!(!overhead.is_exceeded(90 * MIB, 80 * MIB));
        assert!(overhead.is_exceeded(90 * MIB, 10 * MIB));
        assert!(!overhead.is_exceeded(19 * MIB, 10 * MIB));
        // Nothing is known yet.
        assert!(Overhead::default().is_exceeded(12 * MIB, 3 * MIB));
    }
}
