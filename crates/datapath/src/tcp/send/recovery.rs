//! What the pod has and what it lacks (RFC 2018, RFC 8985, RFC 6582 without SACK), and the congestion window (RFC 5681).

use smoltcp::time::{Duration, Instant};

use super::board::{Fate, Sent};
use super::probe::MIN_TIMEOUT;
use super::rack::Rack;
use super::{DUP_ACKS, Early, Heard, Piece, Sender, Timer, UNLIMITED};
use crate::tcp::segment::Segment;
use crate::tcp::seq::Seq;

/// A pod that acknowledges just what lies before octets it had reported may still come to itself in this time (Linux:
/// tcp_check_sack_reneging).
const RENEGING_PATIENCE: Duration = Duration::from_millis(10);

/// RFC 6928: the initial window, and so what is left after a pause.
const INITIAL_SEGMENTS: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Reports or duplicate acknowledgments showed it.
    Gap,
    Timeout,
    /// Segments were too large for a link. That says nothing about the room on it.
    Size,
}

/// A loss being repaired.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recovery {
    pub(super) cause: Cause,
    /// Repaired when everything sent before the loss was noticed is acknowledged.
    pub(super) point: Seq,
    /// SND.UNA, the time in milliseconds, and the congestion window with its threshold when it began, should it turn out that nothing was
    /// lost.
    from: Seq,
    since: u32,
    before: (u32, u32),
}

/// What the SACK option of a segment told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Report {
    /// Octets that were not known to have arrived.
    pub(super) delivered: u32,
    /// What the pod has twice (RFC 2883).
    pub(super) duplicate: Option<(Seq, Seq)>,
}

impl Sender {
    fn rack(&mut self) -> &mut Rack {
        self.rack.get_or_insert_with(|| Box::new(Rack::new(self.una)))
    }

    /// Notes the segment's SACK blocks on the board.
    pub(super) fn take_sack(&mut self, now: Instant, ack: Seq, segment: &Segment) -> Report {
        let mut report = Report::default();
        let blocks = segment.options.sack.as_slice();
        if !self.sack || blocks.is_empty() {
            return report;
        }
        report.duplicate = self.duplicate_in(ack, blocks);
        if let Some((_, end)) = report.duplicate
            && self.probe.is_none_or(|probe| !probe.ends_at(end))
        {
            let next = self.max;
            self.rack().duplicated(next);
        }
        for &(start, end) in blocks {
            let useful =
                start.before(end) && start.at_or_after(self.una.later_of(ack)) && end.at_or_before(self.max);
            if useful {
                let una = self.una;
                let rack = self.rack.get_or_insert_with(|| Box::new(Rack::new(una)));
                let rtt = &mut self.rtt;
                report.delivered += self.board.report(start, end, |sent| {
                    if !sent.again {
                        rtt.note(now, now - sent.at);
                    }
                    rack.delivered(now, sent, rtt.shortest());
                });
            }
        }
        report
    }

    /// RFC 2883 4: the first block, if it lies before the acknowledgment or within the second block.
    fn duplicate_in(&self, ack: Seq, blocks: &[(Seq, Seq)]) -> Option<(Seq, Seq)> {
        let &(start, end) = blocks.first()?;
        let oldest = self.oldest_ack();
        if !start.before(end) || start.before(oldest) || end.after(self.max) {
            return None;
        }
        let within = blocks.get(1).is_some_and(|&(s, e)| s.at_or_before(start) && e.at_or_after(end));
        (end.at_or_before(ack) || within).then_some((start, end))
    }

    /// Everything before `ack` has arrived. Returns how many octets of it were not known to have.
    pub(super) fn clear_board(&mut self, heard: Heard, ack: Seq) -> u32 {
        let duplicates = u32::from(self.dup_acks);
        let segments = (ack - self.board.start()).div_ceil(u32::from(self.mss));
        // Each duplicate stood for a segment that had arrived; the acknowledgment now speaks of those (RFC 6582 3.2).
        let left = duplicates.saturating_sub(segments.saturating_sub(1));
        let gap = self.repair().is_some_and(|recovery| recovery.cause == Cause::Gap);
        self.dup_acks = if gap && !self.sack { left as u8 } else { 0 };

        let undoubted = self.repair().filter(|recovery| recovery.from == self.board.start());
        let mut first = true;
        let mut late = false;
        let (rack, rtt) = (&mut self.rack, &mut self.rtt);
        let delivered = self.board.acknowledge(ack, |sent| {
            // RFC 3522: the echo is from before anything went again, so it is that of the first one.
            late |= first
                && sent.again
                && undoubted.zip(heard.echo).is_some_and(|(recovery, echo)| is_older(echo, recovery.since));
            first = false;
            if !sent.again {
                rtt.note(heard.now, heard.now - sent.at);
            }
            if let Some(rack) = rack {
                rack.delivered(heard.now, sent, rtt.shortest());
            }
        });
        if late {
            self.undo();
        }
        delivered
    }

