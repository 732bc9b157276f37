//! The direction towards the pod: what is queued, sent, acknowledged, lost.
//!
//! Octets wait in a queue that begins at SND.UNA; the FIN, once queued, takes the sequence number behind it. `nxt` is
//! where the next transmission starts: a time-out sets it back to `una` (go-back-N, sparing what SACK reported), `max`
//! remembers how far anything was ever sent.

mod invariants;
mod recovery;
mod timers;

use smoltcp::time::{Duration, Instant};

use super::rtt::RttEstimator;
use super::segment::Segment;
use super::seq::Seq;
use crate::buffer::{ByteQueue, PacketBuf, Pool};

/// Ranges remembered of what the pod reported as received; a pod can make no more of them cost anything.
const MAX_SACKED: usize = 32;

/// Consecutive time-outs without progress before the pod counts as gone (Linux: tcp_retries2).
const MAX_RETRIES: u8 = 15;

/// RFC 5681: duplicate ACKs that stand for a loss.
const DUP_ACKS: u8 = 3;

/// Room below this is not worth a read of the upstream; a super-segment is four times as large.
pub(crate) const MAX_SLIVER: usize = 16 * 1024;

/// Above any window: no congestion was seen yet.
const UNLIMITED: u32 = 1 << 30;

/// A window probe is never later than this (RFC 9293 3.8.6.1: exponential, bounded).
const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    None,
    /// It follows the last octet of the queue.
    Queued,
    Acked,
}

#[derive(Clone, Copy, Debug)]
enum Timer {
    Off,
    Retransmit(Instant),
    /// Something waits and the window does not let it go.
    Persist(Instant),
}

/// A loss being repaired (RFC 5681 3.2, RFC 6675).
#[derive(Clone, Copy, Debug)]
struct Recovery {
    /// Repaired when everything sent before the loss was noticed is acknowledged.
    point: Seq,
    /// Up to here, holes were sent again.
    next: Seq,
}

/// A segment to put on the wire: `len` octets of the queue's chunk `index` from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) seq: Seq,
    pub(crate) index: usize,
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) fin: bool,
    pub(crate) psh: bool,
    pub(crate) again: bool,
}

/// What a timer of the sending side asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    None,
    /// There may be something to transmit now.
    Transmit,
    /// Ask the pod for its window.
    Probe,
    /// The pod does not answer any more.
    GiveUp,
}

#[derive(Debug)]
pub(crate) struct Sender {
    una: Seq,
    nxt: Seq,
    max: Seq,
    /// The chunk and the offset in it where `nxt` lies.
    cursor: (usize, usize),
    queue: ByteQueue,
    fin: Fin,
    window: u32,
    max_window: u32,
    /// Octets ever acknowledged, as far as 32 bits count.
    acknowledged: u32,
    /// SND.WL1 and SND.WL2.
    updated_by: (Seq, Seq),
    scale: u8,
    mss: u16,
    rtt: RttEstimator,
    timed: Option<(Seq, Instant)>,
    sacked: Vec<(Seq, Seq)>,
    dup_acks: u8,
    recovery: Option<Recovery>,
    /// `max` at the last time-out: duplicate ACKs for what came before it mean nothing (RFC 6582).
    timeout_point: Seq,
    cwnd: u32,
    ssthresh: u32,
    timer: Timer,
    unanswered_probes: u8,
    /// The pod's window let less than a segment go for a whole persist interval.
    override_silly_window: bool,
}

impl Sender {
    /// Begins at `first`, behind our SYN. `window` is that of the pod's SYN `irs`, which is never scaled.
    pub(crate) fn new(first: Seq, irs: Seq, mss: u16, scale: u8, window: u16) -> Self {
        Self {
            una: first,
            nxt: first,
            max: first,
            cursor: (0, 0),
            queue: ByteQueue::default(),
            fin: Fin::None,
            window: u32::from(window),
            max_window: u32::from(window),
            acknowledged: 0,
            updated_by: (irs, first),
            scale,
            mss,
            rtt: RttEstimator::new(),
            timed: None,
            sacked: Vec::new(),
            dup_acks: 0,
            recovery: None,
            timeout_point: first,
            cwnd: UNLIMITED,
            ssthresh: UNLIMITED,
            timer: Timer::Off,
            unanswered_probes: 0,
            override_silly_window: false,
        }
    }

