//! Which losses time tells of (RFC 8985 6): what was sent before something that has arrived is overdue.

use smoltcp::time::{Duration, Instant};

use super::board::Sent;
use crate::tcp::seq::Seq;

/// How long the shortest round trip holds (Linux: tcp_min_rtt_wlen).
const MIN_RTT_VALID: Duration = Duration::from_secs(300);

/// Recoveries without a duplicate report after which the window for reordering is small again.
const PERSIST: u8 = 16;

#[derive(Debug)]
pub(super) struct Rack {
    /// Of all that arrived, what was sent last, and where it ended.
    newest: Option<(Instant, Seq)>,
    /// Its round trip, microseconds.
    rtt: u32,
    /// The shortest round trip, microseconds, and since when it holds.
    min_rtt: u32,
    min_rtt_at: Option<Instant>,
    /// The furthest end that had arrived before this acknowledgment, and with it.
    furthest: Seq,
    reached: Seq,
    /// Something arrived behind its successors without having been sent again.
    reordering_seen: bool,
    /// Duplicates reported before this is acknowledged belong to one round.
    duplicates_until: Option<Seq>,
    /// How many quarters of the shortest round trip reordering may take.
    quarters: u8,
    persist: u8,
}

impl Rack {
    pub(super) fn new(first: Seq) -> Self {
        Self {
            newest: None,
            rtt: 0,
            min_rtt: 0,
            min_rtt_at: None,
            furthest: first,
            reached: first,
            reordering_seen: false,
            duplicates_until: None,
            quarters: 1,
            persist: 0,
        }
    }

    /// Takes a round trip of something that was sent once.
    pub(super) fn measure(&mut self, now: Instant, rtt: Duration) {
        let rtt = rtt.total_micros().min(u64::from(u32::MAX)) as u32;
        let holds = self.min_rtt_at.is_some_and(|at| now - at < MIN_RTT_VALID);
        if !holds || rtt <= self.min_rtt {
            (self.min_rtt, self.min_rtt_at) = (rtt, Some(now));
        }
    }

    /// `sent` has arrived, be it acknowledged or reported.
    pub(super) fn delivered(&mut self, now: Instant, sent: &Sent) {
        let rtt = now - sent.at;
        if sent.again {
            // So soon it can only be the first one that arrived.
            if rtt.total_micros() < u64::from(self.min_rtt) {
                return;
            }
        } else {
            self.measure(now, rtt);
            self.reordering_seen |= sent.end.before(self.furthest);
        }
        self.reached = self.reached.later_of(sent.end);
        let newer = self.newest.is_none_or(|newest| is_sent_after((sent.at, sent.end), newest));
        if newer {
            self.newest = Some((sent.at, sent.end));
            self.rtt = rtt.total_micros().min(u64::from(u32::MAX)) as u32;
        }
    }

    /// What was sent again had only been late.
    pub(super) fn reordered(&mut self) {
        self.reordering_seen = true;
    }

    /// The pod has something twice; `next` is SND.NXT. Once in a round the window grows.
    pub(super) fn duplicated(&mut self, next: Seq) {
        if self.duplicates_until.is_none() {
            self.duplicates_until = Some(next);
            self.quarters = self.quarters.saturating_add(1);
            self.persist = PERSIST;
        }
    }

    /// All that an acknowledgment says was taken. A round of duplicates ends where what was sent when it began is
    /// acknowledged.
    pub(super) fn acknowledged(&mut self, una: Seq) {
        self.furthest = self.reached;
        if self.duplicates_until.is_some_and(|until| una.at_or_after(until)) {
            self.duplicates_until = None;
        }
    }

    pub(super) fn recovered(&mut self) {
        self.persist = self.persist.saturating_sub(1);
        if self.persist == 0 {
            self.quarters = 1;
        }
    }

    /// How long to wait for what was overtaken. `certain`: it is being repaired, or as much was reported as makes a loss
    /// anyhow. `smoothed` bounds it.
    pub(super) fn window(&self, certain: bool, smoothed: Duration) -> Duration {
        if certain && !self.reordering_seen {
            return Duration::ZERO;
        }
        let quarters = u64::from(self.min_rtt) * u64::from(self.quarters) / 4;
        // Not nothing: two segments in one tick of the clock may have changed places.
        Duration::from_micros(quarters.min(smoothed.total_micros()).max(1))
    }

    /// When `sent`, which has not arrived, is overdue; `None`: it was sent after all that has arrived.
    pub(super) fn overdue(&self, sent: &Sent, window: Duration) -> Option<Instant> {
        // What went again and what went new in one tick have no order.
        let overtaken = |newest: (Instant, Seq)| {
            if sent.again { newest.0 > sent.at } else { is_sent_after(newest, (sent.at, sent.end)) }
        };
        self.newest.filter(|&newest| overtaken(newest))?;
        Some(sent.at + Duration::from_micros(u64::from(self.rtt)) + window)
    }

    /// Whether `sent` has been away for less than a round trip.
    pub(super) fn is_recent(&self, now: Instant, sent: &Sent) -> bool {
        now - sent.at < Duration::from_micros(u64::from(self.rtt))
    }
}

fn is_sent_after(one: (Instant, Seq), other: (Instant, Seq)) -> bool {
    one.0 > other.0 || (one.0 == other.0 && one.1.after(other.1))
}
