//! The direction from the pod: the window, reassembly, and the octets on their way to the upstream.

mod invariants;

use super::segment::{Blocks, Segment};
use super::seq::Seq;
use crate::buffer::{self, ByteQueue, Chunk, PacketBuf, Pool};
use crate::counters::DropReason;

/// The window a flow begins with; it grows with use.
const INITIAL_CAPACITY: u32 = 128 * 1024;

/// Ranges kept out of order. A pod that makes more loses them and sends them again.
const MAX_RANGES: usize = 64;

/// Octets a flow that holds none may take while the memory is spent.
const EXHAUSTED_BITE: u32 = 2 * 1024;

/// What lies no further back was sent some time; beyond it there is as little sense in before as in behind.
const LONGEST_AGO: u32 = 1 << 30;

/// The part of the capacity by which rounding windows up may exceed it, all in all: room for segments of 512 octets
/// without end, and not for single octets.
const ROUNDING: u32 = 4;

/// What became of a segment's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// RCV.NXT moved by this many octets.
    InOrder(u32),
    OutOfOrder,
    /// Nothing in it was new.
    Duplicate,
    Refused(DropReason),
}

#[derive(Debug)]
pub(crate) struct Receiver {
    nxt: Seq,
    /// The right edge of the window as advertised; it never moves to the left.
    edge: Seq,
    scale: u8,
    capacity: u32,
    max_capacity: u32,
    /// Octets that left to the upstream since the capacity last grew.
    drained: u32,
    uplink: ByteQueue,
    /// Ordered, not overlapping, all behind `nxt`.
    ranges: Vec<(Seq, Chunk)>,
    /// Where the latest out-of-order segment began: its range is the first SACK block (RFC 2018 4).
    latest: Seq,
    /// A duplicate to report once (RFC 2883).
    duplicate: Option<(Seq, Seq)>,
    /// The sequence number of the pod's FIN, once seen.
    fin: Option<Seq>,
    fin_taken: bool,
}

impl Receiver {
    /// Begins behind the pod's SYN; `scale` is ours.
    pub(crate) fn new(first: Seq, scale: u8, max_capacity: usize) -> Self {
        // More than the window field can tell would be told of over and over.
        let max_capacity = max_capacity.min(usize::from(u16::MAX) << scale) as u32;
        Self {
            nxt: first,
            edge: first,
            scale,
            capacity: INITIAL_CAPACITY.min(max_capacity),
            max_capacity,
            drained: 0,
            uplink: ByteQueue::default(),
            ranges: Vec::new(),
            latest: first,
            duplicate: None,
            fin: None,
            fin_taken: false,
        }
    }

    pub(crate) fn nxt(&self) -> Seq {
        self.nxt
    }

    pub(crate) fn window(&self) -> u32 {
        self.edge - self.nxt.earlier_of(self.edge)
    }

    pub(crate) fn uplink(&self) -> &ByteQueue {
        &self.uplink
    }

    /// The pod's FIN was reached in order.
    pub(crate) fn is_closed(&self) -> bool {
        self.fin_taken
    }

    /// RFC 9293 3.10.7.4, first: whether any of the segment lies in the window. As hosts do, a segment that ends or
    /// begins at an edge passes (a zero-length one at the right edge of a closed window must).
    pub(crate) fn is_acceptable(&self, segment: &Segment) -> bool {
        segment.end().at_or_after(self.nxt)
            && segment.seq.at_or_before(self.edge.later_of(self.nxt))
            && !(segment.len() > 0 && segment.end() == self.nxt)
    }

    /// Of a segment that is not acceptable: all of it was acknowledged before.
    pub(crate) fn is_old(&self, segment: &Segment) -> bool {
        segment.end().at_or_before(self.nxt) && self.nxt - segment.seq <= LONGEST_AGO
    }

    /// Reports a segment that brought nothing new with the next SACK (RFC 2883).
    pub(crate) fn report_duplicate(&mut self, start: Seq, end: Seq) {
        self.duplicate = Some((start, end));
    }

