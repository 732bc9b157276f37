//! A look at a packet before smoltcp gets it.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{IpProtocol, IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inspected {
    /// Opens a connection.
    Syn { source: SocketAddr, destination: SocketAddr },
    /// Not for smoltcp: built without reassembly it would take a fragment for the whole, and it panics on an empty packet.
    Unfit,
    /// smoltcp judges.
    Other,
}

pub fn inspect(packet: &[u8]) -> Inspected {
    if packet.is_empty() {
        return Inspected::Unfit;
    }
    match IpVersion::of_packet(packet) {
        Ok(IpVersion::Ipv4) => inspect_v4(packet),
        Ok(IpVersion::Ipv6) => inspect_v6(packet),
        Err(_) => Inspected::Other,
    }
}

fn inspect_v4(packet: &[u8]) -> Inspected {
    let Ok(ip) = Ipv4Packet::new_checked(packet) else { return Inspected::Other };
    if ip.more_frags() || ip.frag_offset() != 0 {
        return Inspected::Unfit;
    }
    if ip.next_header() != IpProtocol::Tcp {
        return Inspected::Other;
    }
    inspect_tcp(ip.src_addr().into(), ip.dst_addr().into(), ip.payload())
}

fn inspect_v6(packet: &[u8]) -> Inspected {
    let Ok(ip) = Ipv6Packet::new_checked(packet) else { return Inspected::Other };
    match ip.next_header() {
        IpProtocol::Ipv6Frag => Inspected::Unfit,
        IpProtocol::Tcp => inspect_tcp(ip.src_addr().into(), ip.dst_addr().into(), ip.payload()),
        _ => Inspected::Other,
    }
}

fn inspect_tcp(source: IpAddr, destination: IpAddr, segment: &[u8]) -> Inspected {
    let Ok(tcp) = TcpPacket::new_checked(segment) else { return Inspected::Other };
    if !tcp.syn() || tcp.ack() || tcp.rst() || tcp.fin() {
        return Inspected::Other;
    }
    Inspected::Syn {
        source: SocketAddr::new(source, tcp.src_port()),
        destination: SocketAddr::new(destination, tcp.dst_port()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tunproxy_testkit::packet::{self, Tcp, flags};

    use super::*;

    fn pair(v6: bool) -> (SocketAddr, SocketAddr) {
        if v6 {
            ("[2001:db8::1]:1000".parse().unwrap(), "[2001:db8::2]:7".parse().unwrap())
        } else {
            ("192.0.2.1:1000".parse().unwrap(), "192.0.2.2:7".parse().unwrap())
        }
    }

    #[test]
    fn only_a_bare_syn_opens() {
        for (source, destination) in [pair(false), pair(true)] {
            let syn = Tcp::syn(source, destination, 1, 1_460);
            assert_eq!(inspect(&syn.build()), Inspected::Syn { source, destination });
            for more in [flags::ACK, flags::RST, flags::FIN] {
                let other = Tcp { flags: flags::SYN | more, ..syn.clone() };
                assert_eq!(inspect(&other.build()), Inspected::Other);
            }
            let data = Tcp { flags: flags::ACK, ..syn.clone() };
            assert_eq!(inspect(&data.build()), Inspected::Other);
        }
    }

    #[test]
    fn every_piece_of_a_fragmented_packet_is_one() {
        for (source, destination) in [pair(false), pair(true)] {
            let whole = packet::udp(source, destination, &[7; 3_000]);
            for piece in packet::fragments(&whole, 1_000, 9) {
                assert_eq!(inspect(&piece), Inspected::Unfit);
            }
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            inspect(&bytes);
        }

        #[test]
        fn a_truncated_syn_is_not_one(cut in 1_usize..24, v6: bool) {
            let (source, destination) = pair(v6);
            let syn = Tcp::syn(source, destination, 1, 1_460).build();
            prop_assert_eq!(inspect(&syn[..syn.len() - cut]), Inspected::Other);
        }
    }
}
