//! The ten octets in front of every packet on a TUN with `IFF_VNET_HDR`: `struct virtio_net_hdr` of
//! `include/uapi/linux/virtio_net.h`, host byte order.

/// Octets of the header (`TUNSETVNETHDRSZ` 10).
pub const LEN: usize = 10;

const FLAG_NEEDS_CSUM: u8 = 1;
const FLAG_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What a super-segment is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    None,
    TcpV4,
    TcpV6,
    /// Equal-sized UDP datagrams, the last one may be shorter.
    UdpL4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The transport checksum is still to be made (only the pseudo-header's sum is there), or was already verified.
    pub checksum_trusted: bool,
    pub gso: Gso,
    /// Payload octets of each segment of a super-segment.
    pub gso_size: u16,
}

impl Header {
    /// Reads the header of a packet from the TUN. `None`: too short, or a kind of super-segment never asked for.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEN] = bytes.get(..LEN)?.try_into().ok()?;
        let gso = match bytes[1] & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCPV4 => Gso::TcpV4,
            GSO_TCPV6 => Gso::TcpV6,
            GSO_UDP_L4 => Gso::UdpL4,
            _ => return None,
        };
        let gso_size = u16::from_ne_bytes([bytes[4], bytes[5]]);
        if gso != Gso::None && gso_size == 0 {
            return None;
        }
        Some(Self { checksum_trusted: bytes[0] & (FLAG_NEEDS_CSUM | FLAG_DATA_VALID) != 0, gso, gso_size })
    }
}

/// Writes a header that leaves the transport checksum to the kernel: `start` is the offset of the transport header
/// in the IP packet, `offset` that of the checksum field in it, `header_len` the octets before the payload.
pub fn write_partial(out: &mut [u8], gso: Gso, gso_size: u16, header_len: u16, start: u16, offset: u16) {
    out[0] = FLAG_NEEDS_CSUM;
    out[1] = match gso {
        Gso::None => GSO_NONE,
        Gso::TcpV4 => GSO_TCPV4,
        Gso::TcpV6 => GSO_TCPV6,
        Gso::UdpL4 => GSO_UDP_L4,
    };
    out[2..4].copy_from_slice(&header_len.to_ne_bytes());
    out[4..6].copy_from_slice(&(if gso == Gso::None { 0 } else { gso_size }).to_ne_bytes());
    out[6..8].copy_from_slice(&start.to_ne_bytes());
    out[8..10].copy_from_slice(&offset.to_ne_bytes());
}

/// Writes a header for a packet whose checksums are complete.
pub fn write_complete(out: &mut [u8]) {
    out[..LEN].fill(0);
}
