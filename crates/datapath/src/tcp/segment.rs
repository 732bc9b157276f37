//! One TCP segment of the pod, and the headers of ours.

use std::net::SocketAddr;
use std::ops::Range;

use smoltcp::wire::{IpProtocol, TcpPacket, TcpSeqNumber};

use super::seq::Seq;
use crate::emit::Head;
use crate::vnet::Gso;

const OPT_END: u8 = 0;
const OPT_NOP: u8 = 1;
const OPT_MSS: u8 = 2;
const OPT_WINDOW_SCALE: u8 = 3;
const OPT_SACK_PERMITTED: u8 = 4;
const OPT_SACK: u8 = 5;
const OPT_TIMESTAMP: u8 = 8;

/// RFC 7323 2.3: a larger shift is used as this one.
const MAX_WINDOW_SCALE: u8 = 14;
const MAX_SACK_BLOCKS: usize = 4;

/// Octets the timestamp option takes in every segment, padding included.
pub(crate) const TIMESTAMP_LEN: u16 = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timestamp {
    pub(crate) value: u32,
    pub(crate) echo: u32,
}

/// A list of up to four ranges of sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    blocks: [(Seq, Seq); MAX_SACK_BLOCKS],
    len: u8,
}

impl Blocks {
    pub(crate) const NONE: Self = Self { blocks: [(Seq(0), Seq(0)); MAX_SACK_BLOCKS], len: 0 };

    /// Adds a block; beyond the fourth it is left out.
    pub(crate) fn push(&mut self, block: (Seq, Seq)) {
        if usize::from(self.len) < MAX_SACK_BLOCKS {
            self.blocks[usize::from(self.len)] = block;
            self.len += 1;
        }
    }

    pub(crate) fn as_slice(&self) -> &[(Seq, Seq)] {
        &self.blocks[..usize::from(self.len)]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) mss: Option<u16>,
    pub(crate) window_scale: Option<u8>,
    pub(crate) sack_permitted: bool,
    pub(crate) timestamp: Option<Timestamp>,
    pub(crate) sack: Blocks,
}

impl Options {
    pub(crate) const NONE: Self =
        Self { mss: None, window_scale: None, sack_permitted: false, timestamp: None, sack: Blocks::NONE };

    /// Reads what is understood. As hosts do (RFC 9293 3.2, MUST-6 and MUST-7): unknown kinds and known kinds of a
    /// wrong length are skipped, and a length that leaves the header ends the list.
    fn parse(mut bytes: &[u8]) -> Self {
        let mut options = Self::NONE;
        while let Some(&kind) = bytes.first() {
            match kind {
                OPT_END => break,
                OPT_NOP => bytes = &bytes[1..],
                _ => {
                    let Some(&len) = bytes.get(1) else { break };
                    let Some(data) = bytes.get(2..usize::from(len)) else { break };
                    options.take(kind, data);
                    bytes = &bytes[usize::from(len)..];
                }
            }
        }
        options
    }

    fn take(&mut self, kind: u8, data: &[u8]) {
        match (kind, data) {
            (OPT_MSS, &[high, low]) => self.mss = Some(u16::from_be_bytes([high, low])),
            (OPT_WINDOW_SCALE, &[shift]) => self.window_scale = Some(shift.min(MAX_WINDOW_SCALE)),
            (OPT_SACK_PERMITTED, &[]) => self.sack_permitted = true,
            (OPT_TIMESTAMP, data) if data.len() == 8 => {
                self.timestamp = Some(Timestamp { value: word(&data[..4]), echo: word(&data[4..]) });
            }
            (OPT_SACK, data) if data.len() % 8 == 0 => {
                for block in data.chunks_exact(8) {
                    self.sack.push((Seq(word(&block[..4])), Seq(word(&block[4..]))));
                }
            }
            _ => {}
        }
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) seq: Seq,
    pub(crate) ack: Option<Seq>,
    pub(crate) window: u16,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) options: Options,
    /// Indexes the buffer the packet was read into.
    pub(crate) payload: Range<usize>,
}

impl Segment {
    /// `start` is where the TCP header begins in the packet's buffer.
    pub(crate) fn new(tcp: &TcpPacket<&[u8]>, start: usize, len: usize) -> Self {
        let header_len = usize::from(tcp.header_len());
        Self {
            seq: Seq(tcp.seq_number().0 as u32),
            ack: tcp.ack().then(|| Seq(tcp.ack_number().0 as u32)),
            window: tcp.window_len(),
            syn: tcp.syn(),
            fin: tcp.fin(),
            rst: tcp.rst(),
            options: if header_len > 20 { Options::parse(tcp.options()) } else { Options::NONE },
            payload: start + header_len..start + len,
        }
    }

    /// Sequence numbers the segment takes: payload, SYN and FIN.
    pub(crate) fn len(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.syn) + u32::from(self.fin)
    }

    pub(crate) fn end(&self) -> Seq {
        self.seq + self.len()
    }
}

