//! The direction towards the pod: what is queued, sent, acknowledged, lost.
//!
//! Octets wait in a queue that begins at SND.UNA; the FIN, once queued, takes the sequence number behind it. What lies
//! between SND.UNA and SND.NXT (`max`) is on the [`Board`]: sent, reported, or lost and to be sent again first.

mod board;
mod invariants;
mod probe;
mod rack;
mod recovery;
mod timers;

use std::num::NonZeroU32;

use smoltcp::time::{Duration, Instant};

use self::board::Board;
use self::probe::Probe;
use self::rack::Rack;
use self::recovery::Recovery;
use super::rtt::RttEstimator;
use super::segment::Segment;
use super::seq::Seq;
use crate::buffer::{ByteQueue, PacketBuf, Pool};

/// Consecutive time-outs without progress before the pod counts as gone (Linux: tcp_retries2).
const MAX_RETRIES: u8 = 15;

/// The same where both ends have closed, and only the pod's acknowledgment is missing (Linux: tcp_orphan_retries).
const MAX_ORPHAN_RETRIES: u8 = 8;

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

/// What may be due before the retransmission timer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Early {
    /// What was overtaken is overdue now (RFC 8985 6.2, step 5).
    Reorder,
    /// A tail loss probe (RFC 8985 7).
    Probe,
}

/// When the pod's segment came, and what it echoes of our timestamps: milliseconds of our clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) now: Instant,
    pub(crate) echo: Option<u32>,
}

/// What an acknowledgment has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// SND.UNA moved.
    pub(crate) advanced: bool,
    /// Something left the path, so that more may go.
    pub(crate) freed: bool,
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
    max: Seq,
    /// The chunk and the offset in it where `max` lies.
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
    /// The pod reports what it has (RFC 2018).
    sack: bool,
    /// The pod has closed, so that once our FIN is queued nobody waits for the rest.
    orphan: bool,
    /// Milliseconds.
    user_timeout: Option<NonZeroU32>,
    /// When the path was last empty, or something on it was acknowledged, or probing began.
    since: Instant,
    rtt: RttEstimator,
    timed: Option<(Seq, Instant)>,
    board: Board,
    rack: Option<Box<Rack>>,
    dup_acks: u8,
    /// In a box: few flows repair anything.
    recovery: Option<Box<Recovery>>,
    probe: Option<Probe>,
    probe_due: bool,
    cwnd: u32,
    ssthresh: u32,
    timer: Timer,
    early: Option<(Early, Instant)>,
    unanswered_probes: u8,
    /// The pod's window let less than a segment go for a whole persist interval.
    override_silly_window: bool,
}

/// What the handshake settled for the direction towards the pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Octets of a segment's payload.
    pub(crate) mss: u16,
    /// The shift of the pod's windows.
    pub(crate) scale: u8,
    /// The window of the pod's SYN, which is never scaled.
    pub(crate) window: u16,
    pub(crate) sack: bool,
    pub(crate) user_timeout: Option<Duration>,
}

