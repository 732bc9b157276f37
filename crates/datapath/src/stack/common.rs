//! What the shards of one pod have in common. They run on threads of their own, and a pod's names and bounds are those
//! of the pod: a SYN that one shard gets finds the name that another has learnt.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::refusals::Refusals;
use super::shared::Budget;
use crate::key::KeyedState;
use crate::lease::Leases;
use crate::limits::Limits;
use crate::sync::{AtomicUsize, Ordering};

/// Locked for a look into one table, and never across a call out of the crate.
#[derive(Debug)]
pub(crate) struct Common {
    wide: Mutex<PodWide>,
    flows: Arc<AtomicUsize>,
    pending: Arc<AtomicUsize>,
    half_open: Arc<AtomicUsize>,
}

#[derive(Debug)]
pub(crate) struct PodWide {
    pub(crate) leases: Leases,
    pub(crate) refusals: Refusals,
    pub(crate) errors: Budget,
    pub(crate) challenges: Budget,
}

impl Common {
    pub(crate) fn new(hasher: &KeyedState, limits: &Limits) -> Self {
        Self {
            wide: Mutex::new(PodWide {
                leases: Leases::new(hasher.clone(), limits.leases),
                refusals: Refusals::new(hasher.clone(), limits.refusals_per_second),
                errors: Budget::new(limits.errors_per_second),
                challenges: Budget::new(limits.errors_per_second),
            }),
            flows: Arc::default(),
            pending: Arc::default(),
            half_open: Arc::default(),
        }
    }

    /// A worker that panics ends the process: what it may have left half done is never seen.
    pub(crate) fn wide(&self) -> MutexGuard<'_, PodWide> {
        self.wide.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn flows(&self) -> Tally {
        Tally::of(&self.flows)
    }

    pub(crate) fn pending(&self) -> Tally {
        Tally::of(&self.pending)
    }

    pub(crate) fn half_open(&self) -> Tally {
        Tally::of(&self.half_open)
    }
}

/// How many of something a shard has, and the pod in all: bounds are the pod's.
#[derive(Debug)]
pub(crate) struct Tally {
    own: usize,
    all: Arc<AtomicUsize>,
}

impl Tally {
    fn of(all: &Arc<AtomicUsize>) -> Self {
        Self { own: 0, all: all.clone() }
    }

    pub(crate) fn own(&self) -> usize {
        self.own
    }

    pub(crate) fn is_full(&self, limit: usize) -> bool {
        self.all.load(Ordering::Relaxed) >= limit
    }

    pub(crate) fn add(&mut self) {
        self.own += 1;
        self.all.fetch_add(1, Ordering::Relaxed);
    }

    /// One more, if there is room for it: of two shards that want the last place one gets it.
    pub(crate) fn try_add(&mut self, limit: usize) -> bool {
        let added = self.all.fetch_add(1, Ordering::Relaxed) < limit;
        if added {
            self.own += 1;
        } else {
            self.all.fetch_sub(1, Ordering::Relaxed);
        }
        added
    }

    pub(crate) fn remove(&mut self) {
        debug_assert!(self.own > 0);
        self.own = self.own.saturating_sub(1);
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_is_given_once() {
        let all = Arc::default();
        let mut shards = [Tally::of(&all), Tally::of(&all)];
        let granted = std::thread::scope(|scope| {
            let take = |tally: &mut Tally| (0..10_000).filter(|_| tally.try_add(1_001)).count();
            let tasks = shards.each_mut().map(|tally| scope.spawn(move || take(tally)));
            tasks.map(|task| task.join().unwrap())
        });
        assert_eq!(granted.iter().sum::<usize>(), 1_001);
        assert_eq!(shards.each_ref().map(Tally::own), granted);
        assert!(shards[0].is_full(1_001));
        shards[1].add();
        shards[1].remove();
        for tally in &mut shards {
            (0..tally.own()).for_each(|_| tally.remove());
        }
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }
}

#[cfg(all(test, tunproxy_loom))]
mod loom_tests {
    use super::*;

    #[test]
    fn of_two_shards_that_want_the_last_place_one_gets_it() {
        loom::model(|| {
            let all = Arc::default();
            let [mut own, mut sibling] = [Tally::of(&all), Tally::of(&all)];
            let other = loom::thread::spawn(move || {
                let added = sibling.try_add(1);
                (added, sibling)
            });
            let added = own.try_add(1);
            let (other_added, mut sibling) = other.join().unwrap();
            assert!(added ^ other_added);
            if added { &mut own } else { &mut sibling }.remove();
            assert_eq!(all.load(Ordering::Relaxed), 0);
        });
    }
}
