//! Packets that one worker reads and another is to have: the kernel spreads them over the queues as it likes where it
//! cannot be told, and where a flow belongs is seen only when fragments are put together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tunproxy_datapath::PacketBuf;

use super::{Command, Handle, PodId};

/// Packets of one pod that may wait for other workers, each in a buffer of 64 KiB.
const MOST: usize = 256;

/// Those of all pods.
const MOST_OF_ALL: usize = 1_024;

/// The workers that serve one pod.
pub(super) struct Siblings {
    workers: Vec<Handle>,
    waiting: Waiters,
}

/// How many packets wait: the pod's and all.
#[derive(Clone)]
struct Waiters {
    own: Arc<AtomicUsize>,
    all: Arc<AtomicUsize>,
}

/// A packet's place among those that wait.
pub(super) struct Waiting(Waiters);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.own.fetch_sub(1, Ordering::Relaxed);
        self.0.all.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Siblings {
    /// `all` counts for all pods.
    pub(super) fn new(workers: Vec<Handle>, all: &Arc<AtomicUsize>) -> Self {
        Self { workers, waiting: Waiters { own: Arc::default(), all: all.clone() } }
    }

    /// Whether one more packet may wait.
    pub(super) fn place(&self) -> Option<Waiting> {
        let place = Waiting(self.waiting.clone());
        let own = self.waiting.own.fetch_add(1, Ordering::Relaxed);
        let all = self.waiting.all.fetch_add(1, Ordering::Relaxed);
        (own < MOST && all < MOST_OF_ALL).then_some(place)
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
        let all = Arc::default();
        let pods = [(); MOST_OF_ALL / MOST + 1].map(|()| Siblings::new(Vec::new(), &all));
        let take = |pod: &Siblings| -> Vec<_> { std::iter::from_fn(|| pod.place()).collect() };
        let mut places: Vec<_> = pods.iter().map(take).collect();
        let (last, full) = places.split_last_mut().unwrap();
        assert!(full.iter().all(|places| places.len() == MOST) && last.is_empty());
        full[0].pop();
        assert!(pods.last().unwrap().place().is_some());
        drop(places);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }
}
