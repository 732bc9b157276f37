//! What the pod has and what it lacks: the scoreboard of SACK (RFC 2018, RFC 6675) and the congestion window (RFC 5681,
//! RFC 6582).

use super::{DUP_ACKS, MAX_SACKED, Piece, Recovery, Sender, UNLIMITED};
use crate::tcp::segment::Segment;
use crate::tcp::seq::Seq;

impl Sender {
    pub(super) fn congestion_on_ack(&mut self, ack: Seq, acked: u32) {
        let mss = u32::from(self.mss);
        match &mut self.recovery {
            Some(recovery) if ack.before(recovery.point) => {
                // A partial ACK: the next hole is lost too (RFC 6582).
                recovery.next = if self.sacked.is_empty() { ack } else { recovery.next.later_of(ack) };
            }
            Some(_) => {
                self.recovery = None;
                self.cwnd = self.ssthresh;
            }
            None if self.cwnd >= UNLIMITED => {}
            None if self.cwnd < self.ssthresh => self.cwnd = self.cwnd.saturating_add(acked).min(UNLIMITED),
            None => {
                let step = (u64::from(mss) * u64::from(acked) / u64::from(self.cwnd.max(1))).max(1) as u32;
                self.cwnd = self.cwnd.saturating_add(step).min(UNLIMITED);
            }
        }
    }

    /// Merges the segment's SACK blocks into the scoreboard; returns whether they told anything new.
    pub(super) fn take_sack(&mut self, ack: Seq, segment: &Segment) -> bool {
        let mut news = false;
        for &(start, end) in segment.options.sack.as_slice() {
            let useful =
                start.before(end) && start.at_or_after(self.una.later_of(ack)) && end.at_or_before(self.max);
            if useful && self.max.after(self.una) && !self.covers(start, end) {
                self.add_sacked(start, end);
                news = true;
            }
        }
        news
    }

    pub(super) fn covers(&self, start: Seq, end: Seq) -> bool {
        self.sacked.iter().any(|&(s, e)| s.at_or_before(start) && e.at_or_after(end))
    }

    pub(super) fn add_sacked(&mut self, mut start: Seq, mut end: Seq) {
        self.sacked.retain(|&(s, e)| {
            let apart = e.before(start) || s.after(end);
            if !apart {
                start = start.earlier_of(s);
                end = end.later_of(e);
            }
            apart
        });
        if self.sacked.len() < MAX_SACKED {
            let at = self.sacked.iter().position(|&(s, _)| s.after(start)).unwrap_or(self.sacked.len());
            self.sacked.insert(at, (start, end));
        }
    }

    pub(super) fn sacked_octets(&self) -> u32 {
        self.sacked.iter().map(|&(start, end)| end - start).sum()
    }

    pub(super) fn maybe_enter_recovery(&mut self) {
        let lost =
            self.dup_acks >= DUP_ACKS || self.sacked_octets() > u32::from(DUP_ACKS - 1) * u32::from(self.mss);
        if self.recovery.is_some() || !lost || self.una.before(self.timeout_point) {
            return;
        }
        self.shrink_threshold();
        self.cwnd = self.ssthresh;
        self.recovery = Some(Recovery { point: self.max, next: self.una });
        self.timed = None;
    }

    /// RFC 5681 equation (4).
    pub(super) fn shrink_threshold(&mut self) {
        self.ssthresh = ((self.max - self.una) / 2).max(2 * u32::from(self.mss));
    }

    pub(super) fn next_hole(&mut self, limit: usize) -> Option<Piece> {
        let recovery = self.recovery?;
        let start = self.skip_sacked(recovery.next.later_of(self.una));
        if start.at_or_after(recovery.point) || start.at_or_after(self.nxt) {
            return None;
        }
        let hole_end = match self.sacked.iter().find(|&&(s, _)| s.after(start)) {
            Some(&(next, _)) => next,
            // Behind the last reported range nothing is known to be lost but the first segment itself.
            None if start == self.una => start + u32::from(self.mss),
            None => return None,
        };
        // A window that has shrunk holds for what is sent again, but for the one segment that shows that the pod lives.
        let window_end = self.una + self.window.max(u32::from(self.mss));
        // The first segment goes at once, the others as the path drains.
        let mss = u32::from(self.mss);
        let room = self.cwnd.saturating_sub(self.pipe(start));
        if start.at_or_after(window_end) || (start != self.una && room < mss) {
            return None;
        }
        let allowed = (room - room % mss).max(mss);
        let end = hole_end.earlier_of(recovery.point).earlier_of(window_end).earlier_of(start + allowed);
        let piece = self.piece_at(start, end, limit)?;
        if let Some(recovery) = &mut self.recovery {
            recovery.next = start + piece.len as u32 + u32::from(piece.fin);
        }
        Some(piece)
    }

    /// Octets thought to be under way (RFC 6675): holes from `next` up to the last reported range count as lost.
    pub(super) fn pipe(&self, next: Seq) -> u32 {
        let flight = self.max - self.una;
        let lost: u32 = match self.sacked.last() {
            Some(&(_, high)) if high.after(next) => {
                let reported = self.sacked.iter().filter(|&&(s, _)| s.at_or_after(next)).map(|&(s, e)| e - s);
                (high - next).saturating_sub(reported.sum())
            }
            _ => 0,
        };
        flight.saturating_sub(self.sacked_octets()).saturating_sub(lost)
    }

    pub(super) fn skip_sacked(&self, mut seq: Seq) -> Seq {
        for &(start, end) in &self.sacked {
            if start.at_or_before(seq) && seq.before(end) {
                seq = end;
            }
        }
        seq
    }
}
