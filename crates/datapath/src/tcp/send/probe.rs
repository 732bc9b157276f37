//! The tail loss probe (RFC 8985 7): when nothing comes back for two round trips, one segment asks for an answer, and the
//! answer shows what is missing.

use smoltcp::time::{Duration, Instant};

use super::{Early, Piece, Sender, Timer, UNLIMITED};
use crate::tcp::seq::Seq;

/// What a timer waits beyond what was measured (Linux: TCP_TIMEOUT_MIN_US).
pub(super) const MIN_TIMEOUT: Duration = Duration::from_millis(2);

/// How long a pod may hold back the acknowledgment of a single segment (Linux: TCP_RTO_MIN).
const MAX_ACK_DELAY: Duration = Duration::from_millis(200);

/// A probe that went out and is not accounted for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    /// SND.NXT.
    end: Seq,
    /// Octets under way then.
    flight: u32,
}

impl Probe {
    pub(super) fn ends_at(self, end: Seq) -> bool {
        self.end == end
    }
}

impl Sender {
    /// Something went out, or came back, and no loss is known of.
    pub(super) fn arm_probe(&mut self, now: Instant) {
        let Timer::Retransmit(rto) = self.timer else { return };
        let calm = self.sack && self.recovery.is_none() && self.board.sacked() == 0 && self.probe.is_none();
        if !calm || self.una == self.max {
            return;
        }
        let single = self.max - self.una <= u32::from(self.mss);
        let wait = match self.rtt.smoothed() {
            Some(smoothed) if single => smoothed * 2 + MAX_ACK_DELAY,
            Some(smoothed) => smoothed * 2 + MIN_TIMEOUT,
            None => return,
        };
        self.early = Some((Early::Probe, rto.min(now + wait)));
    }

    /// The probe is due: it goes with the next transmission, and the retransmission timer begins anew.
    pub(super) fn probe_timeout(&mut self, now: Instant) {
        self.probe_due = true;
        self.timer = self.retransmit_timer(now);
    }

    /// The last segment again; not bound by congestion. New octets, which the standard prefers, there are none: those that
    /// the pod's window takes have gone, and what the path has no room for was not read.
    pub(super) fn next_probe(&mut self) -> Option<Piece> {
        if !std::mem::take(&mut self.probe_due) {
            return None;
        }
        let piece = self.last_segment()?;
        self.probe = Some(Probe { end: self.max, flight: self.max - self.una });
        Some(piece)
    }

    /// The segment with the highest sequence numbers, as it was cut.
    fn last_segment(&self) -> Option<Piece> {
        let mss = u32::from(self.mss);
        let (start, last) = self.board.get(self.board.len().checked_sub(1)?)?;
        let data = last.end.earlier_of(self.data_end()) - start;
        let tail = match data % mss {
            0 => data.min(mss),
            part => part,
        };
        self.piece_at(start + (data - tail), last.end, usize::from(self.mss))
    }

    /// What `ack` says of a probe (RFC 8985 7.4). `duplicate`: what the pod reports to have twice, and `bare`: the
    /// acknowledgment is a duplicate that reports nothing.
    pub(super) fn account_for_probe(&mut self, ack: Seq, duplicate: Option<(Seq, Seq)>, bare: bool) {
        let Some(probe) = self.probe.filter(|probe| ack.at_or_after(probe.end)) else { return };
        let superfluous = duplicate.is_some_and(|(_, end)| end == probe.end) || (ack == probe.end && bare);
        if superfluous {
            self.probe = None;
        } else if ack.after(probe.end) {
            // Nobody says that it was superfluous: it has repaired a loss.
            self.probe = None;
            let before = if self.cwnd < UNLIMITED { self.cwnd } else { probe.flight };
            self.ssthresh = (before / 2).max(2 * u32::from(self.mss));
            self.cwnd = self.cwnd.min(self.ssthresh);
        }
    }
}