    /// Nothing was lost, it was late: things are as they were before (RFC 4015).
    fn undo(&mut self) {
        let Some(recovery) = self.recovery.take() else { return };
        (self.cwnd, self.ssthresh) = recovery.before;
        self.dup_acks = 0;
        self.board.find_again();
        self.rack().reordered();
    }

    pub(super) fn count_duplicate(&mut self) {
        if self.repair().is_none_or(|recovery| recovery.cause == Cause::Gap) {
            self.dup_acks = self.dup_acks.saturating_add(1);
        }
    }

    /// What follows from an acknowledgment: `delivered` octets arrived of `flight` that were under way.
    pub(super) fn react(&mut self, now: Instant, advanced: bool, delivered: u32, flight: u32) {
        match self.repair() {
            Some(recovery) if self.una.at_or_after(recovery.point) => {
                self.recovery = None;
                self.dup_acks = 0;
                self.rack().recovered();
                match recovery.cause {
                    Cause::Gap => self.cwnd = self.ssthresh,
                    Cause::Timeout | Cause::Size => self.grow(delivered, flight),
                }
            }
            // RFC 6582: what follows a partial acknowledgment is lost too. With SACK the board knows better.
            Some(Recovery { cause: Cause::Gap, .. }) if advanced && !self.sack => {
                self.board.lose_first(u32::from(self.mss));
            }
            Some(Recovery { cause: Cause::Gap, .. }) => {}
            Some(Recovery { cause: Cause::Timeout | Cause::Size, .. }) | None => {
                if advanced {
                    self.grow(delivered, flight);
                }
            }
        }
        self.early = None;
        self.find_losses(now);
        if self.una == self.max {
            self.rack.take_if(|rack| rack.is_plain());
        }
        if advanced && self.board.is_broken_promise() {
            let patience = (self.rtt.smoothed().unwrap_or_default() / 2).max(RENEGING_PATIENCE);
            self.timer = Timer::Retransmit(now + patience);
        }
        if self.early.is_none() {
            self.arm_probe(now);
        }
    }

    /// RFC 5681 3.1, by octets (RFC 3465). A window of which not even the half is used does not grow (RFC 7661).
    fn grow(&mut self, delivered: u32, flight: u32) {
        if self.cwnd >= UNLIMITED || self.cwnd >= flight.saturating_mul(2) {
            return;
        }
        let mss = u32::from(self.mss);
        if self.cwnd < self.ssthresh {
            self.cwnd = self.cwnd.saturating_add(delivered).min(UNLIMITED);
        } else {
            let step = (u64::from(mss) * u64::from(delivered) / u64::from(self.cwnd.max(1))).max(1) as u32;
            self.cwnd = self.cwnd.saturating_add(step).min(UNLIMITED);
        }
    }

    /// After a pause the path's room is no longer known: the window halves with each time-out that passed, down to ten segments
    /// (RFC 5681 4.1, RFC 6928, RFC 2861 as Linux has it).
    pub(super) fn restart_after_idle(&mut self, now: Instant) {
        let begins = self.una == self.max && self.window > 0 && !self.queue.is_empty();
        if !begins || self.cwnd >= UNLIMITED {
            return;
        }
        let least = self.cwnd.min(INITIAL_SEGMENTS * u32::from(self.mss));
        let mut pause = now - self.since;
        let timeout = self.rtt.rto();
        if pause > timeout {
            self.ssthresh = self.ssthresh.max(self.cwnd / 4 * 3);
        }
        while pause > timeout && self.cwnd > least {
            self.cwnd = (self.cwnd / 2).max(least);
            pause -= timeout;
        }
    }

    /// Marks what is lost, begins to repair it, and arms the timer for what may still prove so.
    pub(super) fn find_losses(&mut self, now: Instant) {
        if self.sack {
            self.find_overdue(now);
        }
        if self.recovery.is_none() && self.board.lost() == 0 && self.dup_acks >= DUP_ACKS {
            self.board.lose_first(u32::from(self.mss));
        }
        // Also what was lost of what went while an earlier loss was repaired.
        if self.recovery.is_none() && self.board.lost() > 0 {
            self.begin_recovery(now, Cause::Gap);
            self.shrink_threshold();
            self.cwnd = self.ssthresh;
        }
    }