/// What a segment of ours says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    pub(crate) seq: Seq,
    pub(crate) ack: Option<Seq>,
    pub(crate) window: u16,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) psh: bool,
    pub(crate) options: Options,
    pub(crate) payload_len: usize,
    /// Payload octets of each segment when the kernel is to cut this one.
    pub(crate) mss: u16,
}

impl Outgoing {
    pub(crate) fn new(seq: Seq, ack: Option<Seq>, window: u16) -> Self {
        Self {
            seq,
            ack,
            window,
            syn: false,
            fin: false,
            rst: false,
            psh: false,
            options: Options::NONE,
            payload_len: 0,
            mss: 0,
        }
    }

    /// Headers from `source` (the remote end) to `destination` (the pod).
    pub(crate) fn head(&self, source: SocketAddr, destination: SocketAddr) -> Head {
        let mut options = [0; 40];
        let options_len = self.write_options(&mut options);
        let gso = match (self.payload_len > usize::from(self.mss), source.is_ipv4()) {
            (false, _) => (Gso::None, 0),
            (true, true) => (Gso::TcpV4, self.mss),
            (true, false) => (Gso::TcpV6, self.mss),
        };
        let header_len = 20 + options_len;
        let ends = (source, destination);
        Head::new(ends, IpProtocol::Tcp, header_len, self.payload_len, gso, 16, |bytes| {
            let mut tcp = TcpPacket::new_unchecked(bytes);
            tcp.set_src_port(source.port());
            tcp.set_dst_port(destination.port());
            tcp.set_seq_number(TcpSeqNumber(self.seq.0 as i32));
            tcp.set_ack_number(TcpSeqNumber(self.ack.map_or(0, |ack| ack.0 as i32)));
            tcp.clear_flags();
            tcp.set_header_len(header_len as u8);
            tcp.set_ack(self.ack.is_some());
            tcp.set_syn(self.syn);
            tcp.set_fin(self.fin);
            tcp.set_rst(self.rst);
            tcp.set_psh(self.psh);
            tcp.set_window_len(self.window);
            tcp.options_mut().copy_from_slice(&options[..options_len]);
        })
    }

    /// Returns the octets written, a multiple of four.
    fn write_options(&self, out: &mut [u8; 40]) -> usize {
        let mut len = 0;
        let mut put = |bytes: &[u8]| {
            out[len..len + bytes.len()].copy_from_slice(bytes);
            len += bytes.len();
        };
        if let Some(mss) = self.options.mss {
            let [high, low] = mss.to_be_bytes();
            put(&[OPT_MSS, 4, high, low]);
        }
        if self.options.sack_permitted {
            put(&[OPT_NOP, OPT_NOP, OPT_SACK_PERMITTED, 2]);
        }
        if let Some(timestamp) = self.options.timestamp {
            put(&[OPT_NOP, OPT_NOP, OPT_TIMESTAMP, 10]);
            put(&timestamp.value.to_be_bytes());
            put(&timestamp.echo.to_be_bytes());
        }
        if let Some(shift) = self.options.window_scale {
            put(&[OPT_NOP, OPT_WINDOW_SCALE, 3, shift]);
        }
        let room = if self.options.timestamp.is_some() { 3 } else { MAX_SACK_BLOCKS };
        let blocks = self.options.sack.as_slice();
        let blocks = &blocks[..blocks.len().min(room)];
        if !blocks.is_empty() {
            put(&[OPT_NOP, OPT_NOP, OPT_SACK, (2 + 8 * blocks.len()) as u8]);
            for (start, end) in blocks {
                put(&start.0.to_be_bytes());
                put(&end.0.to_be_bytes());
            }
        }
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_wrong_length_are_skipped_and_garbage_ends_the_list() {
        let options = Options::parse(&[2, 3, 9, 3, 3, 200, 1, 4, 2, 2, 4, 5, 0xb4, 8, 40, 1]);
        assert_eq!(options.mss, Some(1460));
        assert_eq!(options.window_scale, Some(14));
        assert!(options.sack_permitted);
        assert_eq!(options.timestamp, None);
        assert_eq!(Options::parse(&[2, 0, 2, 4, 5, 0xb4]), Options::NONE);
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_back(
            mss in proptest::option::of(proptest::num::u16::ANY),
            shift in proptest::option::of(0u8..15),
            sack_permitted in proptest::bool::ANY,
            timestamp in proptest::option::of((proptest::num::u32::ANY, proptest::num::u32::ANY)),
        ) {
            let mut outgoing = Outgoing::new(Seq(1), None, 0);
            outgoing.options = Options {
                mss, window_scale: shift, sack_permitted, sack: Blocks::NONE,
                timestamp: timestamp.map(|(value, echo)| Timestamp { value, echo }),
            };
            let mut bytes = [0; 40];
            let len = outgoing.write_options(&mut bytes);
            proptest::prop_assert_eq!(len % 4, 0);
            proptest::prop_assert_eq!(Options::parse(&bytes[..len]), outgoing.options);
        }

        #[test]
        fn any_octets_parse(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..40)) {
            let _ = Options::parse(&bytes);
        }
    }
}
