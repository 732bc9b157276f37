//! ICMP errors to the pod: what went wrong, quoting the packet it went wrong with (RFC 792, RFC 1812 4.3, RFC 4443).

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::IpProtocol;

use crate::checksum;
use crate::emit;
use crate::tcp::seq::Seq;
use crate::view::{Packet, Transport};
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

/// The error for a packet that is at hand. It comes from the address the packet was for.
pub(crate) fn error(kind: Unreachable, packet: &Packet, bytes: &[u8]) -> Vec<u8> {
    let original = &bytes[packet.network.start..packet.transport.end];
    // Where IPv6's parameter problem lies: the next-header field of the fixed header.
    let pointer = if kind == Unreachable::Protocol && packet.source.is_ipv6() { 6 } else { 0 };
    build(kind, packet.destination, packet.source, original, pointer)
}

/// The error for a SYN that was held and is gone: the headers that identify it are made anew.
pub(crate) fn error_for_syn(kind: Unreachable, pod: SocketAddr, remote: SocketAddr, seq: Seq) -> Vec<u8> {
    let mut tcp = [0; 20];
    tcp[..2].copy_from_slice(&pod.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&remote.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&seq.0.to_be_bytes());
    tcp[12..14].copy_from_slice(&[5 << 4, 2]);
    quoting(kind, pod.ip(), remote.ip(), IpProtocol::Tcp, &tcp)
}

/// The error for a datagram that is gone.
pub(crate) fn error_for_datagram(kind: Unreachable, pod: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let mut udp = [0; 8];
    udp[..2].copy_from_slice(&pod.port().to_be_bytes());
    udp[2..4].copy_from_slice(&remote.port().to_be_bytes());
    udp[5] = 8;
    quoting(kind, pod.ip(), remote.ip(), IpProtocol::Udp, &udp)
}

/// The error for an echo request that is gone.
pub(crate) fn error_for_echo(
    kind: Unreachable,
    pod: IpAddr,
    remote: IpAddr,
    identifier: u16,
    sequence: u16,
) -> Vec<u8> {
    let (request, protocol) = if pod.is_ipv4() { (8, IpProtocol::Icmp) } else { (128, IpProtocol::Icmpv6) };
    let mut echo = [request, 0, 0, 0, 0, 0, 0, 0];
    echo[4..6].copy_from_slice(&identifier.to_be_bytes());
    echo[6..8].copy_from_slice(&sequence.to_be_bytes());
    quoting(kind, pod, remote, protocol, &echo)
}

/// An error that quotes a packet of which only the transport header is known.
fn quoting(
    kind: Unreachable,
    pod: IpAddr,
    remote: IpAddr,
    protocol: IpProtocol,
    transport: &[u8],
) -> Vec<u8> {
    let mut original = vec![0; 40];
    let network = emit::network_header(&mut original, pod, remote, protocol, transport.len());
    original.truncate(network);
    original.extend(transport);
    build(kind, remote, pod, &original, 0)
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

fn build(kind: Unreachable, from: IpAddr, to: IpAddr, original: &[u8], pointer: u32) -> Vec<u8> {
    let v4 = from.is_ipv4();
    let (limit, protocol) = if v4 { (QUOTE_V4, IpProtocol::Icmp) } else { (QUOTE_V6, IpProtocol::Icmpv6) };
    let quoted = &original[..original.len().min(limit)];
    let (kind, code) = kind.codes(v4);
    let mut body = vec![kind, code, 0, 0];
    body.extend(pointer.to_be_bytes());
    body.extend(quoted);
    finish(from, to, protocol, body)
}

/// An echo reply to the pod.
pub(crate) fn echo_reply(
    from: IpAddr,
    to: IpAddr,
    identifier: u16,
    sequence: u16,
    payload: &[u8],
) -> Vec<u8> {
    let (kind, protocol) = if from.is_ipv4() { (0, IpProtocol::Icmp) } else { (129, IpProtocol::Icmpv6) };
    let mut body = vec![kind, 0, 0, 0];
    body.extend(identifier.to_be_bytes());
    body.extend(sequence.to_be_bytes());
    body.extend(payload);
    finish(from, to, protocol, body)
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
