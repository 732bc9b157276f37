//! Packets that one worker reads and another is to have: the kernel spreads them over the queues as it likes where it
//! cannot be told, and where a flow belongs is seen only when fragments are put together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tunproxy_datapath::PacketBuf;

use super::{Command, Handle, PodId};

/// Packets of one pod that may wait for other workers; they are of 64 KiB at most.
const MOST: usize = 256;

/// The workers that serve one pod.
pub(super) struct Siblings {
    workers: Vec<Handle>,
    waiting: Arc<AtomicUsize>,
}

/// A packet's place among those that wait.
pub(super) struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Siblings {
    pub(super) fn new(workers: Vec<Handle>) -> Self {
        Self { workers, waiting: Arc::default() }
    }

    /// Whether one more packet may wait.
    pub(super) fn place(&self) -> Option<Waiting> {
        let place = Waiting(self.waiting.clone());
        (self.waiting.fetch_add(1, Ordering::Relaxed) < MOST).then_some(place)
    }

    pub(super) fn hand_over(&self, pod: PodId, shard: usize, packet: PacketBuf, place: Waiting) {
        if let Some(worker) = self.workers.get(shard) {
            worker.send(Command::Handover(pod, packet, place));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_wait_than_there_are_places() {
        let siblings = Siblings::new(Vec::new());
        let mut places: Vec<_> = (0..MOST).map(|_| siblings.place().unwrap()).collect();
        assert!(siblings.place().is_none());
        assert!(siblings.place().is_none());
        places.pop();
        assert!(siblings.place().is_some());
    }
}
