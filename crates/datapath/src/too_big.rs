//! Errors of ICMP that a pod sends about our segments. Of those one is acted upon: that a segment was too large for a link
//! behind the pod (RFC 1191, RFC 8201). The others are soft for a connection that is open (RFC 5927 5.2, as with Linux).

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::IpProtocol;

use crate::tcp::seq::Seq;
use crate::view::{Packet, Transport};

/// No link of IPv6 has less (RFC 8200 5).
const MIN_MTU_V6: u32 = 1_280;

/// MTUs of common links, for routers that do not name theirs (RFC 1191 7.1).
const PLATEAUS: [u16; 10] = [32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 508, 296, 68];

/// "Fragmentation needed" or "packet too big", and what it quotes of our segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooBig {
    pub(crate) pod: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// Where the segment began.
    pub(crate) seq: Seq,
    /// The largest packet that passes, octets.
    pub(crate) mtu: u16,
}

impl TooBig {
    /// `None`: `packet` is another message, or too short.
    pub(crate) fn parse(packet: &Packet, bytes: &[u8]) -> Option<Self> {
        let message = &bytes[packet.transport.clone()];
        let quoted = message.get(8..)?;
        let (told, destination, tcp, length) = match (packet.protocol, message[0], message[1]) {
            (Transport::IcmpV4, 3, 4) => {
                let header = quoted.get(..20)?;
                let start = usize::from(header[0] & 15) * 4;
                let is_ours = header[0] >> 4 == 4 && header[9] == u8::from(IpProtocol::Tcp);
                let source = IpAddr::from(<[u8; 4]>::try_from(&header[12..16]).ok()?);
                let destination = IpAddr::from(<[u8; 4]>::try_from(&header[16..20]).ok()?);
                (is_ours && source == packet.destination).then_some(())?;
                (u32::from(word16(&message[6..])), destination, quoted.get(start..)?, word16(&header[2..]))
            }
            (Transport::IcmpV6, 2, _) => {
                let header = quoted.get(..40)?;
                let is_ours = header[0] >> 4 == 6 && header[6] == u8::from(IpProtocol::Tcp);
                let source = IpAddr::from(<[u8; 16]>::try_from(&header[8..24]).ok()?);
                let destination = IpAddr::from(<[u8; 16]>::try_from(&header[24..40]).ok()?);
                (is_ours && source == packet.destination).then_some(())?;
                let told = u32::from_be_bytes(message[4..8].try_into().ok()?);
                (told.max(MIN_MTU_V6), destination, &quoted[40..], 0)
            }
            _ => return None,
        };
        let tcp = tcp.get(..8)?;
        let mtu = match u16::try_from(told).unwrap_or(u16::MAX) {
            0 => PLATEAUS.into_iter().find(|&plateau| plateau < length)?,
            told => told,
        };
        Some(Self {
            pod: SocketAddr::new(destination, word16(&tcp[2..])),
            remote: SocketAddr::new(packet.destination, word16(tcp)),
            seq: Seq(u32::from_be_bytes(tcp[4..8].try_into().ok()?)),
            mtu,
        })
    }
}

fn word16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}
