//! From what a TUN with a virtio-net header gives to packets that smoltcp takes: partial checksums are finished, UDP
//! super-datagrams are cut. TCP super-segments stay whole: smoltcp takes a segment of any size that its window allows.
//!
//! In the other direction nothing is offloaded: packets have their checksums and fit the MTU.

use std::ops::Range;

use tunproxy_linux_net::tun::VNET_HEADER;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`; the constants are include/uapi/linux/virtio_net.h's.
const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

const UDP_HEADER: usize = 8;

/// A header that fits no packet, or an offload nobody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadFrame;

/// Before a packet that is written: no offload.
pub const PLAIN: [u8; VNET_HEADER] = [0; VNET_HEADER];

/// Gives every packet of `frame`, a virtio-net header and what follows, to `take`.
pub fn packets_of(frame: &mut [u8], mut take: impl FnMut(&[u8])) -> Result<(), BadFrame> {
    let (header, packet) = frame.split_first_chunk_mut::<VNET_HEADER>().ok_or(BadFrame)?;
    let header = Header::parse(*header);
    match header.gso & !GSO_ECN {
        GSO_UDP_L4 => return each_datagram(header, packet, take),
        GSO_NONE | GSO_TCPV4 | GSO_TCPV6 => {}
        _ => return Err(BadFrame),
    }
    if header.needs_checksum {
        finish(packet, header.start, header.start + header.offset)?;
    }
    take(packet);
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct Header {
    needs_checksum: bool,
    gso: u8,
    gso_size: usize,
    /// Where the checksum begins: at the transport header.
    start: usize,
    /// Where its field is, from there.
    offset: usize,
}

impl Header {
    fn parse(bytes: [u8; VNET_HEADER]) -> Self {
        // The kernel's own byte order, unless TUNSETVNETBE says otherwise.
        let word = |at: usize| usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
        Self {
            needs_checksum: bytes[0] & NEEDS_CHECKSUM != 0,
            gso: bytes[1],
            gso_size: word(4),
            start: word(6),
            offset: word(8),
        }
    }
}

/// Finishes a checksum whose field holds the sum of the pseudo-header.
fn finish(packet: &mut [u8], start: usize, field: usize) -> Result<(), BadFrame> {
    if field + 2 > packet.len() || start > field {
        return Err(BadFrame);
    }
    let sum = !fold(sum_words(&packet[start..]));
    // All ones and zero are the same number, and for UDP zero would mean "none" (RFC 768).
    let sum = if sum == 0 { u16::MAX } else { sum };
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// Cuts a UDP super-datagram: `gso_size` bytes of payload in each, the last may have less.
fn each_datagram(header: Header, packet: &[u8], mut take: impl FnMut(&[u8])) -> Result<(), BadFrame> {
    let body = header.start + UDP_HEADER;
    let version = packet.first().ok_or(BadFrame)? >> 4;
    let least = if version == 4 { 20 } else { 40 };
    if header.gso_size == 0 || header.start < least || body >= packet.len() {
        return Err(BadFrame);
    }
    let mut datagram = Vec::with_capacity(body + header.gso_size);
    for (index, part) in packet[body..].chunks(header.gso_size).enumerate() {
        datagram.clear();
        datagram.extend_from_slice(&packet[..body]);
        datagram.extend_from_slice(part);
        if version == 4 {
            resize_v4(&mut datagram, header.start, index)?;
        } else {
            let payload = to_u16(datagram.len() - 40)?;
            datagram[4..6].copy_from_slice(&payload);
        }
        let length = to_u16(UDP_HEADER + part.len())?;
        datagram[header.start + 4..header.start + 6].copy_from_slice(&length);
        let pseudo = pseudo_sum(&datagram, version, header.start);
        datagram[header.start + 6..body].copy_from_slice(&fold(pseudo).to_be_bytes());
        finish(&mut datagram, header.start, header.start + 6)?;
        take(&datagram);
    }
    Ok(())
}

fn resize_v4(datagram: &mut [u8], header: usize, index: usize) -> Result<(), BadFrame> {
    let total = to_u16(datagram.len())?;
    datagram[2..4].copy_from_slice(&total);
    let identification = u16::from_be_bytes([datagram[4], datagram[5]]).wrapping_add(index as u16);
    datagram[4..6].copy_from_slice(&identification.to_be_bytes());
    datagram[10..12].fill(0);
    let sum = !fold(sum_words(&datagram[..header]));
    datagram[10..12].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

fn pseudo_sum(datagram: &[u8], version: u8, header: usize) -> u64 {
    const PROTOCOL: u64 = 17;
    let addresses: Range<usize> = if version == 4 { 12..20 } else { 8..40 };
    sum_words(&datagram[addresses]) + PROTOCOL + (datagram.len() - header) as u64
}

fn to_u16(length: usize) -> Result<[u8; 2], BadFrame> {
    u16::try_from(length).map(u16::to_be_bytes).map_err(|_| BadFrame)
}

fn sum_words(bytes: &[u8]) -> u64 {
    let pairs = bytes.chunks_exact(2);
    let odd = pairs.remainder().first().map_or(0, |last| u64::from(*last) << 8);
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
    use std::net::SocketAddr;

    use proptest::prelude::*;
    use tunproxy_testkit::packet::{self, Checksum, Tcp, flags};

    use super::*;

    fn pair(v6: bool) -> (SocketAddr, SocketAddr) {
        if v6 {
            ("[2001:db8::1]:1000".parse().unwrap(), "[2001:db8::2]:7".parse().unwrap())
        } else {
            ("192.0.2.1:1000".parse().unwrap(), "192.0.2.2:7".parse().unwrap())
        }
    }

    fn frame(flags: u8, gso: u8, gso_size: u16, start: u16, offset: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = vec![flags, gso, 0, 0];
        for word in [gso_size, start, offset] {
            frame.extend(word.to_ne_bytes());
        }
        frame.extend(packet);
        frame
    }

    fn packets(mut frame: Vec<u8>) -> Result<Vec<Vec<u8>>, BadFrame> {
        let mut packets = Vec::new();
        packets_of(&mut frame, |packet| packets.push(packet.to_vec()))?;
        Ok(packets)
    }

    fn transport(v6: bool) -> u16 {
        if v6 { 40 } else { 20 }
    }

    #[test]
    fn a_wrong_checksum_that_nobody_promised_stays_wrong() {
        let (source, destination) = pair(false);
        let wrong = packet::udp_with(source, destination, b"payload", Checksum::Wrong);
        assert_eq!(packets(frame(0, GSO_NONE, 0, 0, 0, &wrong)).unwrap(), [wrong]);
    }

    #[test]
    fn unknown_offloads_and_headers_beyond_the_packet_are_refused() {
        let (source, destination) = pair(false);
        let whole = packet::udp(source, destination, b"payload");
        let beyond = whole.len() as u16;
        for bad in [
            frame(0, 3, 100, 20, 6, &whole),
            frame(NEEDS_CHECKSUM, GSO_NONE, 0, 20, beyond, &whole),
            frame(NEEDS_CHECKSUM, GSO_UDP_L4, 0, 20, 6, &whole),
            frame(NEEDS_CHECKSUM, GSO_UDP_L4, 4, beyond, 6, &whole),
            vec![0; VNET_HEADER - 1],
        ] {
            assert_eq!(packets(bad), Err(BadFrame));
        }
    }

    proptest! {
        #[test]
        fn a_partial_checksum_is_finished(v6: bool, payload in prop::collection::vec(any::<u8>(), 0..3_000)) {
            let (source, destination) = pair(v6);
            let partial = packet::udp_with(source, destination, &payload, Checksum::Partial);
            let got = packets(frame(NEEDS_CHECKSUM, GSO_NONE, 0, transport(v6), 6, &partial)).unwrap();
            prop_assert!(got.len() == 1 && packet::checksum_is_right(&got[0]));
            prop_assert_ne!(&got[0][usize::from(transport(v6)) + 6..][..2], &[0, 0][..]);

            let segment = Tcp { flags: flags::ACK, payload, checksum: Checksum::Partial, ..Tcp::new(source, destination) };
            let gso = if v6 { GSO_TCPV6 } else { GSO_TCPV4 };
            let got = packets(frame(NEEDS_CHECKSUM, gso, 1_000, transport(v6), 16, &segment.build())).unwrap();
            prop_assert!(got.len() == 1 && packet::checksum_is_right(&got[0]));
        }

        #[test]
        fn a_super_datagram_becomes_its_datagrams(
            v6: bool,
            payload in prop::collection::vec(any::<u8>(), 1..9_000),
            size in 1_u16..1_472,
        ) {
            let (source, destination) = pair(v6);
            let whole = packet::udp_with(source, destination, &payload, Checksum::Partial);
            let got = packets(frame(NEEDS_CHECKSUM, GSO_UDP_L4, size, transport(v6), 6, &whole)).unwrap();
            let expected: Vec<_> = payload.chunks(usize::from(size)).collect();
            prop_assert_eq!(got.len(), expected.len());
            for (index, (mut datagram, part)) in got.into_iter().zip(expected).enumerate() {
                if !v6 {
                    let identification = u16::from_be_bytes([datagram[4], datagram[5]]);
                    prop_assert_eq!(identification, 0x1234 + index as u16);
                    datagram[4..6].copy_from_slice(&0x1234_u16.to_be_bytes());
                    packet::fix_ipv4_header(&mut datagram);
                }
                prop_assert_eq!(datagram, packet::udp(source, destination, part));
            }
        }

        #[test]
        fn anything_can_arrive(bytes in prop::collection::vec(any::<u8>(), 0..300), flags: u8, gso in 0_u8..6, size in 0_u16..40, start in 0_u16..80) {
            let _ = packets(bytes.clone());
            let _ = packets(frame(flags, gso, size, start, 6, &bytes));
        }
    }
}
