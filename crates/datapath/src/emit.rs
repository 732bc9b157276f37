//! Headers of packets to the pod: virtio, IP and transport, laid out in one small array in front of the payload.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet};

use crate::checksum;
use crate::vnet::{self, Gso};

/// Room for virtio (10), IPv6 (40) and TCP with all options (60).
pub(crate) const HEAD: usize = vnet::LEN + 40 + 60;

const HOP_LIMIT: u8 = 64;

/// Headers of one packet.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    bytes: [u8; HEAD],
    len: usize,
}

impl Head {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Completes the transport checksum, for a TUN whose kernel does not.
    pub(crate) fn complete(&mut self, payload: &[u8]) {
        let field = |at: usize, bytes: &[u8]| usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
        let start = vnet::LEN + field(6, &self.bytes);
        let at = start + field(8, &self.bytes);
        // The field holds the pseudo-header's sum, so it counts with the rest. Transport headers are of even length.
        let sum = checksum::combine(checksum::sum(&self.bytes[start..self.len]), checksum::sum(payload));
        // RFC 768: a sum of zero is sent as all ones.
        let sum = if sum == 0xffff { 0xffff } else { !sum };
        self.bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        vnet::write_complete(&mut self.bytes);
    }

    /// Lays out virtio and IP headers for a transport header of `transport_len` octets and a payload that follows,
    /// and lets `fill` write the transport header. The checksum at `checksum_at` in it is left to the kernel.
    pub(crate) fn new(
        ends: (SocketAddr, SocketAddr),
        protocol: IpProtocol,
        transport_len: usize,
        payload_len: usize,
        gso: (Gso, u16),
        checksum_at: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Self {
        let (source, destination) = (ends.0.ip(), ends.1.ip());
        let mut bytes = [0; HEAD];
        let length = transport_len + payload_len;
        let ip_len = network_header(&mut bytes[vnet::LEN..], source, destination, protocol, length);
        let start = vnet::LEN + ip_len;
        fill(&mut bytes[start..start + transport_len]);
        let pseudo = checksum::pseudo(source, destination, protocol.into(), length as u32);
        bytes[start + checksum_at..start + checksum_at + 2].copy_from_slice(&pseudo.to_be_bytes());
        let header_len = (ip_len + transport_len) as u16;
        vnet::write_partial(&mut bytes, gso.0, gso.1, header_len, ip_len as u16, checksum_at as u16);
        Self { bytes, len: start + transport_len }
    }
}

/// Writes an IP header for `length` octets behind it; returns the header's length.
pub(crate) fn network_header(
    out: &mut [u8],
    source: IpAddr,
    destination: IpAddr,
    protocol: IpProtocol,
    length: usize,
) -> usize {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4Packet::new_unchecked(&mut out[..20]);
            header.set_version(4);
            header.set_header_len(20);
            header.set_total_len((20 + length) as u16);
            header.set_dont_frag(true);
            header.set_hop_limit(HOP_LIMIT);
            header.set_next_header(protocol);
            header.set_src_addr(source);
            header.set_dst_addr(destination);
            header.fill_checksum();
            20
        }
        (source, destination) => {
            let mut header = Ipv6Packet::new_unchecked(&mut out[..40]);
            header.set_version(6);
            header.set_payload_len(length as u16);
            header.set_next_header(protocol);
            header.set_hop_limit(HOP_LIMIT);
            header.set_src_addr(v6(source));
            header.set_dst_addr(v6(destination));
            40
        }
    }
}

/// Another hop limit than the usual in a finished packet.
pub(crate) fn set_hop_limit(ip: &mut [u8], hop_limit: u8) {
    if ip[0] >> 4 == 4 {
        let mut header = Ipv4Packet::new_unchecked(ip);
        header.set_hop_limit(hop_limit);
        header.fill_checksum();
    } else {
        Ipv6Packet::new_unchecked(ip).set_hop_limit(hop_limit);
    }
}

fn v6(address: IpAddr) -> std::net::Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// A UDP datagram's headers.
pub(crate) fn udp(source: SocketAddr, destination: SocketAddr, payload_len: usize) -> Head {
    Head::new((source, destination), IpProtocol::Udp, 8, payload_len, (Gso::None, 0), 6, |udp| {
        udp[..2].copy_from_slice(&source.port().to_be_bytes());
        udp[2..4].copy_from_slice(&destination.port().to_be_bytes());
        udp[4..6].copy_from_slice(&((8 + payload_len) as u16).to_be_bytes());
    })
}
