//! From the octets of a TUN read to a packet whose headers hold: lengths, checksums, extension headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

use crate::checksum;
use crate::counters::DropReason;
use crate::vnet;

/// IPv6 extension headers walked before a packet is refused; real stacks send at most three.
const MAX_EXTENSION_HEADERS: usize = 8;

/// IPv4 option kinds of loose and strict source routing (RFC 791).
const OPTION_LSRR: u8 = 131;
const OPTION_SSRR: u8 = 137;

/// A checked IP packet of the pod. Ranges index the buffer it was read into, virtio header included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub fields: IpFields,
    /// The IP header with its options and extension headers.
    pub network: Range<usize>,
    /// What the IP header says follows, cut to the packet's length.
    pub transport: Range<usize>,
    /// Where the IP header, or the extension header before the transport's, names the protocol: from the IP header's start.
    pub protocol_at: usize,
    pub protocol: Transport,
    pub vnet: vnet::Header,
}

/// What a packet's IP header asks of the way it takes; a datagram that goes on keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpFields {
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// DSCP and ECN (RFC 2474, RFC 3168).
    pub traffic_class: u8,
    /// The DF bit; over IPv6 every packet has it that its sender did not cut itself (RFC 8200 4.5).
    pub dont_fragment: bool,
}

impl IpFields {
    /// The traffic class without ECN.
    pub fn dscp(&self) -> u8 {
        self.traffic_class & !0x03
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
    IcmpV4,
    IcmpV6,
    Other(u8),
}

impl Packet {
    /// Reads `bytes`: a virtio header and an IP packet. Transport checksums are verified unless the kernel made the
    /// packet just now and left them to us.
    pub fn parse(bytes: &[u8]) -> Result<Self, DropReason> {
        let vnet = vnet::Header::parse(bytes).ok_or(DropReason::Truncated)?;
        let ip = &bytes[vnet::LEN..];
        let mut packet = match ip.first().map(|byte| byte >> 4) {
            Some(4) => parse_v4(ip, vnet)?,
            Some(6) => parse_v6(ip, vnet)?,
            Some(_) => return Err(DropReason::BadHeader),
            None => return Err(DropReason::Truncated),
        };
        if !vnet.checksum_trusted {
            verify(&packet, &ip[packet.transport.clone()])?;
        }
        shift(&mut packet.network);
        shift(&mut packet.transport);
        Ok(packet)
    }
}

fn shift(range: &mut Range<usize>) {
    *range = range.start + vnet::LEN..range.end + vnet::LEN;
}

fn parse_v4(ip: &[u8], vnet: vnet::Header) -> Result<Packet, DropReason> {
    // Not `new_checked`, which does not tell what is wrong.
    let header = Ipv4Packet::new_unchecked(ip.get(..20).ok_or(DropReason::Truncated)?);
    let header_len = usize::from(header.header_len());
    let total = usize::from(header.total_len());
    if header_len < 20 || total < header_len {
        return Err(DropReason::BadHeader);
    }
    if ip.len() < total {
        return Err(DropReason::Truncated);
    }
    if checksum::sum(&ip[..header_len]) != 0xffff {
        return Err(DropReason::BadChecksum);
    }
    if header.more_frags() || header.frag_offset() != 0 {
        return Err(DropReason::Fragment);
    }
    if header_len > 20 && source_routed(&ip[20..header_len]) {
        return Err(DropReason::SourceRoute);
    }
    if header.hop_limit() == 0 {
        return Err(DropReason::HopLimit);
    }
    Ok(Packet {
        source: IpAddr::V4(header.src_addr()),
        destination: IpAddr::V4(header.dst_addr()),
        fields: IpFields {
            hop_limit: header.hop_limit(),
            traffic_class: ip[1],
            dont_fragment: header.dont_frag(),
        },
        network: 0..header_len,
        transport: header_len..total,
        protocol_at: 9,
        protocol: match header.next_header() {
            IpProtocol::Tcp => Transport::Tcp,
            IpProtocol::Udp => Transport::Udp,
            IpProtocol::Icmp => Transport::IcmpV4,
            other => Transport::Other(other.into()),
        },
        vnet,
    })
}

/// Whether the options hold a source route; malformed options count as one, they are refused alike.
fn source_routed(mut options: &[u8]) -> bool {
    while let Some(&kind) = options.first() {
        match kind {
            0 => return false,
            1 => options = &options[1..],
            OPTION_LSRR | OPTION_SSRR => return true,
            _ => match options.get(1) {
                Some(&len) if len >= 2 && usize::from(len) <= options.len() => {
                    options = &options[usize::from(len)..];
                }
                _ => return true,
            },
        }
    }
    false
}

fn parse_v6(ip: &[u8], vnet: vnet::Header) -> Result<Packet, DropReason> {
    let header = Ipv6Packet::new_checked(ip).map_err(|_| DropReason::Truncated)?;
    if header.hop_limit() == 0 {
        return Err(DropReason::HopLimit);
    }
    let end = 40 + usize::from(header.payload_len());
    let (protocol, protocol_at, start) = walk_extensions(ip, u8::from(header.next_header()), end)?;
    Ok(Packet {
        source: IpAddr::V6(header.src_addr()),
        destination: IpAddr::V6(header.dst_addr()),
        fields: IpFields {
            hop_limit: header.hop_limit(),
            traffic_class: header.traffic_class(),
            dont_fragment: true,
        },
        network: 0..start,
        transport: start..end,
        protocol_at,
        protocol: match protocol {
            6 => Transport::Tcp,
            17 => Transport::Udp,
            58 => Transport::IcmpV6,
            other => Transport::Other(other),
        },
        vnet,
    })
}

/// Skips hop-by-hop and destination options; fragments and routing headers are refused. Gives the protocol, the octet that
/// names it, and where it begins.
fn walk_extensions(ip: &[u8], first: u8, end: usize) -> Result<(u8, usize, usize), DropReason> {
    let mut next = first;
    let mut named_at = 6;
    let mut at = 40;
    for _ in 0..MAX_EXTENSION_HEADERS {
        match next {
            0 | 60 => {
                let header = ip[..end].get(at..at + 2).ok_or(DropReason::Truncated)?;
                next = header[0];
                named_at = at;
                at += (usize::from(header[1]) + 1) * 8;
                if at > end {
                    return Err(DropReason::Truncated);
                }
            }
            43 => return Err(DropReason::SourceRoute),
            44 => return Err(DropReason::Fragment),
            _ => return Ok((next, named_at, at)),
        }
    }
    Err(DropReason::BadHeader)
}

fn verify(packet: &Packet, transport: &[u8]) -> Result<(), DropReason> {
    let protocol = match packet.protocol {
        Transport::Tcp => 6,
        // An IPv4 datagram may go without a checksum (RFC 768); IPv6 forbids it.
        Transport::Udp if packet.source.is_ipv4() && transport.get(6..8) == Some(&[0, 0]) => return Ok(()),
        Transport::Udp => 17,
        Transport::IcmpV4 => {
            return if checksum::sum(transport) == 0xffff { Ok(()) } else { Err(DropReason::BadChecksum) };
        }
        Transport::IcmpV6 => 58,
        Transport::Other(_) => return Ok(()),
    };
    let covered = match packet.protocol {
        Transport::Udp => {
            let length =
                transport.get(4..6).map(|field| usize::from(u16::from_be_bytes([field[0], field[1]])));
            length.and_then(|length| transport.get(..length)).ok_or_else(|| misfit(transport, 8))?
        }
        _ => transport,
    };
    let pseudo = checksum::pseudo(packet.source, packet.destination, protocol, covered.len() as u32);
    if checksum::combine(pseudo, checksum::sum(covered)) == 0xffff {
        Ok(())
    } else {
        Err(DropReason::BadChecksum)
    }
}

/// A UDP datagram (or a run of equal-sized ones) inside a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// Indexes the buffer the packet was read into.
    pub payload: Range<usize>,
}