    /// Takes what is new of the payload, and notes the FIN.
    pub(crate) fn accept(&mut self, pool: &mut Pool, buffer: &mut PacketBuf, segment: &Segment) -> Accepted {
        let data_end = segment.seq + segment.payload.len() as u32;
        // A FIN before octets that are here already contradicts them: what came first holds.
        let may_end =
            data_end.at_or_after(self.highest()) && data_end.at_or_before(self.edge.later_of(self.nxt));
        if segment.fin && self.fin.is_none() && may_end {
            self.fin = Some(data_end);
        }
        let start = segment.seq.later_of(self.nxt);
        let mut end = data_end.earlier_of(self.edge);
        if let Some(fin) = self.fin {
            end = end.earlier_of(fin);
        }
        if start.before(end) && pool.is_exhausted() {
            // A flow that holds nothing still moves, if slowly: others may hold the memory for as long as they like.
            if start != self.nxt || !self.uplink.is_empty() {
                return Accepted::Refused(DropReason::Memory);
            }
            end = end.earlier_of(start + EXHAUSTED_BITE);
        }
        if segment.seq.before(self.nxt) && !segment.payload.is_empty() {
            self.duplicate = Some((segment.seq, data_end.earlier_of(self.nxt)));
        }
        let before = self.nxt;
        if start.before(end) {
            let from = segment.payload.start + (start - segment.seq) as usize;
            let to = segment.payload.start + (end - segment.seq) as usize;
            if start != self.nxt {
                return self.keep_out_of_order(pool, buffer, start, from, to);
            }
            self.uplink.push(pool, buffer, from, to);
            self.nxt = end;
            self.pull_ranges(pool);
        }
        self.take_fin();
        if self.nxt == before { Accepted::Duplicate } else { Accepted::InOrder(self.nxt - before) }
    }

    /// Behind every octet received.
    fn highest(&self) -> Seq {
        self.ranges.last().map_or(self.nxt, |(seq, chunk)| *seq + chunk.len() as u32)
    }

    fn take_fin(&mut self) {
        if self.fin == Some(self.nxt) && !self.fin_taken {
            self.fin_taken = true;
            self.nxt += 1;
            self.edge = self.edge.later_of(self.nxt);
        }
    }

    /// Stores the parts of `buffer[from..to]` that no kept range covers. First come, first kept: an overlapping
    /// segment cannot change octets that were acknowledged by SACK.
    fn keep_out_of_order(
        &mut self,
        pool: &mut Pool,
        buffer: &mut PacketBuf,
        start: Seq,
        from: usize,
        to: usize,
    ) -> Accepted {
        self.latest = start;
        let end = start + (to - from) as u32;
        let mut gaps = Vec::new();
        let mut at = start;
        for (seq, chunk) in &self.ranges {
            let range_end = *seq + chunk.len() as u32;
            if range_end.at_or_before(at) {
                continue;
            }
            if seq.at_or_after(end) {
                break;
            }
            if at.before(*seq) {
                gaps.push((at, *seq));
            }
            at = range_end;
        }
        if at.before(end) {
            gaps.push((at, end));
        }
        if gaps.is_empty() {
            self.duplicate = Some((start, end));
            return Accepted::Duplicate;
        }
        if self.ranges.len() + gaps.len() > MAX_RANGES {
            return Accepted::Refused(DropReason::Reassembly);
        }
        // Only one gap can take the buffer itself; others then would find it gone, so they are cut from it first.
        let last = gaps.len() - 1;
        for (number, (gap_start, gap_end)) in gaps.into_iter().enumerate() {
            let cut = from + (gap_start - start) as usize..from + (gap_end - start) as usize;
            let chunk = if number == last {
                Chunk::new(pool, buffer, cut.start, cut.end)
            } else {
                Chunk::copied(pool, &buffer.space()[cut])
            };
            let index =
                self.ranges.iter().position(|(seq, _)| seq.after(gap_start)).unwrap_or(self.ranges.len());
            self.ranges.insert(index, (gap_start, chunk));
        }
        Accepted::OutOfOrder
    }

    /// Moves the ranges that `nxt` has reached to the uplink, sparing what the in-order segment already brought.
    fn pull_ranges(&mut self, pool: &mut Pool) {
        let reached =
            |nxt: Seq, ranges: &[(Seq, Chunk)]| ranges.first().is_some_and(|(seq, _)| seq.at_or_before(nxt));
        while reached(self.nxt, &self.ranges) {
            let (seq, mut chunk) = self.ranges.remove(0);
            let end = seq + chunk.len() as u32;
            if end.at_or_before(self.nxt) {
                buffer::release(pool, chunk);
                continue;
            }
            chunk.advance((self.nxt - seq) as usize);
            self.uplink.push_chunk(pool, chunk);
            self.nxt = end;
        }
        if self.ranges.is_empty() && self.ranges.capacity() > 0 {
            self.ranges = Vec::new();
        }
    }

