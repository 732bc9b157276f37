//! The pod's side of a connection: it knows where the sequence spaces stand, and may disregard it.

use crate::octets;
use crate::options::Options;
use crate::wire::{Segment, flag};

pub(crate) const CONNECTIONS: u16 = 3;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) port: u16,
    pub(crate) irs: u32,
    /// Where the pod would send next if it were honest.
    pub(crate) next: u32,
    /// What it would acknowledge.
    pub(crate) acked: u32,
    /// Our initial sequence number, once seen.
    iss: Option<u32>,
    /// The options of our SYN|ACK, the shift of our windows, and the right edge of the last one.
    pub(crate) offered: Vec<u8>,
    shift: u8,
    edge: Option<u32>,
}

impl Connection {
    pub(crate) fn new(number: u16) -> Self {
        let irs = u32::MAX - 2_000 * u32::from(number) - 1_000;
        Self {
            port: 40_000 + number,
            irs,
            next: irs.wrapping_add(1),
            acked: 0,
            iss: None,
            offered: Vec::new(),
            shift: 0,
            edge: None,
        }
    }

    /// The octets the stream has from `seq` on.
    pub(crate) fn octets(&self, seq: u32, len: usize) -> &'static [u8] {
        octets(u64::from(seq.wrapping_sub(self.irs).wrapping_sub(1)), len)
    }

    /// Takes a segment of ours; its octets must be those of the upstream at their place.
    pub(crate) fn see(&mut self, segment: &Segment<'_>) {
        if segment.flags & flag::SYN != 0 {
            self.iss = Some(segment.seq);
            self.offered = segment.options.to_vec();
            self.shift = Options::read(segment.options).scale.unwrap_or(0);
            // It may be that of another connection, and cannot tell of more than 64 KiB.
            self.edge = None;
            self.acked = segment.seq.wrapping_add(1);
            assert_eq!(segment.ack, self.irs.wrapping_add(1), "the SYN|ACK is for another SYN");
            return;
        }
        if segment.flags & flag::RST != 0 {
            return;
        }
        let Some(iss) = self.iss else { return };
        self.see_window(segment);
        let start = segment.seq.wrapping_sub(iss).wrapping_sub(1);
        let expected = octets(u64::from(start), segment.payload.len());
        assert!(segment.payload == expected, "wrong octets for the pod from {start} on");
        let fin = u32::from(segment.flags & flag::FIN != 0);
        let end = segment.seq.wrapping_add(segment.payload.len() as u32 + fin);
        if segment.seq == self.acked {
            self.acked = end;
        }
    }

    /// The right edge moves back by nothing but what rounding to the scale takes (RFC 7323 2.4).
    fn see_window(&mut self, segment: &Segment<'_>) {
        let edge = segment.ack.wrapping_add(u32::from(segment.window) << self.shift);
        let before = self.edge.unwrap_or(edge);
        let back = before.wrapping_sub(edge) as i32;
        assert!(back < 1 << self.shift, "our window shrank by {back}");
        self.edge = Some(edge.wrapping_add(back.max(0) as u32));
    }
}
