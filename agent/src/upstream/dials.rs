//! Connects through upstreams that are under way: bounded, and fair among pods.
//!
//! A pod may have as many as are still free (dynamic threshold), so alone it gets half of them and there is always
//! something left for the next: a pod that hammers a dead proxy waits for itself only.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use crate::sync::{Mutex, MutexGuard};
use crate::worker::PodId;

/// The connects of the whole agent.
#[derive(Debug)]
pub(super) struct Dials {
    total: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    used: usize,
    /// Only pods that have some.
    held: HashMap<PodId, usize>,
}

/// One connect's place; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    dials: Arc<Dials>,
    pod: PodId,
}

impl Dials {
    pub(super) fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { total, table: Mutex::default() })
    }

    /// A place for one more connect of `pod`, if its share allows it.
    pub(super) fn take(self: &Arc<Self>, pod: PodId) -> Option<Place> {
        let mut table = self.lock();
        let free = self.total - table.used;
        let held = table.held.get(&pod).copied().unwrap_or_default();
        if held >= free {
            return None;
        }
        table.used += 1;
        table.held.insert(pod, held + 1);
        Some(Place { dials: self.clone(), pod })
    }

    fn give_back(&self, pod: PodId) {
        let mut table = self.lock();
        table.used -= 1;
        if let Some(held) = table.held.get_mut(&pod) {
            *held -= 1;
            if *held == 0 {
                table.held.remove(&pod);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.dials.give_back(self.pod);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(dials: &Arc<Dials>, pod: u64) -> Vec<Place> {
        std::iter::from_fn(|| dials.take(PodId(pod))).collect()
    }

    #[test]
    fn a_greedy_pod_leaves_room_for_the_others() {
        let dials = Dials::new(120);
        let first = take_all(&dials, 1);
        assert_eq!(first.len(), 60);
        let second = take_all(&dials, 2);
        assert_eq!(second.len(), 30);
        assert_eq!(take_all(&dials, 3).len(), 15);
        drop(first);
        assert_eq!(take_all(&dials, 3).len(), 45);
        drop(second);
        assert_eq!(dials.lock().used, 0);
        assert!(dials.lock().held.is_empty(), "pods that are gone leave nothing behind");
    }

    #[test]
    fn the_smallest_bound_serves_one() {
        let dials = Dials::new(1);
        let place = dials.take(PodId(1)).unwrap();
        assert!(dials.take(PodId(1)).is_none() && dials.take(PodId(2)).is_none());
        drop(place);
        assert!(dials.take(PodId(2)).is_some());
    }
}

#[cfg(all(test, tunproxy_loom))]
mod loom_tests {
    use super::*;

    #[test]
    fn of_two_workers_that_want_the_last_place_of_a_pod_one_gets_it() {
        loom::model(|| {
            let dials = Dials::new(2);
            let other = {
                let dials = dials.clone();
                loom::thread::spawn(move || dials.take(PodId(1)))
            };
            let places = [dials.take(PodId(1)), other.join().unwrap()];
            assert_eq!(places.iter().flatten().count(), 1);
            drop(places);
            assert_eq!(dials.lock().used, 0);
            assert!(dials.lock().held.is_empty());
        });
    }

    #[test]
    fn a_place_that_comes_back_is_there_for_one_of_another_pod() {
        loom::model(|| {
            let dials = Dials::new(1);
            let place = dials.take(PodId(1));
            assert!(place.is_some());
            let other = {
                let dials = dials.clone();
                loom::thread::spawn(move || dials.take(PodId(2)))
            };
            drop(place);
            // Before it came back there was none.
            let taken = other.join().unwrap();
            assert_eq!(dials.lock().used, usize::from(taken.is_some()));
            assert_eq!(dials.take(PodId(3)).is_some(), taken.is_none());
        });
    }
}
