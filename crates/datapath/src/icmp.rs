//! ICMP errors to the pod: what went wrong, quoting the packet it went wrong with (RFC 792, RFC 1812 4.3, RFC 4443).

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::IpProtocol;

use crate::checksum;
use crate::emit;
use crate::tcp::seq::Seq;
use crate::view::{self, Packet, Transport};
use crate::vnet;

/// Octets of the offending packet that are quoted: the error stays within 576 (RFC 1812) and 1280 octets (RFC 4443).
const QUOTE_V4: usize = 548;
const QUOTE_V6: usize = 1_232;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Network,
    Host,
    Protocol,
    Port,
    /// Communication administratively prohibited: policy refused.
    Prohibited,
}

impl Unreachable {
    /// Type and code for IPv4 and IPv6. IPv6 has no code for an unknown protocol: it is a parameter problem.
    fn codes(self, v4: bool) -> (u8, u8) {
        match (self, v4) {
            (Self::Network, true) => (3, 0),
            (Self::Host, true) => (3, 1),
            (Self::Protocol, true) => (3, 2),
            (Self::Port, true) => (3, 3),
            (Self::Prohibited, true) => (3, 13),
            (Self::Network, false) => (1, 0),
            (Self::Host, false) => (1, 3),
            (Self::Protocol, false) => (4, 1),
            (Self::Port, false) => (1, 4),
            (Self::Prohibited, false) => (1, 1),
        }
    }
}

/// An error about a datagram or an echo request that went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Unreachable(Unreachable),
    /// Fragmentation needed (RFC 1191 4), packet too big (RFC 4443 3.2).
    TooBig {
        mtu: u32,
    },
    /// Time exceeded in transit.
    HopLimit,
}

impl Message {
    fn codes(self, v4: bool) -> (u8, u8) {
        match (self, v4) {
            (Self::Unreachable(kind), _) => kind.codes(v4),
            (Self::TooBig { .. }, true) => (3, 4),
            (Self::TooBig { .. }, false) => (2, 0),
            (Self::HopLimit, true) => (11, 0),
            (Self::HopLimit, false) => (3, 0),
        }
    }

    /// The four octets behind the checksum. No host takes a larger packet than 65,535 octets or a smaller one than its
    /// family's least (RFC 791 3.2, RFC 8200 5).
    fn second_word(self, v4: bool) -> u32 {
        match self {
            Self::TooBig { mtu } => mtu.clamp(if v4 { 68 } else { 1_280 }, 65_535),
            Self::Unreachable(_) | Self::HopLimit => 0,
        }
    }
}

impl From<Unreachable> for Message {
    fn from(kind: Unreachable) -> Self {
        Self::Unreachable(kind)
    }
}

/// The error for a packet that is at hand. It comes from the address the packet was for.
pub(crate) fn error(kind: Unreachable, packet: &Packet, bytes: &[u8]) -> Vec<u8> {
    let original = &bytes[packet.network.start..packet.transport.end];
    // Where IPv6's parameter problem lies (RFC 4443 3.4).
    let is_problem = kind == Unreachable::Protocol && packet.source.is_ipv6();
    let pointer = if is_problem { packet.protocol_at as u32 } else { 0 };
    build(kind.codes(packet.source.is_ipv4()), pointer, packet.destination, packet.source, original)
}

/// The error for a SYN that was held and is gone: the headers that identify it are made anew.
pub(crate) fn error_for_syn(kind: Unreachable, pod: SocketAddr, remote: SocketAddr, seq: Seq) -> Vec<u8> {
    let mut tcp = [0; 20];
    tcp[..2].copy_from_slice(&pod.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&remote.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&seq.0.to_be_bytes());
    tcp[12..14].copy_from_slice(&[5 << 4, 2]);
    quoting(kind.into(), None, (pod.ip(), remote.ip()), IpProtocol::Tcp, &tcp)
}

/// The error for a datagram that is gone. `reporter` sends it, or else whom the datagram was for.
pub(crate) fn error_for_datagram(
    message: Message,
    reporter: Option<IpAddr>,
    pod: SocketAddr,
    remote: SocketAddr,
) -> Vec<u8> {
    let mut udp = [0; 8];
    udp[..2].copy_from_slice(&pod.port().to_be_bytes());
    udp[2..4].copy_from_slice(&remote.port().to_be_bytes());
    udp[5] = 8;
    quoting(message, reporter, (pod.ip(), remote.ip()), IpProtocol::Udp, &udp)
}