impl Datagram {
    pub fn parse(packet: &Packet, bytes: &[u8]) -> Result<Self, DropReason> {
        let transport = &bytes[packet.transport.clone()];
        // The length field of a super-segment is that of the whole, as in a single datagram.
        let udp = UdpPacket::new_checked(transport).map_err(|_| misfit(transport, 8))?;
        if udp.dst_port() == 0 {
            return Err(DropReason::BadHeader);
        }
        let start = packet.transport.start;
        Ok(Self {
            source: SocketAddr::new(packet.source, udp.src_port()),
            destination: SocketAddr::new(packet.destination, udp.dst_port()),
            payload: start + 8..start + usize::from(udp.len()),
        })
    }
}

/// Checks a TCP header's data offset and ports.
pub(crate) fn tcp<'a>(packet: &Packet, bytes: &'a [u8]) -> Result<TcpPacket<&'a [u8]>, DropReason> {
    let transport = &bytes[packet.transport.clone()];
    let tcp = TcpPacket::new_checked(transport).map_err(|_| misfit(transport, 20))?;
    if tcp.src_port() == 0 || tcp.dst_port() == 0 {
        return Err(DropReason::BadHeader);
    }
    Ok(tcp)
}

/// Why a transport header of at least `least` octets does not fit its packet: it is cut short, or its length is wrong.
fn misfit(transport: &[u8], least: usize) -> DropReason {
    if transport.len() < least { DropReason::Truncated } else { DropReason::BadHeader }
}

