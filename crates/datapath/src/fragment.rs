//! Reassembly of the pod's IP fragments, with bounds (RFC 791 3.2, RFC 8200 4.5).
//!
//! An overlap discards the whole datagram (RFC 5722): no stack sends one, and whichever part won, a filter and a
//! receiver could disagree about it.

use std::collections::VecDeque;
use std::net::IpAddr;

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use crate::counters::DropReason;

/// RFC 8200 4.5 names 60 s, Linux waits 30 (ipfrag_time).
const PATIENCE: Duration = Duration::from_secs(30);

const MAX_DATAGRAMS: usize = 64;
/// A datagram of 64 KiB in fragments of an MTU of 1280 takes 53.
const MAX_PIECES: usize = 64;
const MAX_OCTETS: usize = 1 << 20;
/// Of an IPv4 packet the header counts too (RFC 791 3.1), of an IPv6 packet only what is behind it (RFC 8200 3).
const MAX_LENGTH: usize = 65_535;

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const V6_FRAGMENT_HEADER: usize = 8;
const V6_FRAGMENT: u8 = 44;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    identification: u32,
}

/// One fragment as its header describes it.
#[derive(Debug, PartialEq, Eq)]
struct Fragment<'a> {
    key: Key,
    /// What stands before the fragmentable part, as it stands in a whole packet.
    header: Vec<u8>,
    offset: usize,
    last: bool,
    payload: &'a [u8],
}

impl<'a> Fragment<'a> {
    fn parse(ip: &'a [u8]) -> Result<Self, DropReason> {
        match ip.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(ip),
            _ => Self::parse_v6(ip),
        }
    }

    fn parse_v4(ip: &'a [u8]) -> Result<Self, DropReason> {
        let packet = Ipv4Packet::new_checked(ip).map_err(|_| DropReason::Truncated)?;
        let header_len = usize::from(packet.header_len());
        let key = Key {
            source: IpAddr::V4(packet.src_addr()),
            destination: IpAddr::V4(packet.dst_addr()),
            protocol: packet.next_header().into(),
            identification: u32::from(packet.ident()),
        };
        Ok(Self {
            key,
            header: ip[..V4_HEADER].to_vec(),
            offset: usize::from(packet.frag_offset()),
            last: !packet.more_frags(),
            payload: &ip[header_len..usize::from(packet.total_len())],
        })
    }

    /// Fragments behind other extension headers do not occur in practice and are refused.
    fn parse_v6(ip: &'a [u8]) -> Result<Self, DropReason> {
        let packet = Ipv6Packet::new_checked(ip).map_err(|_| DropReason::Truncated)?;
        if u8::from(packet.next_header()) != V6_FRAGMENT {
            return Err(DropReason::Fragment);
        }
        let end = V6_HEADER + usize::from(packet.payload_len());
        let start = V6_HEADER + V6_FRAGMENT_HEADER;
        let field = ip.get(V6_HEADER..start).filter(|_| start <= end).ok_or(DropReason::Truncated)?;
        let position = u16::from_be_bytes([field[2], field[3]]);
        let key = Key {
            source: IpAddr::V6(packet.src_addr()),
            destination: IpAddr::V6(packet.dst_addr()),
            protocol: field[0],
            identification: u32::from_be_bytes([field[4], field[5], field[6], field[7]]),
        };
        let mut header = ip[..V6_HEADER].to_vec();
        header[6] = field[0];
        Ok(Self {
            key,
            header,
            offset: usize::from(position & !7),
            last: position & 1 == 0,
            payload: &ip[start..end],
        })
    }
}

#[derive(Debug)]
struct Partial {
    key: Key,
    header: Vec<u8>,
    /// Ordered, not overlapping: where each piece begins in the fragmentable part.
    pieces: Vec<(usize, Vec<u8>)>,
    total: Option<usize>,
    until: Instant,
}

/// The datagrams of one pod of which fragments are missing, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    partial: VecDeque<Partial>,
    held: usize,
    /// Fragments that were held and let go without the rest of their datagram.
    lost: usize,
}

