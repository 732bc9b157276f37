//! One pod's turn in a worker: how much it may move, what it has to read, and how often it may complain.

use std::collections::{HashSet, VecDeque};

use tunproxy_datapath::{Duration, Instant};

use super::token::Source;

/// Four of the largest packets: some 50 microseconds, which a quiet pod waits. They, and the copies that the kernel makes of
/// them, stay in a processor's second cache; more is slower.
const OCTETS: usize = 1 << 18;

/// Packets of one queue of the TUN.
const PACKETS: usize = 64;

/// Reads of upstream sockets; no fewer than the events of one wait, or the list could only grow.
const READS: usize = 256;

/// What a pod may still move before the others have their turn.
#[derive(Debug)]
pub(super) struct Turn {
    operations: usize,
    octets: usize,
}

impl Turn {
    pub(super) fn of_tun() -> Self {
        Self { operations: PACKETS, octets: OCTETS }
    }

    pub(super) fn of_upstreams() -> Self {
        Self { operations: READS, octets: OCTETS }
    }

    pub(super) fn spend(&mut self, octets: usize) {
        self.operations = self.operations.saturating_sub(1);
        self.octets = self.octets.saturating_sub(octets);
    }

    pub(super) fn is_over(&self) -> bool {
        self.operations == 0 || self.octets == 0
    }
}

/// Sockets that have something to read, in turn, each once.
#[derive(Debug, Default)]
pub(super) struct Ready {
    queue: VecDeque<Source>,
    queued: HashSet<Source>,
}

impl Ready {
    pub(super) fn push(&mut self, source: Source) {
        if self.queued.insert(source) {
            self.queue.push_back(source);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Source> {
        let source = self.queue.pop_front()?;
        self.queued.remove(&source);
        Some(source)
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// Complaints in the agent's log about what a pod's packets may cause over and over.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    next: Option<Instant>,
    silenced: u64,
}

impl Complaints {
    /// One a minute may be uttered; says how many were not since the last one.
    pub(super) fn utter(&mut self, now: Instant) -> Option<u64> {
        if self.next.is_some_and(|next| now < next) {
            self.silenced += 1;
            return None;
        }
        self.next = Some(now + Duration::from_secs(60));
        Some(std::mem::take(&mut self.silenced))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many reads of `octets` fit into one turn.
    fn reads(mut turn: Turn, octets: usize) -> usize {
        std::iter::from_fn(|| (!turn.is_over()).then(|| turn.spend(octets))).count()
    }

    #[test]
    fn a_turn_ends_by_packets_or_by_octets() {
        assert_eq!(reads(Turn::of_tun(), 100), PACKETS);
        assert_eq!(reads(Turn::of_tun(), 65_536), 4);
        assert_eq!(reads(Turn::of_upstreams(), 0), READS);
        assert_eq!(reads(Turn::of_upstreams(), 65_536), 4);
    }

    #[test]
    fn a_source_waits_once_and_in_turn() {
        let mut ready = Ready::default();
        for source in [Source::Tcp(1), Source::Udp(1), Source::Tcp(1)] {
            ready.push(source);
        }
        assert_eq!(ready.len(), 2);
        assert_eq!(ready.pop(), Some(Source::Tcp(1)));
        ready.push(Source::Tcp(1));
        assert_eq!(
            (ready.pop(), ready.pop(), ready.pop()),
            (Some(Source::Udp(1)), Some(Source::Tcp(1)), None)
        );
    }

    #[test]
    fn one_complaint_a_minute_tells_of_the_others() {
        let mut complaints = Complaints::default();
        let start = Instant::from_secs(5);
        assert_eq!(complaints.utter(start), Some(0));
        assert!((0..1_000).all(|_| complaints.utter(start + Duration::from_secs(59)).is_none()));
        assert_eq!(complaints.utter(start + Duration::from_secs(60)), Some(1_000));
    }
}
