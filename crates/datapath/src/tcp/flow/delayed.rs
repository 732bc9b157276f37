//! When the pod's octets are acknowledged (RFC 9293 3.8.6.3, RFC 5681 4.2): at once, unless they are a question whose answer is
//! about to bear the acknowledgment. What a question is the connection shows itself, as with Linux: lately an answer
//! followed soon. So an upload is never held up, nor a pod that waits with its next small write (Nagle) for long.

use smoltcp::time::{Duration, Instant};

use super::Flow;

/// An acknowledgment is held back no longer than this, and what goes out in this time is an answer (Linux: TCP_ATO_MIN).
const DELAY: Duration = Duration::from_millis(40);

#[derive(Debug)]
pub(super) struct Acknowledging {
    /// When the latest octets came.
    octets_at: Option<Instant>,
    /// Questions are answered soon.
    interactive: bool,
    due: Option<Instant>,
}

impl Acknowledging {
    pub(super) const NEW: Self = Self { octets_at: None, interactive: false, due: None };

    /// When an acknowledgment that is held back goes.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// No answer came: the next octets are acknowledged at once.
    pub(super) fn is_overdue(&mut self, now: Instant) -> bool {
        let overdue = self.due.is_some_and(|due| due <= now);
        if overdue {
            self.due = None;
            self.interactive = false;
        }
        overdue
    }

    /// A segment goes out, and an acknowledgment with it. `octets`: it has some.
    pub(super) fn sent(&mut self, now: Instant, octets: bool) {
        self.due = None;
        if octets {
            self.interactive = self.octets_at.is_some_and(|at| now - at < DELAY);
        }
    }
}

impl Flow {
    /// Octets were taken; `plain`: they followed what was there, and neither a gap nor an end is to be told of.
    pub(super) fn may_hold_ack(&mut self, now: Instant, plain: bool) -> bool {
        let full = u32::from(self.sender.mss());
        let told = self.receiver.nxt() - self.last_ack_sent;
        let hold =
            self.acknowledging.interactive && plain && told <= full && self.receiver.window() >= 2 * full;
        self.acknowledging.octets_at = Some(now);
        if hold {
            self.acknowledging.due = self.acknowledging.due.or(Some(now + DELAY));
        } else if !plain {
            self.acknowledging.interactive = false;
        }
        hold
    }
}
