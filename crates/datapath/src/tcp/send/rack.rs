//! Which losses time tells of (RFC 8985 6): what was sent before something that has arrived is overdue.

use smoltcp::time::{Duration, Instant};

use super::board::Sent;
use crate::tcp::rtt::RttEstimator;
use crate::tcp::seq::Seq;

/// Recoveries without a duplicate report after which the window for reordering is small again.
const PERSIST: u8 = 16;

/// What is known of a path on which something went wrong; flows on others have none.
#[derive(Debug)]
pub(super) struct Rack {
    /// Of all that arrived, what was sent last, and where it ended.
    newest: Option<(Instant, Seq)>,
    /// Its round trip, microseconds.
    rtt: u32,
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
    /// Everything before `una` has arrived.
    pub(super) fn new(una: Seq) -> Self {
        Self {
            newest: None,
            rtt: 0,
            furthest: una,
            reached: una,
            reordering_seen: false,
            duplicates_until: None,
            quarters: 1,
            persist: 0,
        }
    }

    /// Whether it knows nothing that would matter for what is sent later.
    pub(super) fn is_plain(&self) -> bool {
        !self.reordering_seen && self.quarters == 1
    }

    /// `sent` has arrived, be it acknowledged or reported; `shortest` is the shortest round trip.
    pub(super) fn delivered(&mut self, now: Instant, sent: &Sent, shortest: Duration) {
        let rtt = now - sent.at;
        if !sent.again {
            self.reordering_seen |= sent.end.before(self.furthest);
        } else if rtt < shortest {
            // So soon it can only be the first one that arrived.
            return;
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
    /// anyhow. It is measured by the shortest round trip, and bounded by the mean one.
    pub(super) fn window(&self, certain: bool, rtt: &RttEstimator) -> Duration {
        if certain && !self.reordering_seen {
            return Duration::ZERO;
        }
        let quarters = rtt.shortest() * u32::from(self.quarters) / 4;
        // Not nothing: two segments in one tick of the clock may have changed places.
        quarters.min(rtt.smoothed().unwrap_or_default()).max(Duration::from_micros(1))
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
}

fn is_sent_after(one: (Instant, Seq), other: (Instant, Seq)) -> bool {
    one.0 > other.0 || (one.0 == other.0 && one.1.after(other.1))
}
