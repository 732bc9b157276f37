//! The time a verb has as a whole.

use std::time::{Duration, Instant};

/// What a clean-up gets when no time is left.
const GRACE: Duration = Duration::from_secs(1);

/// When the verb must be done.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    end: Instant,
    total: Duration,
}

impl Deadline {
    pub fn after(total: Duration) -> Self {
        Self { end: Instant::now() + total, total }
    }

    pub fn end(&self) -> Instant {
        self.end
    }

    pub fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    pub fn total(&self) -> Duration {
        self.total
    }

    /// For cleaning up after a failure, which may be that the time ran out: a little more.
    pub fn extended(&self) -> Self {
        Self { end: self.grace(), total: self.total + GRACE }
    }

    pub fn grace(&self) -> Instant {
        self.end.max(Instant::now() + GRACE)
    }

    /// A share of the whole, from now: what a removal gives an agent that may hang, so that time remains for the rest.
    pub fn part(&self, divisor: u32) -> Instant {
        self.end.min(Instant::now() + self.total / divisor)
    }
}
