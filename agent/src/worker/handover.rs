//! Packets that one worker reads and another is to have: the kernel spreads them over the queues as it likes where it
//! cannot be told, and where a flow belongs is seen only when fragments are put together.

use std::sync::Arc;

use tunproxy_datapath::PacketBuf;

use super::{Command, Handle, PodId};
use crate::sync::{AtomicUsize, Ordering};

/// Packets of one pod that may wait for other workers, each in a buffer of 64 KiB.
const MOST: usize = if cfg!(tunproxy_loom) { 1 } else { 256 };

/// Those of all pods.
const MOST_OF_ALL: usize = 4 * MOST;

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

#[cfg(all(test, tunproxy_loom))]
mod loom_tests {
    use super::*;

    #[test]
    fn of_two_workers_that_want_the_last_place_one_gets_it() {
        loom::model(|| {
            let all = Arc::default();
            let pod = Arc::new(Siblings::new(Vec::new(), &all));
            let other = {
                let pod = pod.clone();
                loom::thread::spawn(move || pod.place())
            };
            let places = [pod.place(), other.join().unwrap()];
            assert_eq!(places.iter().flatten().count(), MOST);
            drop(places);
            assert_eq!(all.load(Ordering::Relaxed), 0);
            assert!(pod.place().is_some());
        });
    }
}