impl Reassembly {
    /// Takes a fragment; `Ok(Some)`: the whole packet it completes, headers included.
    pub(crate) fn accept(&mut self, now: Instant, ip: &[u8]) -> Result<Option<Vec<u8>>, DropReason> {
        self.expire(now);
        let fragment = Fragment::parse(ip)?;
        let end = fragment.offset + fragment.payload.len();
        let misfit =
            fragment.payload.is_empty() || (!fragment.last && !fragment.payload.len().is_multiple_of(8));
        let counted = if fragment.key.source.is_ipv4() { V4_HEADER } else { 0 };
        if misfit || counted + end > MAX_LENGTH {
            return Err(DropReason::Fragment);
        }
        let index = self.partial.iter().position(|partial| partial.key == fragment.key);
        let index = index.unwrap_or_else(|| self.begin(now, &fragment));
        if !self.partial[index].add(&fragment, end) {
            self.discard(index);
            return Err(DropReason::Fragment);
        }
        self.held += fragment.payload.len();
        if self.partial[index].is_whole() {
            return Ok(self.take(index).map(Partial::join));
        }
        while self.held > MAX_OCTETS {
            self.discard(0);
        }
        Ok(None)
    }

    fn begin(&mut self, now: Instant, fragment: &Fragment<'_>) -> usize {
        if self.partial.len() >= MAX_DATAGRAMS {
            self.discard(0);
        }
        self.partial.push_back(Partial {
            key: fragment.key,
            header: fragment.header.clone(),
            pieces: Vec::new(),
            total: None,
            until: now + PATIENCE,
        });
        self.partial.len() - 1
    }

    fn take(&mut self, index: usize) -> Option<Partial> {
        let partial = self.partial.remove(index)?;
        self.held -= partial.octets();
        Some(partial)
    }

    fn discard(&mut self, index: usize) {
        self.lost += self.take(index).map_or(0, |partial| partial.pieces.len());
    }

    /// How many fragments were held in vain since the last call.
    pub(crate) fn take_lost(&mut self) -> usize {
        std::mem::take(&mut self.lost)
    }

    pub(crate) fn poll_at(&self) -> Option<Instant> {
        self.partial.front().map(|partial| partial.until)
    }

    /// Lets go of what has waited too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        while self.partial.front().is_some_and(|partial| partial.until <= now) {
            self.discard(0);
        }
    }
}

impl Partial {
    /// `false`: it contradicts what is there.
    fn add(&mut self, fragment: &Fragment<'_>, end: usize) -> bool {
        let beyond = self.total.is_some_and(|total| end > total || (fragment.last && end != total));
        if beyond || self.pieces.len() >= MAX_PIECES {
            return false;
        }
        let at = self.pieces.partition_point(|&(start, _)| start < fragment.offset);
        let overlaps_before = at > 0 && {
            let (start, piece) = &self.pieces[at - 1];
            start + piece.len() > fragment.offset
        };
        if overlaps_before || self.pieces.get(at).is_some_and(|&(start, _)| start < end) {
            return false;
        }
        if fragment.last {
            if self.pieces.last().is_some_and(|(start, piece)| start + piece.len() > end) {
                return false;
            }
            self.total = Some(end);
        }
        if fragment.offset == 0 {
            self.header.clone_from(&fragment.header);
        }
        self.pieces.insert(at, (fragment.offset, fragment.payload.to_vec()));
        true
    }

    fn octets(&self) -> usize {
        self.pieces.iter().map(|(_, piece)| piece.len()).sum()
    }

    fn is_whole(&self) -> bool {
        // Nothing overlaps and nothing lies beyond the end, so the count tells.
        self.total == Some(self.octets())
    }