/// The error for an echo request that is gone. `reporter`: as for a datagram.
pub(crate) fn error_for_echo(
    message: Message,
    reporter: Option<IpAddr>,
    (pod, remote): (IpAddr, IpAddr),
    identifier: u16,
    sequence: u16,
) -> Vec<u8> {
    let (request, protocol) = if pod.is_ipv4() { (8, IpProtocol::Icmp) } else { (128, IpProtocol::Icmpv6) };
    let mut echo = [request, 0, 0, 0, 0, 0, 0, 0];
    echo[4..6].copy_from_slice(&identifier.to_be_bytes());
    echo[6..8].copy_from_slice(&sequence.to_be_bytes());
    quoting(message, reporter, (pod, remote), protocol, &echo)
}

/// An error that quotes a packet of which only the transport header is known.
fn quoting(
    message: Message,
    reporter: Option<IpAddr>,
    (pod, remote): (IpAddr, IpAddr),
    protocol: IpProtocol,
    transport: &[u8],
) -> Vec<u8> {
    let mut original = vec![0; 40];
    let network = emit::network_header(&mut original, pod, remote, protocol, transport.len());
    original.truncate(network);
    original.extend(transport);
    let v4 = pod.is_ipv4();
    let from =
        reporter.filter(|reporter| reporter.is_ipv4() == v4 && may_report(*reporter, pod)).unwrap_or(remote);
    build(message.codes(v4), message.second_word(v4), from, pod, &original)
}

/// Whether an error may be sent about `packet`: never about another ICMP error (RFC 1122 3.2.2).
pub(crate) fn may_answer(packet: &Packet, bytes: &[u8]) -> bool {
    let first = bytes.get(packet.transport.start).copied();
    match packet.protocol {
        Transport::IcmpV4 => first == Some(8),
        Transport::IcmpV6 => first.is_some_and(|kind| kind >= 128),
        Transport::Tcp | Transport::Udp | Transport::Other(_) => true,
    }
}

/// Whether the pod's kernel takes an error from this address: a router's own, not the node's loopback (RFC 1122 3.2.1.3).
fn may_report(reporter: IpAddr, pod: IpAddr) -> bool {
    view::is_unicast(reporter) && !reporter.is_loopback() && reporter != pod
}

fn build((kind, code): (u8, u8), word: u32, from: IpAddr, to: IpAddr, original: &[u8]) -> Vec<u8> {
    let v4 = from.is_ipv4();
    let (limit, protocol) = if v4 { (QUOTE_V4, IpProtocol::Icmp) } else { (QUOTE_V6, IpProtocol::Icmpv6) };
    let quoted = &original[..original.len().min(limit)];
    let mut body = vec![kind, code, 0, 0];
    body.extend(word.to_be_bytes());
    body.extend(quoted);
    finish(from, to, protocol, body)
}

/// An echo reply to the pod.
pub(crate) fn echo_reply(
    from: IpAddr,
    to: IpAddr,
    identifier: u16,
    sequence: u16,
    hop_limit: Option<u8>,
    payload: &[u8],
) -> Vec<u8> {
    let (kind, protocol) = if from.is_ipv4() { (0, IpProtocol::Icmp) } else { (129, IpProtocol::Icmpv6) };
    let mut body = vec![kind, 0, 0, 0];
    body.extend(identifier.to_be_bytes());
    body.extend(sequence.to_be_bytes());
    body.extend(payload);
    let mut packet = finish(from, to, protocol, body);
    if let Some(hop_limit) = hop_limit {
        emit::set_hop_limit(&mut packet[vnet::LEN..], hop_limit);
    }
    packet
}

/// Puts checksum, IP and virtio headers to an ICMP message.
fn finish(from: IpAddr, to: IpAddr, protocol: IpProtocol, mut body: Vec<u8>) -> Vec<u8> {
    let pseudo = match from {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => checksum::pseudo(from, to, protocol.into(), body.len() as u32),
    };
    let sum = !checksum::combine(pseudo, checksum::sum(&body));
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0; vnet::LEN + 40];
    vnet::write_complete(&mut packet);
    let network = emit::network_header(&mut packet[vnet::LEN..], from, to, protocol, body.len());
    packet.truncate(vnet::LEN + network);
    packet.extend(body);
    packet
}
