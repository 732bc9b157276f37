//! Raw IP packets for tests: right ones, wrong ones, and the pieces to make worse ones.
//!
//! Everything is built by hand from the RFCs, not with the parser that the product uses, so that a shared mistake
//! cannot hide.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// TCP flag bits (RFC 9293 section 3.1).
pub mod flags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
    pub const URG: u8 = 0x20;
}

/// Protocol numbers (IANA).
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const FRAGMENT: u8 = 44;
    pub const ICMPV6: u8 = 58;
}

/// What the transport checksum of a built packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checksum {
    #[default]
    Right,
    /// One bit off.
    Wrong,
    /// Only the pseudo-header's sum, as the kernel leaves it for a device that finishes it (`NEEDS_CSUM`).
    Partial,
}

/// A TCP segment, field by field.
#[derive(Clone, Debug)]
pub struct Tcp {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    /// Raw option bytes; padded with end-of-list to a multiple of four.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
    pub checksum: Checksum,
}

impl Tcp {
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source,
            destination,
            seq: 0,
            ack: 0,
            flags: 0,
            window: 65535,
            urgent: 0,
            options: Vec::new(),
            payload: Vec::new(),
            checksum: Checksum::Right,
        }
    }

    /// A SYN with an MSS option, as every real stack sends it.
    pub fn syn(source: SocketAddr, destination: SocketAddr, seq: u32, mss: u16) -> Self {
        let mss = mss.to_be_bytes();
        Self { seq, flags: flags::SYN, options: vec![2, 4, mss[0], mss[1]], ..Self::new(source, destination) }
    }

    pub fn with_payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// The IP packet.
    pub fn build(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let mut segment = Vec::with_capacity(20 + options.len() + self.payload.len());
        segment.extend(self.source.port().to_be_bytes());
        segment.extend(self.destination.port().to_be_bytes());
        segment.extend(self.seq.to_be_bytes());
        segment.extend(self.ack.to_be_bytes());
        segment.push((((20 + options.len()) / 4) as u8) << 4);
        segment.push(self.flags);
        segment.extend(self.window.to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(self.urgent.to_be_bytes());
        segment.extend(options);
        segment.extend(&self.payload);
        let (source, destination) = (self.source.ip(), self.destination.ip());
        set_checksum(&mut segment, 16, source, destination, protocol::TCP, self.checksum);
        ip(source, destination, protocol::TCP, &segment)
    }
}

/// A UDP datagram as an IP packet.
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    udp_with(source, destination, payload, Checksum::Right)
}

pub fn udp_with(source: SocketAddr, destination: SocketAddr, payload: &[u8], checksum: Checksum) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(8 + payload.len());
    datagram.extend(source.port().to_be_bytes());
    datagram.extend(destination.port().to_be_bytes());
    datagram.extend(((8 + payload.len()) as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    set_checksum(&mut datagram, 6, source.ip(), destination.ip(), protocol::UDP, checksum);
    // RFC 768: a computed zero is sent as all ones, zero means "none".
    if checksum == Checksum::Right && datagram[6..8] == [0, 0] {
        datagram[6..8].fill(0xff);
    }
    ip(source.ip(), destination.ip(), protocol::UDP, &datagram)
}

/// An ICMP or ICMPv6 echo request.
pub fn echo_request(
    source: IpAddr,
    destination: IpAddr,
    identifier: u16,
    sequence: u16,
    payload: &[u8],
) -> Vec<u8> {
    let kind = if source.is_ipv4() { 8 } else { 128 };
    let rest = [&identifier.to_be_bytes(), &sequence.to_be_bytes(), payload].concat();
    icmp(source, destination, [kind, 0], &rest)
}

/// An ICMP or ICMPv6 message of any type and code; `rest` is what follows the checksum.
pub fn icmp(source: IpAddr, destination: IpAddr, kind: [u8; 2], rest: &[u8]) -> Vec<u8> {
    let mut message = [&kind[..], &[0, 0], rest].concat();
    if source.is_ipv4() {
        let sum = !fold(sum_words(&message));
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        return ip(source, destination, protocol::ICMP, &message);
    }
    set_checksum(&mut message, 2, source, destination, protocol::ICMPV6, Checksum::Right);
    ip(source, destination, protocol::ICMPV6, &message)
}

/// An IP packet around `payload`, v4 or v6 after the addresses.
///
/// # Panics
/// When the two addresses are of different families.
pub fn ip(source: IpAddr, destination: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4(source, destination, next, 0, payload),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6(source, destination, next, payload),
        _ => panic!("{source} and {destination} are not of one family"),
    }
}

/// `fragment` is the raw flags-and-offset field of the header.
fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, next: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(((20 + payload.len()) as u16).to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, next, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    fix_ipv4_header(&mut packet);
    packet.extend(payload);
    packet
}

fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// Writes the right header checksum into an IPv4 packet (after a test changed a field).
pub fn fix_ipv4_header(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 0x0f) * 4;
    packet[10..12].fill(0);
    let sum = !fold(sum_words(&packet[..header]));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// An IPv4 packet with `options` (a multiple of four octets) behind its fixed header.
pub fn with_ipv4_options(packet: &[u8], options: &[u8]) -> Vec<u8> {
    let mut built = [&packet[..20], options, &packet[20..]].concat();
    built[0] = 0x40 | (5 + options.len() / 4) as u8;
    let total = built.len() as u16;
    built[2..4].copy_from_slice(&total.to_be_bytes());
    fix_ipv4_header(&mut built);
    built
}

/// Cuts a packet into fragments whose payloads are `size` bytes (rounded down to a multiple of 8).
pub fn fragments(packet: &[u8], size: usize, identification: u32) -> Vec<Vec<u8>> {
    let size = (size & !7).max(8);
    let (source, destination, header) = addresses(packet);
    let payload = &packet[header..];
    let count = payload.len().div_ceil(size);
    (0..count)
        .map(|index| {
            let from = index * size;
            let part = &payload[from..payload.len().min(from + size)];
            fragment(packet, source, destination, identification, from as u16, index + 1 < count, part)
        })
        .collect()
}

fn fragment(
    packet: &[u8],
    source: IpAddr,
    destination: IpAddr,
    identification: u32,
    offset: u16,
    more: bool,
    part: &[u8],
) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let field = (offset / 8) | if more { 0x2000 } else { 0 };
            let mut built = ipv4(source, destination, packet[9], field, part);
            built[4..6].copy_from_slice(&(identification as u16).to_be_bytes());
            fix_ipv4_header(&mut built);
            built
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut body = vec![packet[6], 0];
            body.extend((offset | u16::from(more)).to_be_bytes());
            body.extend(identification.to_be_bytes());
            body.extend(part);
            ipv6(source, destination, protocol::FRAGMENT, &body)
        }
        _ => unreachable!("both come from one header"),
    }
}

/// Source, destination and header length of a packet without extension headers.
///
/// # Panics
/// When `packet` is not a whole IPv4 or IPv6 packet.
pub fn addresses(packet: &[u8]) -> (IpAddr, IpAddr, usize) {
    match packet[0] >> 4 {
        4 => {
            let address = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).expect("four bytes");
            (address(12).into(), address(16).into(), usize::from(packet[0] & 0x0f) * 4)
        }
        6 => {
            let address = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).expect("sixteen bytes");
            (address(8).into(), address(24).into(), 40)
        }
        other => panic!("IP version {other}"),
    }
}

/// The transport protocol number of a packet without extension headers.
pub fn next_header(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 { packet[9] } else { packet[6] }
}

/// Computes the TCP or UDP checksum of a whole packet anew, as a device does for `NEEDS_CSUM`.
pub fn finish_checksum(packet: &mut [u8]) {
    let (source, destination, header) = addresses(packet);
    let next = next_header(packet);
    let at = match next {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => return,
    };
    let segment = &mut packet[header..];
    set_checksum(segment, at, source, destination, next, Checksum::Right);
}

/// True when the TCP or UDP checksum of a whole packet is right (and the header's, for IPv4).
pub fn checksum_is_right(packet: &[u8]) -> bool {
    let (source, destination, header) = addresses(packet);
    let header_ok = packet[0] >> 4 == 6 || fold(sum_words(&packet[..header])) == 0xffff;
    let segment = &packet[header..];
    let sum = pseudo_sum(source, destination, next_header(packet), segment.len()) + sum_words(segment);
    header_ok && fold(sum) == 0xffff
}

/// Cuts a TCP super-segment (a packet larger than the MTU, to be written with a virtio-net header) into what the
/// kernel would deliver: `gso_size` payload bytes each, PSH and FIN on the last only, checksums right.
pub fn segment(packet: &[u8], gso_size: usize) -> Vec<Vec<u8>> {
    let (_, _, ip_header) = addresses(packet);
    let header = ip_header + usize::from(packet[ip_header + 12] >> 4) * 4;
    let payload = &packet[header..];
    let count = payload.len().div_ceil(gso_size.max(1)).max(1);
    (0..count)
        .map(|index| {
            let part = &payload[index * gso_size..payload.len().min((index + 1) * gso_size)];
            let mut piece = [&packet[..header], part].concat();
            rewrite_segment(&mut piece, ip_header, (index * gso_size) as u32, index + 1 == count);
            piece
        })
        .collect()
}