    fn join(self) -> Vec<u8> {
        let mut packet = self.header;
        let length = self.pieces.iter().map(|(_, piece)| piece.len()).sum::<usize>();
        match self.key.source {
            IpAddr::V4(_) => {
                let mut header = Ipv4Packet::new_unchecked(&mut packet[..]);
                header.set_header_len(V4_HEADER as u8);
                header.set_total_len((V4_HEADER + length) as u16);
                header.set_more_frags(false);
                header.set_frag_offset(0);
                header.fill_checksum();
            }
            IpAddr::V6(_) => Ipv6Packet::new_unchecked(&mut packet[..]).set_payload_len(length as u16),
        }
        for (_, piece) in self.pieces {
            packet.extend(piece);
        }
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tunproxy_testkit::packet;

    fn datagram(v6: bool, len: usize) -> Vec<u8> {
        let payload: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let (from, to) = if v6 { ("[fd00::5]:9", "[2001:db8::1]:7") } else { ("10.0.0.5:9", "192.0.2.1:7") };
        packet::udp(from.parse().unwrap(), to.parse().unwrap(), &payload)
    }

    fn now() -> Instant {
        Instant::from_secs(1)
    }

    proptest::proptest! {
        #[test]
        fn any_order_gives_the_datagram_back(
            v6 in proptest::bool::ANY,
            len in 1_000usize..=65_507,
            seed in proptest::num::u64::ANY,
        ) {
            let whole = datagram(v6, len);
            let mut pieces = packet::fragments(&whole, 1_480, 77);
            fastrand::Rng::with_seed(seed).shuffle(&mut pieces);
            let mut reassembly = Reassembly::default();
            let last = pieces.pop().unwrap();
            for piece in &pieces {
                proptest::prop_assert_eq!(reassembly.accept(now(), piece), Ok(None));
            }
            if !pieces.is_empty() {
                let joined = reassembly.accept(now(), &last).unwrap().unwrap();
                let header = if v6 { 40 } else { 20 };
                proptest::prop_assert_eq!(&joined[header..], &whole[header..]);
                proptest::prop_assert_eq!(joined.len(), whole.len());
            }
            proptest::prop_assert_eq!(reassembly.held, 0);
        }

        #[test]
        fn any_octets_end(
            pieces in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..120), 0..40),
            v6 in proptest::bool::ANY,
        ) {
            let mut reassembly = Reassembly::default();
            for mut piece in pieces {
                if piece.len() > 50 {
                    piece[0] = if v6 { 0x60 } else { 0x45 };
                    let len = piece.len() as u16;
                    if v6 {
                        piece[4..6].copy_from_slice(&(len - 40).to_be_bytes());
                        piece[6] = 44;
                        piece[8..40].fill(1);
                    } else {
                        piece[2..4].copy_from_slice(&len.to_be_bytes());
                        piece[12..20].fill(1);
                    }
                }
                let _ = reassembly.accept(now(), &piece);
                let held: usize = reassembly.partial.iter().map(Partial::octets).sum();
                proptest::prop_assert_eq!(reassembly.held, held);
            }
        }
    }

    #[test]
    fn an_overlap_discards_the_datagram() {
        let pieces = packet::fragments(&datagram(false, 4_000), 1_480, 1);
        let mut reassembly = Reassembly::default();
        reassembly.accept(now(), &pieces[0]).unwrap();
        assert_eq!(reassembly.accept(now(), &pieces[0]), Err(DropReason::Fragment));
        assert!(reassembly.partial.is_empty());
        assert_eq!((reassembly.take_lost(), reassembly.take_lost()), (1, 0));
    }

    #[test]
    fn the_number_and_the_age_of_datagrams_are_bounded() {
        let mut reassembly = Reassembly::default();
        for identification in 0..500 {
            let pieces = packet::fragments(&datagram(false, 4_000), 1_480, identification);
            reassembly.accept(now(), &pieces[0]).unwrap();
        }
        assert_eq!(reassembly.partial.len(), MAX_DATAGRAMS);
        let pieces = packet::fragments(&datagram(false, 4_000), 1_480, 1_000);
        reassembly.accept(now() + PATIENCE, &pieces[0]).unwrap();
        assert_eq!(reassembly.partial.len(), 1);
        assert_eq!(reassembly.take_lost(), 500, "each that went for room or for age");
        assert_eq!(reassembly.poll_at(), Some(now() + PATIENCE + PATIENCE));
        reassembly.expire(now() + PATIENCE + PATIENCE);
        assert_eq!((reassembly.poll_at(), reassembly.held, reassembly.take_lost()), (None, 0, 1));
    }
}
