//! A seeded lossy path in virtual time: one direction of the wire between a simulated pod and its peer.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// What one direction does to packets. Probabilities are 0.0 to 1.0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Impairment {
    pub drop: f64,
    pub duplicate: f64,
    /// Probability that a packet is held back by `reorder_by`, so that later ones overtake it.
    pub reorder: f64,
    pub reorder_by: Duration,
    pub delay: Duration,
    /// Added to `delay`, uniform from zero; larger than the gap between packets, it reorders by itself.
    pub jitter: Duration,
}

impl Impairment {
    /// Loses nothing, takes `delay`.
    pub const fn delay(delay: Duration) -> Self {
        Self {
            drop: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Duration::ZERO,
            delay,
            jitter: Duration::ZERO,
        }
    }

    /// Everything at once, each by a probability that depends on the seed; some seeds are mild, some are harsh.
    pub fn random(random: &mut fastrand::Rng) -> Self {
        Self {
            drop: random.f64().powi(2) * 0.3,
            duplicate: random.f64().powi(2) * 0.3,
            reorder: random.f64().powi(2) * 0.5,
            reorder_by: Duration::from_micros(random.u64(100..50_000)),
            delay: Duration::from_micros(random.u64(0..30_000)),
            jitter: Duration::from_micros(random.u64(0..5_000)),
        }
    }
}

/// Counts of what happened, so that a test can show that its seed did something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathStats {
    pub sent: u64,
    pub dropped: u64,
    pub duplicated: u64,
    pub reordered: u64,
}

#[derive(Debug)]
pub struct Path {
    impairment: Impairment,
    random: fastrand::Rng,
    in_flight: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    /// Ties in time leave in the order of arrival.
    ticket: u64,
    stats: PathStats,
}

impl Path {
    pub fn new(impairment: Impairment, seed: u64) -> Self {
        Self {
            impairment,
            random: fastrand::Rng::with_seed(seed),
            in_flight: BinaryHeap::new(),
            ticket: 0,
            stats: PathStats::default(),
        }
    }

    /// From here on the path behaves differently; what is in flight stays as it is.
    pub fn set_impairment(&mut self, impairment: Impairment) {
        self.impairment = impairment;
    }

    pub fn stats(&self) -> PathStats {
        self.stats
    }

    pub fn push(&mut self, now: Instant, packet: Vec<u8>) {
        self.stats.sent += 1;
        if self.hits(self.impairment.drop) {
            self.stats.dropped += 1;
            return;
        }
        if self.hits(self.impairment.duplicate) {
            self.stats.duplicated += 1;
            self.schedule(now, packet.clone());
        }
        self.schedule(now, packet);
    }

    /// The next packet that has arrived by `now`.
    pub fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next_arrival()? > now {
            return None;
        }
        self.in_flight.pop().map(|Reverse((_, _, packet))| packet)
    }

    pub fn next_arrival(&self) -> Option<Instant> {
        self.in_flight.peek().map(|Reverse((due, _, _))| *due)
    }

    fn schedule(&mut self, now: Instant, packet: Vec<u8>) {
        let mut due = now + self.impairment.delay + self.impairment.jitter.mul_f64(self.random.f64());
        if self.hits(self.impairment.reorder) {
            self.stats.reordered += 1;
            due += self.impairment.reorder_by;
        }
        self.ticket += 1;
        self.in_flight.push(Reverse((due, self.ticket, packet)));
    }

    fn hits(&mut self, probability: f64) -> bool {
        // Always draws, so that a change of one probability does not shift the others' luck.
        self.random.f64() < probability
    }
}