fn rewrite_segment(piece: &mut [u8], ip_header: usize, advance: u32, last: bool) {
    let length = piece.len();
    if piece[0] >> 4 == 4 {
        piece[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        fix_ipv4_header(piece);
    } else {
        piece[4..6].copy_from_slice(&((length - ip_header) as u16).to_be_bytes());
    }
    let tcp = &mut piece[ip_header..];
    let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(advance);
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    if !last {
        tcp[13] &= !(flags::FIN | flags::PSH);
    }
    finish_checksum(piece);
}

fn set_checksum(
    segment: &mut [u8],
    at: usize,
    source: IpAddr,
    destination: IpAddr,
    next: u8,
    kind: Checksum,
) {
    segment[at..at + 2].fill(0);
    let pseudo = pseudo_sum(source, destination, next, segment.len());
    let value = match kind {
        Checksum::Partial => fold(pseudo),
        Checksum::Right => !fold(pseudo + sum_words(segment)),
        Checksum::Wrong => !fold(pseudo + sum_words(segment)) ^ 0x0100,
    };
    segment[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn pseudo_sum(source: IpAddr, destination: IpAddr, next: u8, length: usize) -> u64 {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            sum_words(&source.octets()) + sum_words(&destination.octets())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            sum_words(&source.octets()) + sum_words(&destination.octets())
        }
        _ => panic!("{source} and {destination} are not of one family"),
    };
    addresses + u64::from(next) + length as u64
}

fn sum_words(bytes: &[u8]) -> u64 {
    let pairs = bytes.chunks_exact(2);
    let odd = pairs.remainder().first().map_or(0, |&last| u64::from(last) << 8);
    pairs.map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u64>() + odd
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{Ipv4Packet, Ipv6Packet, TcpPacket, TcpRepr, UdpPacket};

    use super::*;

    fn pair(v6: bool) -> (SocketAddr, SocketAddr) {
        if v6 {
            ("[fd00::2]:40000".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap())
        } else {
            ("10.0.0.2:40000".parse().unwrap(), "192.0.2.1:443".parse().unwrap())
        }
    }

    #[test]
    fn an_independent_parser_accepts_what_is_built() {
        for v6 in [false, true] {
            let (source, destination) = pair(v6);
            let packet = Tcp::syn(source, destination, 7, 1460).with_payload(b"odd").build();
            let (from, to, header) = addresses(&packet);
            let segment = if v6 {
                Ipv6Packet::new_checked(&packet[..]).unwrap();
                TcpPacket::new_checked(&packet[header..]).unwrap()
            } else {
                assert!(Ipv4Packet::new_checked(&packet[..]).unwrap().verify_checksum());
                TcpPacket::new_checked(&packet[header..]).unwrap()
            };
            let repr =
                TcpRepr::parse(&segment, &from.into(), &to.into(), &ChecksumCapabilities::default()).unwrap();
            assert_eq!((repr.max_seg_size, repr.payload), (Some(1460), &b"odd"[..]));
            let datagram = udp(source, destination, b"hello");
            assert!(
                UdpPacket::new_checked(&datagram[header..])
                    .unwrap()
                    .verify_checksum(&from.into(), &to.into())
            );
        }
    }

    #[test]
    fn a_wrong_checksum_is_wrong_and_finishing_repairs_it() {
        for kind in [Checksum::Wrong, Checksum::Partial] {
            let (source, destination) = pair(true);
            let mut packet =
                Tcp { checksum: kind, ..Tcp::syn(source, destination, 1, 1400) }.with_payload(b"abc").build();
            assert!(!checksum_is_right(&packet), "{kind:?}");
            finish_checksum(&mut packet);
            assert!(checksum_is_right(&packet), "{kind:?}");
        }
    }

    #[test]
    fn segments_carry_every_byte_once_and_only_the_last_has_fin() {
        for v6 in [false, true] {
            let (source, destination) = pair(v6);
            let payload: Vec<u8> = (0..=255u8).cycle().take(5000).collect();
            let whole = Tcp {
                seq: u32::MAX - 100,
                flags: flags::ACK | flags::FIN | flags::PSH,
                ..Tcp::new(source, destination)
            }
            .with_payload(&payload)
            .build();
            let parts = segment(&whole, 1400);
            assert_eq!(parts.len(), 4);
            let header = addresses(&whole).2 + 20;
            let joined: Vec<u8> = parts.iter().flat_map(|part| part[header..].to_vec()).collect();
            assert_eq!(joined, payload);
            assert!(parts.iter().all(|part| checksum_is_right(part)));
            let fins: Vec<bool> = parts.iter().map(|part| part[header - 7] & flags::FIN != 0).collect();
            assert_eq!(fins, [false, false, false, true]);
        }
    }

    #[test]
    fn fragments_join_to_the_payload() {
        for v6 in [false, true] {
            let (source, destination) = pair(v6);
            let whole = udp(source, destination, &[7; 3000]);
            let parts = fragments(&whole, 1000, 99);
            let header = addresses(&whole).2;
            let skip = if v6 { header + 8 } else { header };
            let joined: Vec<u8> = parts.iter().flat_map(|part| part[skip..].to_vec()).collect();
            assert_eq!(joined, whole[header..]);
            assert_eq!(parts.len(), 4);
        }
    }
}