    pub(crate) fn una(&self) -> Seq {
        self.una
    }

    /// SND.NXT of the standard: behind everything ever sent.
    pub(crate) fn sent_up_to(&self) -> Seq {
        self.max
    }

    /// Acknowledgments before this one were never due (RFC 5961 5.2): no further back than the largest window, nor
    /// than what the pod has acknowledged at all.
    pub(crate) fn oldest_ack(&self) -> Seq {
        Seq(self.una.0.wrapping_sub(self.max_window.min(self.acknowledged)))
    }

    /// The handshake's round trip.
    pub(crate) fn measured(&mut self, rtt: Duration) {
        self.rtt.sample(rtt);
    }

    pub(crate) fn handshake_repeated(&mut self) {
        self.rtt.handshake_repeated();
    }

    pub(crate) fn mss(&self) -> u16 {
        self.mss
    }

    pub(crate) fn piece_bytes(&self, piece: &Piece) -> &[u8] {
        self.queue.chunk_from(piece.index, piece.offset).map_or(&[], |bytes| &bytes[..piece.len])
    }

    pub(crate) fn is_fin_acked(&self) -> bool {
        self.fin == Fin::Acked
    }

    /// The FIN, and so all before it, went out at least once.
    pub(crate) fn is_fin_sent(&self) -> bool {
        match self.fin {
            Fin::None => false,
            Fin::Queued => self.max == self.end(),
            Fin::Acked => true,
        }
    }

