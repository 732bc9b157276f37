//! Deadlines of many flows, one entry for each flow that has one.
//!
//! A deadline that moves later (every ACK moves the retransmission timer) costs nothing: the entry fires early once, and
//! the owner arms anew. One that moves earlier takes its entry along, and a flow that ends takes it away, so that
//! entries never outnumber flows, however often a flow's timers change.

use std::collections::BTreeSet;
use std::num::NonZeroI64;

use smoltcp::time::Instant;

/// An [`Instant`] that is no larger where it may be absent: thousands of flows have several that mostly are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(NonZeroI64);

impl From<Instant> for Moment {
    fn from(at: Instant) -> Self {
        // The least of all is 292,000 years ago, and may as well be a microsecond later.
        Self(NonZeroI64::new(at.total_micros() ^ i64::MIN).unwrap_or(NonZeroI64::new(1).expect("not zero")))
    }
}

impl Moment {
    pub(crate) fn get(self) -> Instant {
        Instant::from_micros(self.0.get() ^ i64::MIN)
    }
}

#[derive(Debug)]
pub(crate) struct Timers<K> {
    entries: BTreeSet<(i64, K)>,
}

/// Where a flow's entry stands; the flow keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Armed(Option<Moment>);

impl<K: Ord + Copy> Timers<K> {
    pub(crate) fn new() -> Self {
        Self { entries: BTreeSet::new() }
    }

    /// Sees to it that `key` comes up at `at` or earlier.
    pub(crate) fn arm(&mut self, armed: &mut Armed, at: Instant, key: K) {
        if armed.at().is_some_and(|before| before <= at) {
            return;
        }
        self.disarm(armed, key);
        self.entries.insert((at.total_micros(), key));
        armed.0 = Some(at.into());
    }

    pub(crate) fn disarm(&mut self, armed: &mut Armed, key: K) {
        if let Some(before) = armed.0.take() {
            self.entries.remove(&(before.get().total_micros(), key));
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.entries.first().map(|&(at, _)| Instant::from_micros(at))
    }

    /// The next key whose time has come. Its owner calls [`Armed::fired`].
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        let &(at, _) = self.entries.first()?;
        if at > now.total_micros() {
            return None;
        }
        self.entries.pop_first().map(|(_, key)| key)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the entry that `armed` speaks of is there.
    pub(crate) fn holds(&self, armed: Armed, key: K) -> bool {
        armed.at().is_some_and(|at| self.entries.contains(&(at.total_micros(), key)))
    }
}

impl Armed {
    /// The entry came up and is gone.
    pub(crate) fn fired(&mut self) {
        self.0 = None;
    }

    pub(crate) fn at(self) -> Option<Instant> {
        self.0.map(Moment::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_come_back_and_need_no_room_to_be_absent() {
        for micros in [i64::MIN + 1, -1, 0, 1, 1_700_000_000_000_000, i64::MAX] {
            assert_eq!(Moment::from(Instant::from_micros(micros)).get().total_micros(), micros);
        }
        assert_eq!(size_of::<Option<Moment>>(), 8);
    }

    fn at(millis: i64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn a_flow_has_one_entry_however_its_deadline_moves() {
        let mut timers = Timers::new();
        let mut armed = Armed::default();
        for round in 0..100 {
            timers.arm(&mut armed, at(10_000 + round), 7);
            timers.arm(&mut armed, at(20 + round), 7);
            assert_eq!(timers.len(), 1);
            assert!(timers.holds(armed, 7));
            assert_eq!(timers.pop_due(at(20 + round)), Some(7));
            armed.fired();
        }
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_later_deadline_leaves_the_entry_and_an_earlier_one_moves_it() {
        let mut timers = Timers::new();
        let (mut one, mut two) = (Armed::default(), Armed::default());
        timers.arm(&mut one, at(10), 1);
        timers.arm(&mut two, at(10), 2);
        timers.arm(&mut one, at(50), 1);
        assert_eq!(one.at(), Some(at(10)));
        timers.arm(&mut two, at(5), 2);
        assert_eq!((timers.next(), timers.len()), (Some(at(5)), 2));
        assert_eq!(timers.pop_due(at(4)), None);
        assert_eq!(timers.pop_due(at(20)), Some(2));
        two.fired();
        timers.disarm(&mut one, 1);
        assert_eq!(timers.len(), 0);
    }
}