/// Loopback, multicast, broadcast and the unspecified address are never a flow's other end.
pub(crate) fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !address.is_multicast() && address != Ipv4Addr::BROADCAST && address != Ipv4Addr::UNSPECIFIED
        }
        IpAddr::V6(address) => !address.is_multicast() && address != Ipv6Addr::UNSPECIFIED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_octets_give_a_packet_or_a_reason(
            mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            version in 0u8..4,
        ) {
            if bytes.len() > 10 {
                bytes[0] &= 1;
                bytes[1] = 0;
                bytes[10] = match version { 0 => 0x45, 1 => 0x60, 2 => 0x4f, _ => bytes[10] };
            }
            if let Ok(packet) = Packet::parse(&bytes) {
                proptest::prop_assert!(packet.transport.end <= bytes.len());
                proptest::prop_assert!(packet.network.end == packet.transport.start);
                let _ = Datagram::parse(&packet, &bytes);
                let _ = tcp(&packet, &bytes);
            }
        }
    }

    #[test]
    fn a_source_route_is_found_behind_padding() {
        assert!(source_routed(&[1, 1, 131, 7, 4, 0, 0, 0, 0]));
        assert!(source_routed(&[7, 200]));
        assert!(!source_routed(&[1, 0, 131, 7]));
    }

    #[test]
    fn octets_that_are_missing_and_headers_that_are_wrong_have_reasons_of_their_own() {
        let parse = |edit: fn(&mut Vec<u8>)| {
            let mut bytes = [&[0; vnet::LEN][..], &[0x45, 0, 0, 40], &[0; 36]].concat();
            edit(&mut bytes);
            Packet::parse(&bytes).unwrap_err()
        };
        assert_eq!(parse(|bytes| bytes[vnet::LEN] = 0x44), DropReason::BadHeader);
        assert_eq!(parse(|bytes| bytes[vnet::LEN] = 0x4f), DropReason::BadHeader);
        assert_eq!(parse(|bytes| bytes[vnet::LEN + 3] = 19), DropReason::BadHeader);
        assert_eq!(parse(|bytes| bytes.truncate(vnet::LEN + 39)), DropReason::Truncated);
        assert_eq!(parse(|bytes| bytes.truncate(vnet::LEN + 19)), DropReason::Truncated);
        assert_eq!((misfit(&[0; 7], 8), misfit(&[0; 8], 8)), (DropReason::Truncated, DropReason::BadHeader));
    }
}