    /// Everything sent is acknowledged and nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.fin != Fin::Queued
    }

    /// Octets that may be queued now so that they can be sent at once. Behind a window that is closed or smaller than a
    /// segment one segment all the same: that more waits than may go is what the persist timer and the avoidance of
    /// silly windows are about. While octets are under way, a sliver of room counts as none: filling it would make
    /// slivers of all that follows, one for each ACK.
    pub(crate) fn room(&self, ceiling: usize) -> usize {
        if self.fin != Fin::None {
            return 0;
        }
        let queued = self.queue.len();
        let allowed = (self.window.min(self.cwnd) as usize).min(ceiling);
        let mss = usize::from(self.mss);
        if queued == 0 {
            return allowed.max(mss);
        }
        let sliver =
            (self.window as usize / 4).min(MAX_SLIVER).max(mss.min(self.max_window as usize / 2)).max(1);
        if allowed >= queued + sliver { allowed - queued } else { 0 }
    }

    pub(crate) fn push(&mut self, pool: &mut Pool, buffer: &mut PacketBuf, start: usize, end: usize) {
        debug_assert!(self.fin == Fin::None);
        self.queue.push(pool, buffer, start, end);
    }

    pub(crate) fn queue_fin(&mut self) {
        if self.fin == Fin::None {
            self.fin = Fin::Queued;
        }
    }

    pub(crate) fn clear(&mut self, pool: &mut Pool) {
        self.queue.clear(pool);
    }

    fn data_end(&self) -> Seq {
        self.una + self.queue.len() as u32
    }

    fn end(&self) -> Seq {
        self.data_end() + u32::from(self.fin == Fin::Queued)
    }

    // --- what the pod says ---

    /// The pod acknowledged our SYN: its windows are scaled from this segment on.
    pub(crate) fn first_window(&mut self, segment: &Segment) {
        self.window = u32::from(segment.window) << self.scale;
        self.max_window = self.max_window.max(self.window);
    }

    pub(crate) fn is_same_window(&self, segment: &Segment) -> bool {
        self.window == u32::from(segment.window) << self.scale
    }

    /// Takes the window of an acceptable segment, if it is newer than the last (RFC 9293 3.10.7.4). `advanced`: it
    /// acknowledged something new, and so is newer even where an earlier one came from further ahead.
    pub(crate) fn update_window(&mut self, segment: &Segment, ack: Seq, advanced: bool) {
        self.unanswered_probes = 0;
        let (wl1, wl2) = self.updated_by;
        let window = u32::from(segment.window) << self.scale;
        let newer = advanced
            || wl1.before(segment.seq)
            || (wl1 == segment.seq
                && (wl2.before(ack) || (wl2 == ack && (window > self.window || window == 0))));
        if !newer {
            return;
        }
        if self.window == 0 && window > 0 && matches!(self.timer, Timer::Persist(_)) {
            // Probing is over: its back-off says nothing about losses, nor about how long to wait for the next ACK.
            self.timer = Timer::Off;
            self.rtt.reset_backoff();
        }
        self.window = window;
        self.max_window = self.max_window.max(window);
        self.updated_by = (segment.seq, ack);
    }

    /// Takes an acceptable acknowledgment (`una <= ack <= max`, or an old one) with its SACK blocks. `pure`: no data,
    /// no FIN and no window change, so that a repeated one is a duplicate ACK. Returns whether anything new was
    /// acknowledged.
    pub(crate) fn acknowledge(
        &mut self,
        now: Instant,
        pool: &mut Pool,
        ack: Seq,
        segment: &Segment,
        pure: bool,
    ) -> bool {
        let news = self.take_sack(ack, segment);
        if ack.after(self.una) {
            self.advance(now, pool, ack);
            self.maybe_enter_recovery();
            return true;
        }
        if ack == self.una && self.max != self.una && (pure || news) {
            self.dup_acks = self.dup_acks.saturating_add(1);
            self.maybe_enter_recovery();
        }
        false
    }

    fn advance(&mut self, now: Instant, pool: &mut Pool, ack: Seq) {
        let acked = ack - self.una;
        let data = acked.min(self.queue.len() as u32);
        if data < acked && self.fin == Fin::Queued {
            self.fin = Fin::Acked;
        }
        let whole = self.queue.consume(pool, data as usize);
        self.una = ack;
        self.acknowledged = self.acknowledged.saturating_add(acked);
        self.nxt = self.nxt.later_of(ack);
        self.cursor = match self.cursor.0.checked_sub(whole) {
            // In the front chunk the offset is the distance from SND.UNA.
            Some(0) | None => (0, (self.nxt - ack) as usize),
            Some(index) => (index, self.cursor.1),
        };
        self.sacked.retain(|&(_, end)| end.after(ack));
        self.dup_acks = 0;
        self.rtt.reset_backoff();
        self.override_silly_window = false;
        if let Some((seq, sent)) = self.timed
            && ack.at_or_after(seq)
        {
            self.rtt.sample(now - sent);
            self.timed = None;
        }
        self.congestion_on_ack(ack, acked);
        self.timer = if self.una == self.max { Timer::Off } else { Timer::Retransmit(now + self.rtt.rto()) };
    }

    // --- what goes out ---

    /// The next segment to transmit, holes first. `limit` bounds its payload (a super-segment's 64 KiB).
    pub(crate) fn next_piece(&mut self, now: Instant, limit: usize) -> Option<Piece> {
        let piece = self.next_hole(limit).or_else(|| self.next_new(limit));
        match &piece {
            Some(piece) => self.sent(now, piece),
            None => self.arm_persist(now),
        }
        piece
    }

    fn next_new(&mut self, limit: usize) -> Option<Piece> {
        let start = self.skip_sacked(self.nxt);
        if start != self.nxt {
            self.nxt = start;
            self.cursor = self.locate(start);
        }
        if start.at_or_after(self.end()) {
            return None;
        }
        let flight = match self.recovery {
            Some(_) => self.pipe(self.max),
            None => start - self.una,
        };
        let by_window = self.window.saturating_sub(start - self.una);
        let allowed = by_window.min(self.cwnd.saturating_sub(flight));
        let waiting = self.data_end() - start.earlier_of(self.data_end());
        if waiting == 0 {
            // Only the FIN is left. It takes its place in the window like an octet.
            return (by_window > 0).then(|| self.fin_piece(start));
        }
        let mss = u32::from(self.mss);
        let first_time = start == self.max;
        if first_time && allowed < waiting && allowed < mss && allowed < self.max_window / 2 {
            // Silly window avoidance (RFC 9293 3.8.6.2.1); the persist timer overrides it. What was sent once goes
            // again as far as the window lets it.
            if !self.override_silly_window || allowed == 0 {
                return None;
            }
        }
        if allowed == 0 {
            return None;
        }
        let mut limit = limit.min(allowed as usize);
        // A small window is filled to its last octet, as hosts do; in a large one whole segments are worth more.
        let fills_window = allowed == by_window && limit < MAX_SLIVER;
        if limit < waiting as usize && limit > usize::from(self.mss) && !fills_window {
            limit -= limit % usize::from(self.mss);
        }
        let hole_end = self.sacked.iter().find(|&&(s, _)| s.after(start)).map_or(self.end(), |&(s, _)| s);
        self.piece_from_cursor(start, hole_end.earlier_of(start + allowed), limit)
    }

    fn fin_piece(&self, seq: Seq) -> Piece {
        Piece { seq, index: 0, offset: 0, len: 0, fin: true, psh: false, again: seq.before(self.max) }
    }

    fn piece_from_cursor(&self, start: Seq, end: Seq, limit: usize) -> Option<Piece> {
        let (mut index, mut offset) = self.cursor;
        if self.queue.chunk_from(index, offset).is_some_and(<[u8]>::is_empty) {
            (index, offset) = (index + 1, 0);
        }
        self.cut(start, end, limit, index, offset)
    }

    fn piece_at(&self, start: Seq, end: Seq, limit: usize) -> Option<Piece> {
        if start == self.data_end() && self.fin == Fin::Queued {
            return Some(self.fin_piece(start));
        }
        let (index, offset) = self.locate(start);
        self.cut(start, end, limit, index, offset)
    }

    fn cut(&self, start: Seq, end: Seq, limit: usize, index: usize, offset: usize) -> Option<Piece> {
        let bytes = self.queue.chunk_from(index, offset)?;
        let len = bytes.len().min(limit).min((end - start) as usize);
        let last = start + len as u32 == self.data_end();
        let fin = last && self.fin == Fin::Queued && end.after(self.data_end());
        let again = start.before(self.max);
        (len > 0).then_some(Piece { seq: start, index, offset, len, fin, psh: last, again })
    }

    /// The chunk and offset of `seq`; behind the last octet the end of the last chunk, which may still grow.
    fn locate(&self, seq: Seq) -> (usize, usize) {
        let mut distance = (seq - self.una) as usize;
        let mut at = (0, 0);
        for (index, chunk) in self.queue.chunks().enumerate() {
            at = (index, distance.min(chunk.len()));
            if distance < chunk.len() {
                break;
            }
            distance -= chunk.len();
        }
        at
    }

    fn sent(&mut self, now: Instant, piece: &Piece) {
        let end = piece.seq + piece.len as u32 + u32::from(piece.fin);
        if end.after(self.nxt) {
            if piece.len > 0 {
                self.cursor = (piece.index, piece.offset + piece.len);
            }
            self.nxt = end;
        }
        if end.after(self.max) {
            self.max = end;
            if !piece.again && self.timed.is_none() {
                self.timed = Some((end, now));
            }
        }
        self.override_silly_window = false;
        if !matches!(self.timer, Timer::Retransmit(_)) {
            self.timer = Timer::Retransmit(now + self.rtt.rto());
        }
    }
}