    /// RFC 8985 6.2, step 5.
    fn find_overdue(&mut self, now: Instant) {
        // Without a report and a repair nothing is overtaken.
        if self.board.sacked() == 0 && self.recovery.is_none() {
            return;
        }
        let many =
            self.dup_acks >= DUP_ACKS || self.board.sacked() > u32::from(DUP_ACKS - 1) * u32::from(self.mss);
        let Some(rack) = &self.rack else { return };
        let window = rack.window(many || self.recovery.is_some(), &self.rtt);
        let mut due: Option<Instant> = None;
        for index in 0..self.board.len() {
            let Some((_, sent)) = self.board.get(index).filter(|(_, sent)| sent.fate == Fate::UnderWay)
            else {
                continue;
            };
            match rack.overdue(sent, window) {
                Some(at) if at <= now => self.board.lose(index),
                Some(at) => due = Some(due.map_or(at, |due| due.max(at))),
                None => {}
            }
        }
        if let Some(at) = due {
            self.early = Some((Early::Reorder, at + MIN_TIMEOUT));
        }
    }

    /// The repair that is under way.
    pub(super) fn repair(&self) -> Option<Recovery> {
        self.recovery.as_deref().copied()
    }

    pub(super) fn begin_recovery(&mut self, now: Instant, cause: Cause) {
        // A time-out again, and nothing has come meanwhile: it is the same loss.
        let same = self.repair().filter(|old| old.cause == Cause::Timeout && old.from == self.una);
        let (since, before) = same
            .map_or((now.total_millis() as u32, (self.cwnd, self.ssthresh)), |old| (old.since, old.before));
        self.rack();
        self.recovery = Some(Box::new(Recovery { cause, point: self.max, from: self.una, since, before }));
        self.timed = None;
        self.probe = None;
    }

    /// RFC 5681 equation (4).
    fn shrink_threshold(&mut self) {
        self.ssthresh = ((self.max - self.una) / 2).max(2 * u32::from(self.mss));
    }

    /// After a time-out all is lost that has been away for a round trip (RFC 8985 6.3). Only the first time-out in a row
    /// says something about the path's room.
    pub(super) fn lose_after_timeout(&mut self, now: Instant, first: bool) {
        self.begin_recovery(now, Cause::Timeout);
        if first {
            self.shrink_threshold();
        }
        if self.board.is_broken_promise() {
            self.board.forget_reports();
        }
        let round_trip = self.rtt.smoothed().unwrap_or_default();
        for index in 0..self.board.len() {
            let recent = |(_, sent): (Seq, &Sent)| now - sent.at < round_trip;
            if index == 0 || !self.sack || !self.board.get(index).is_some_and(recent) {
                self.board.lose(index);
            }
        }
        self.dup_acks = 0;
        self.early = None;
        self.probe_due = false;
        self.cwnd = self.pipe() + u32::from(self.mss);
    }

    /// Segments of more than `mss` octets do not pass: the error quotes one that began at `seq`. What is under way goes again
    /// at once, and the congestion window stays (RFC 1191 6.4). An error about nothing that is under way is ignored
    /// (RFC 5927 4.1), as is one that would make segments larger.
    pub(crate) fn lower_mss(&mut self, now: Instant, seq: Seq, mss: u16) -> bool {
        if seq.before(self.una) || seq.at_or_after(self.max) || mss >= self.mss {
            return false;
        }
        self.mss = mss;
        if self.recovery.is_none() {
            self.begin_recovery(now, Cause::Size);
        }
        for index in 0..self.board.len() {
            self.board.lose(index);
        }
        self.early = None;
        self.probe_due = false;
        true
    }

    /// Octets thought to be on the path. Without SACK each duplicate acknowledgment says that a segment has left it.
    pub(super) fn pipe(&self) -> u32 {
        let left = if self.sack { 0 } else { u32::from(self.dup_acks) * u32::from(self.mss) };
        self.board.pipe().saturating_sub(left)
    }

    pub(super) fn next_hole(&mut self, limit: usize) -> Option<Piece> {
        let (start, end) = self.board.first_lost()?;
        let mss = u32::from(self.mss);
        let timed_out = self.repair().is_some_and(|recovery| recovery.cause == Cause::Timeout);
        if self.window == 0 && timed_out {
            // The pod dropped what it had no room for: it is asked, not flooded.
            return None;
        }
        // A window that has shrunk holds for what is sent again, but for the one segment that shows that the pod lives.
        let window_end = self.una + self.window.max(mss);
        // The first segment goes at once, the others as the path drains.
        let room = self.cwnd.saturating_sub(self.pipe());
        if start.at_or_after(window_end) || (start != self.una && room < mss.min(end - start)) {
            return None;
        }
        let allowed = (room - room % mss).max(mss);
        self.piece_at(start, end.earlier_of(window_end).earlier_of(start + allowed), limit)
    }
}

/// Whether one time in milliseconds is before another.
fn is_older(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}