impl Sender {
    /// Begins at `first`, behind our SYN; `irs` is the number of the pod's.
    pub(crate) fn new(now: Instant, first: Seq, irs: Seq, settings: Settings) -> Self {
        let Settings { mss, scale, window, sack, user_timeout } = settings;
        let millis = |limit: Duration| u32::try_from(limit.total_millis()).ok().and_then(NonZeroU32::new);
        Self {
            una: first,
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
            sack,
            orphan: false,
            user_timeout: user_timeout.and_then(millis),
            since: now,
            rtt: RttEstimator::new(),
            timed: None,
            board: Board::new(first),
            rack: None,
            dup_acks: 0,
            recovery: None,
            probe: None,
            probe_due: false,
            cwnd: UNLIMITED,
            ssthresh: UNLIMITED,
            timer: Timer::Off,
            early: None,
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
    pub(crate) fn measured(&mut self, now: Instant, rtt: Duration) {
        self.rtt.sample(rtt);
        self.rtt.note(now, rtt);
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

    /// The pod has closed its direction.
    pub(crate) fn set_orphan(&mut self) {
        self.orphan = true;
    }

    pub(crate) fn user_timeout(&self) -> Option<Duration> {
        self.user_timeout.map(|millis| Duration::from_millis(millis.get().into()))
    }

    /// Everything sent is acknowledged and nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.fin != Fin::Queued
    }

    /// Octets that may be queued now so that they can be sent at once. Behind a window that is closed or smaller than a
    /// segment one segment all the same: that more waits than may go is what the persist timer and the avoidance of
    /// silly windows are about. While octets are under way, a sliver of room counts as none: filling it would make
    /// slivers of all that follows, one for each ACK. But what leaves the path by a gap is made up for by the segment.
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
        let unsent = (self.data_end() - self.max) as usize;
        let by_window = (self.window as usize).min(ceiling).saturating_sub(queued);
        let by_path = (self.cwnd.saturating_sub(self.pipe()) as usize).saturating_sub(unsent);
        let room = by_window.min(by_path);
        let gap = self.dup_acks > 0 || self.board.sacked() > 0 || self.recovery.is_some();
        let sliver = if gap { 0 } else { (allowed / 4).min(MAX_SLIVER) };
        let sliver = sliver.max(mss.min(self.max_window as usize / 2)).max(1);
        if room >= sliver { room } else { 0 }
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
    /// no FIN and no window change, so that a repeated one is a duplicate ACK.
    pub(crate) fn acknowledge(
        &mut self,
        heard: Heard,
        pool: &mut Pool,
        ack: Seq,
        segment: &Segment,
        pure: bool,
    ) -> Progress {
        let flight = self.max - self.una;
        let report = self.take_sack(heard.now, ack, segment);
        let bare = pure && segment.options.sack.as_slice().is_empty();
        let advanced = ack.after(self.una);
        let mut delivered = report.delivered;
        let mut duplicate = false;
        if advanced {
            delivered += self.advance(heard, pool, ack);
        } else if ack == self.una && flight > 0 && (bare || delivered > 0) {
            duplicate = true;
            self.count_duplicate();
        }
        if let Some(rack) = &mut self.rack {
            rack.acknowledged(self.una);
        }
        if self.sack {
            self.account_for_probe(ack, report.duplicate, bare && !advanced);
        }
        if advanced || duplicate || delivered > 0 {
            self.react(heard.now, advanced, delivered, flight);
        }
        Progress { advanced, freed: advanced || duplicate }
    }

    /// SND.UNA moves to `ack`. Returns how many octets were not known to have arrived before.
    fn advance(&mut self, heard: Heard, pool: &mut Pool, ack: Seq) -> u32 {
        let now = heard.now;
        let acked = ack - self.una;
        let data = acked.min(self.queue.len() as u32);
        if data < acked && self.fin == Fin::Queued {
            self.fin = Fin::Acked;
        }
        let whole = self.queue.consume(pool, data as usize);
        self.una = ack;
        self.acknowledged = self.acknowledged.saturating_add(acked);
        self.cursor = match self.cursor.0.checked_sub(whole) {
            // In the front chunk the offset is the distance from SND.UNA.
            Some(0) | None => (0, (self.max - ack) as usize),
            Some(index) => (index, self.cursor.1),
        };
        let delivered = self.clear_board(heard, ack);
        self.rtt.reset_backoff();
        self.since = now;
        self.override_silly_window = false;
        if let Some((seq, sent)) = self.timed
            && ack.at_or_after(seq)
        {
            self.rtt.sample(now - sent);
            self.timed = None;
        }
        self.timer = if self.una == self.max { Timer::Off } else { self.retransmit_timer(now) };
        delivered
    }

    // --- what goes out ---

    /// The next segment to transmit, holes first. `limit` bounds its payload (a super-segment's 64 KiB).
    pub(crate) fn next_piece(&mut self, now: Instant, limit: usize) -> Option<Piece> {
        self.restart_after_idle(now);
        let piece = match self.next_probe() {
            None if self.board.lost() > 0 => self.next_hole(limit),
            None => self.next_new(limit),
            probe => probe,
        };
        match &piece {
            Some(piece) => self.sent(now, piece),
            None => self.arm_persist(now),
        }
        piece
    }

    fn next_new(&mut self, limit: usize) -> Option<Piece> {
        let start = self.max;
        if start.at_or_after(self.end()) {
            return None;
        }
        let by_window = self.window.saturating_sub(start - self.una);
        let allowed = by_window.min(self.cwnd.saturating_sub(self.pipe()));
        let waiting = self.data_end() - start.earlier_of(self.data_end());
        if waiting == 0 {
            // Only the FIN is left. It takes its place in the window like an octet.
            return (by_window > 0).then(|| self.fin_piece(start));
        }
        let mss = u32::from(self.mss);
        if allowed < waiting && allowed < mss && allowed < self.max_window / 2 {
            // Silly window avoidance (RFC 9293 3.8.6.2.1); the persist timer overrides it.
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
        self.piece_from_cursor(start, start + allowed, limit)
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
        // Times that are right to an eighth of the round trip tell early from late.
        let grain = self.rtt.smoothed().unwrap_or_default() / 8;
        if piece.again {
            // Its acknowledgment may be one of what went before it (Karn).
            self.timed = None;
            self.board.sent_again(now, piece.seq, end, grain);
        } else {
            if self.una == self.max {
                self.since = now;
            }
            if piece.len > 0 {
                self.cursor = (piece.index, piece.offset + piece.len);
            }
            self.max = end;
            self.timed = self.timed.or(Some((end, now)));
            // A FIN alone is a segment of its own, as the probe of the tail would repeat it.
            self.board.sent(now, end, self.mss, (piece.len > 0).then_some(grain));
        }
        self.override_silly_window = false;
        let first_again = piece.again && piece.seq == self.una;
        if first_again || !matches!(self.timer, Timer::Retransmit(_)) {
            self.timer = self.retransmit_timer(now);
        }
        if !piece.again {
            self.arm_probe(now);
        }
    }
}
