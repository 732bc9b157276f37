//! The retransmission time-out (RFC 6298).

use smoltcp::time::{Duration, Instant};

/// The floor under the variance term: a delayed ACK of the pod (Linux: up to 200 ms) is not a loss.
const MIN_VARIANCE: Duration = Duration::from_millis(200);
const MAX_RTO: Duration = Duration::from_secs(120);
const INITIAL_RTO: Duration = Duration::from_secs(1);
/// RFC 6298 5.7: a handshake that had to be repeated may mean a path slower than the first guess.
const REPEATED_HANDSHAKE_RTO: Duration = Duration::from_secs(3);
/// How long the shortest round trip holds (Linux: tcp_min_rtt_wlen), seconds.
const SHORTEST_VALID: u32 = 300;

#[derive(Clone, Debug)]
pub(crate) struct RttEstimator {
    /// Microseconds; `None` before the first sample.
    smoothed: Option<u32>,
    variance: u32,
    /// The shortest round trip, microseconds, and the second it is of.
    shortest: u32,
    shortest_at: u32,
    backoff: u8,
    /// The handshake was, and measured nothing.
    repeated: bool,
}

impl RttEstimator {
    pub(crate) fn new() -> Self {
        Self { smoothed: None, variance: 0, shortest: u32::MAX, shortest_at: 0, backoff: 0, repeated: false }
    }

    /// The handshake came to its end only after a time-out, so that it measured nothing.
    pub(crate) fn handshake_repeated(&mut self) {
        self.repeated = true;
    }

    /// Takes a measured round trip of a segment that was sent once (Karn).
    pub(crate) fn sample(&mut self, rtt: Duration) {
        let rtt = rtt.total_micros().min(u64::from(u32::MAX / 16)) as u32;
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variance = rtt / 2;
            }
            Some(smoothed) => {
                self.variance = self.variance - self.variance / 4 + smoothed.abs_diff(rtt) / 4;
                self.smoothed = Some(smoothed - smoothed / 8 + rtt / 8);
            }
        }
    }

    /// Takes the round trip of anything that was sent once for the shortest, if it is.
    pub(crate) fn note(&mut self, now: Instant, rtt: Duration) {
        let second = now.secs() as u32;
        let rtt = rtt.total_micros().min(u64::from(u32::MAX - 1)) as u32;
        if rtt <= self.shortest || second.wrapping_sub(self.shortest_at) > SHORTEST_VALID {
            (self.shortest, self.shortest_at) = (rtt, second);
        }
    }

    /// The shortest round trip of the last minutes; nothing before the first one.
    pub(crate) fn shortest(&self) -> Duration {
        if self.shortest == u32::MAX {
            Duration::ZERO
        } else {
            Duration::from_micros(u64::from(self.shortest))
        }
    }

    /// The mean round trip; `None` before the first sample.
    pub(crate) fn smoothed(&self) -> Option<Duration> {
        self.smoothed.map(|micros| Duration::from_micros(u64::from(micros)))
    }

    pub(crate) fn rto(&self) -> Duration {
        let base = match self.smoothed {
            None if self.repeated => REPEATED_HANDSHAKE_RTO,
            None => INITIAL_RTO,
            Some(smoothed) => {
                let variance = Duration::from_micros(u64::from(self.variance) * 4);
                Duration::from_micros(u64::from(smoothed)) + variance.max(MIN_VARIANCE)
            }
        };
        Duration::from_micros(base.total_micros() << self.backoff.min(10)).min(MAX_RTO)
    }

    pub(crate) fn back_off(&mut self) {
        self.backoff = self.backoff.saturating_add(1);
    }

    pub(crate) fn backoff(&self) -> u8 {
        self.backoff
    }

    /// New data was acknowledged.
    pub(crate) fn reset_backoff(&mut self) {
        self.backoff = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_second_before_a_sample_then_the_floor_and_doubling() {
        let mut rtt = RttEstimator::new();
        assert_eq!(rtt.rto(), Duration::from_secs(1));
        rtt.sample(Duration::from_micros(100));
        assert_eq!(rtt.rto(), Duration::from_micros(200_100));
        rtt.back_off();
        assert_eq!(rtt.rto(), Duration::from_micros(400_200));
        for _ in 0..30 {
            rtt.back_off();
        }
        assert_eq!(rtt.rto(), MAX_RTO);
        rtt.reset_backoff();
        assert_eq!(rtt.rto(), Duration::from_micros(200_100));
    }
}