    /// `octets` went to the upstream.
    pub(crate) fn drain(&mut self, pool: &mut Pool, octets: usize) {
        self.uplink.consume(pool, octets);
        self.drained = self.drained.saturating_add(octets as u32);
        if self.drained >= self.capacity && self.capacity < self.max_capacity && !pool.is_exhausted() {
            self.capacity = self.capacity.saturating_mul(2).min(self.max_capacity);
            self.drained = 0;
        }
    }

    pub(crate) fn clear(&mut self, pool: &mut Pool) {
        self.uplink.clear(pool);
        for (_, chunk) in self.ranges.drain(..) {
            buffer::release(pool, chunk);
        }
    }

    /// Where the right edge would be if it were advertised now: only a step worth a segment moves it (RFC 9293
    /// 3.8.6.2.2).
    fn next_edge(&self, mss: u16) -> Seq {
        let free = self.capacity.saturating_sub(self.uplink.len() as u32);
        let wanted = self.nxt + free;
        let step = u32::from(mss).min(self.capacity / 2);
        if wanted.after(self.edge) && wanted - self.edge >= step { wanted } else { self.edge }
    }

    /// The window field of the segment that goes out now. Rounding to the scale is upwards: rounding down would move
    /// the edge back over octets the pod was told it may send. But a pod that sends less than a unit at a time would
    /// push a rounded edge on for ever, so that ends somewhere; octets up to the old edge are still taken then
    /// (RFC 7323 2.4).
    pub(crate) fn advertise(&mut self, mss: u16) -> u16 {
        let window = self.next_edge(mss) - self.nxt;
        let unit = 1u32 << self.scale;
        let rounded = window.next_multiple_of(unit);
        let limit = self.capacity + self.capacity / ROUNDING;
        let fits = rounded.saturating_add(self.uplink.len() as u32) <= limit;
        let field = if fits { rounded } else { window } >> self.scale;
        let field = field.min(u32::from(u16::MAX));
        self.edge = self.edge.later_of(self.nxt + (field << self.scale));
        field as u16
    }

    /// The window of a SYN|ACK, which is not scaled.
    pub(crate) fn advertise_unscaled(&mut self) -> u16 {
        let field = self.capacity.min(u32::from(u16::MAX));
        self.edge = self.edge.later_of(self.nxt + field);
        field as u16
    }

    /// Whether the pod should be told of room that it does not know of: it was nearly out of window, or half of the
    /// capacity has become free.
    pub(crate) fn wants_update(&self, mss: u16) -> bool {
        let gain = self.next_edge(mss) - self.edge;
        gain > 0 && (gain >= self.capacity / 2 || self.window() < 2 * u32::from(mss))
    }

    /// There is something that only SACK tells.
    pub(crate) fn has_report(&self) -> bool {
        self.duplicate.is_some() || !self.ranges.is_empty()
    }

    /// SACK blocks: a duplicate first, then the latest range, then the others. The duplicate is told once.
    pub(crate) fn take_report(&mut self) -> Blocks {
        let mut blocks = Blocks::NONE;
        if let Some(duplicate) = self.duplicate.take() {
            blocks.push(duplicate);
        }
        if self.ranges.is_empty() {
            return blocks;
        }
        let merged = self.merged_ranges();
        let latest =
            merged.iter().position(|&(start, end)| start.at_or_before(self.latest) && end.after(self.latest));
        if let Some(index) = latest {
            blocks.push(merged[index]);
        }
        for (index, &range) in merged.iter().enumerate() {
            if Some(index) != latest {
                blocks.push(range);
            }
        }
        blocks
    }

    fn merged_ranges(&self) -> Vec<(Seq, Seq)> {
        let mut merged: Vec<(Seq, Seq)> = Vec::new();
        for (seq, chunk) in &self.ranges {
            let end = *seq + chunk.len() as u32;
            match merged.last_mut() {
                Some((_, last)) if *last == *seq => *last = end,
                _ => merged.push((*seq, end)),
            }
        }
        merged
    }
}
