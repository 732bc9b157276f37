//! What a hostile pod sends. Each of these says in its name what is wrong; the rows say how it must be counted.

use std::net::{IpAddr, SocketAddr};

use tunproxy_testkit::Host;
use tunproxy_testkit::packet::{self, Checksum, Tcp, flags, protocol};
use tunproxy_testkit::topology::{BLACK_HOLE_V4, BLACK_HOLE_V6};

use crate::lab::Lab;

pub type Packets = Vec<Vec<u8>>;

pub fn truncated(lab: &Lab) -> Packets {
    let whole = lab.pairs().map(|(from, to)| {
        [Tcp::syn(from, to, 1, 1460).with_payload(b"data").build(), packet::udp(from, to, b"data")]
    });
    whole
        .iter()
        .flatten()
        .flat_map(|packet| (1..packet.len()).map(|length| packet[..length].to_vec()))
        .collect()
}

/// Header lengths that are too small or lead out of the packet, no such IP version, port 0; checksums are right.
pub fn bad_headers(lab: &Lab) -> Packets {
    let edited = |packet: &[u8], at: usize, value: u8| {
        let mut packet = packet.to_vec();
        packet[at] = value;
        packet
    };
    let mut packets = Vec::new();
    for (from, to) in lab.pairs() {
        let (syn, datagram) = (Tcp::syn(from, to, 5, 1460).build(), packet::udp(from, to, b"x"));
        let header = packet::addresses(&syn).2;
        // The SYN has 24 octets: its MSS option is the last of them.
        let offsets = (0..5u8).chain(7..16);
        packets.extend(offsets.map(|offset| {
            let mut packet = edited(&syn, header + 12, offset << 4);
            packet::finish_checksum(&mut packet);
            packet
        }));
        packets.push(Tcp::syn(SocketAddr::new(from.ip(), 0), to, 5, 1460).build());
        packets.push(Tcp::syn(from, SocketAddr::new(to.ip(), 0), 5, 1460).build());
        packets.push(packet::udp(from, SocketAddr::new(to.ip(), 0), b"x"));
        packets.push(edited(&datagram, header + 5, 200));
        let versions = (0..16u8).filter(|version| ![4, 6].contains(version));
        packets.extend(versions.map(|version| edited(&syn, 0, version << 4 | 5)));
    }
    let (from, to) = lab.pairs()[0];
    let (syn, datagram) = (Tcp::syn(from, to, 5, 1460).build(), packet::udp(from, to, b"x"));
    packets.extend((0..5).chain([12, 15]).map(|words| edited(&syn, 0, 0x40 | words)));
    packets.extend((0..20).map(|total| edited(&syn, 3, total)));
    // Without a checksum, as IPv4 allows, so that only the length is wrong.
    let unsummed = edited(&edited(&datagram, 26, 0), 27, 0);
    packets.extend((0..8).map(|length| edited(&unsummed, 25, length)));
    packets
}

pub fn wrong_checksums(lab: &Lab) -> Packets {
    let of = |(from, to): (SocketAddr, SocketAddr)| {
        let syn = |seq| Tcp { checksum: Checksum::Wrong, ..Tcp::syn(from, to, seq, 1460) }.build();
        let mut header = Tcp::syn(from, to, 9, 1460).build();
        header[10] ^= 0x55;
        let mut echo = packet::echo_request(from.ip(), to.ip(), 1, 1, b"x");
        *echo.last_mut().expect("not empty") ^= 1;
        [syn(1), syn(2), packet::udp_with(from, to, b"x", Checksum::Wrong), header, echo]
    };
    lab.pairs().into_iter().flat_map(of).collect()
}

/// SYNs with 507 kinds of options, all of them connections that may be.
pub fn garbage_options(lab: &Lab, to: SocketAddr) -> Packets {
    let mut random = fastrand::Rng::with_seed(1);
    let random_options = std::iter::repeat_with(|| {
        let length = random.usize(0..=40);
        std::iter::repeat_with(|| random.u8(..)).take(length).collect()
    });
    let mut options: Vec<Vec<u8>> = random_options.take(500).collect();
    // MSS 0, 1 and 65535; window scale 15 and 255; lengths that lead out of the header, and none at all.
    options.extend([vec![2, 4, 0, 0], vec![2, 4, 0, 1], vec![2, 4, 255, 255], vec![3, 3, 15, 1]]);
    options.extend([vec![3, 3, 255, 1], vec![8, 40, 1, 1], vec![5, 0, 0, 0]]);
    let syn = |(port, options): (u16, Vec<u8>)| {
        let from = SocketAddr::new(lab.own(to), port);
        Tcp { options, window: port, ..Tcp::syn(from, to, u32::from(port) << 16, 1460) }.build()
    };
    (10_000..).zip(options).map(syn).collect()
}

/// From the pod's own address to itself.
pub fn land(lab: &Lab) -> Packets {
    let of = |(_, to): (SocketAddr, SocketAddr)| {
        let own = SocketAddr::new(lab.own(to), 80);
        [Tcp::syn(own, own, 1, 1460).build(), packet::udp(own, own, b"land")]
    };
    lab.pairs().into_iter().flat_map(of).collect()
}

pub fn foreign_sources(lab: &Lab) -> Packets {
    let sources = [
        "10.244.99.99",
        "127.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "198.51.100.1",
        "169.254.1.1",
    ];
    let sources =
        sources.into_iter().chain(["fd00:244:0:63::9", "::1", "::", "ff02::1", "2001:db8:100::1", "fe80::1"]);
    let sources = sources.map(|source| source.parse().expect("an address"));
    let mut packets = Vec::new();
    // And the destination's own, as land packets have it.
    for source in sources.chain(Host::Web.both()) {
        let source = SocketAddr::new(source, 80);
        let to = lab.pairs()[usize::from(source.is_ipv6())].1;
        packets.push(Tcp::syn(source, to, 1, 1460).build());
        packets.push(packet::udp(source, to, b"who am I"));
        packets.push(packet::echo_request(source.ip(), to.ip(), 1, 1, b"x"));
    }
    packets
}

pub fn no_hops_left(lab: &Lab) -> Packets {
    let of = |(from, to): (SocketAddr, SocketAddr)| {
        let mut packet = packet::udp(from, to, b"x");
        packet[if from.is_ipv4() { 8 } else { 7 }] = 0;
        if from.is_ipv4() {
            packet::fix_ipv4_header(&mut packet);
        }
        packet
    };
    lab.pairs().map(of).to_vec()
}

/// Loose, strict, behind padding, in options that lead out of the header; and IPv6's routing header.
pub fn source_routes(lab: &Lab) -> Packets {
    let [(from, to), (from_v6, to_v6)] = lab.pairs();
    let datagram = packet::udp(from, to, b"x");
    let options: [&[u8]; 4] = [
        &[131, 7, 4, 198, 51, 100, 11, 0],
        &[137, 7, 4, 198, 51, 100, 11, 0],
        &[1, 131, 3, 4],
        &[7, 200, 4, 0],
    ];
    let mut packets: Packets =
        options.iter().map(|options| packet::with_ipv4_options(&datagram, options)).collect();
    packets.push(packet::ip(from_v6.ip(), to_v6.ip(), 43, &[protocol::UDP, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]));
    packets
}

pub fn to_many(lab: &Lab) -> Packets {
    let destinations = ["224.0.0.1", "239.1.2.3", "255.255.255.255", "0.0.0.0", "ff02::1", "ff05::2", "::"];
    let of = |destination: &str| {
        let to = SocketAddr::new(destination.parse().expect("an address"), 5353);
        let from = SocketAddr::new(lab.own(to), 5353);
        [packet::udp(from, to, b"x"), Tcp::syn(from, to, 1, 1460).build()]
    };
    destinations.into_iter().flat_map(of).collect()
}

/// Every type of ICMP but echo request, and echo requests with a code.
pub fn icmp_types(lab: &Lab) -> Packets {
    let of = |(from, to): (SocketAddr, SocketAddr)| {
        let request = if from.is_ipv4() { 8 } else { 128 };
        let kinds = (0..=255u8).map(move |kind| [kind, u8::from(kind == request)]);
        kinds.map(move |kind| packet::icmp(from.ip(), to.ip(), kind, &[0; 24]))
    };
    lab.pairs().into_iter().flat_map(of).collect()
}

/// Fragments that are put together to one SYN of each family; all others are in vain: overlapping, incomplete.
pub fn fragments(lab: &Lab) -> Packets {
    let mut packets = Vec::new();
    for (from, to) in lab.pairs() {
        let whole = packet::udp(from, to, &[9; 4000]);
        // The same identification, other sizes: the parts overlap. Without its last one the first datagram stays open.
        let mut open = packet::fragments(&whole, 1000, 1);
        open.pop();
        packets.extend(open);
        packets.extend(packet::fragments(&whole, 648, 1));
        packets.extend(packet::fragments(&Tcp::syn(from, to, 3, 1460).build(), 8, 2));
        for identification in 100..5_100 {
            packets.extend(packet::fragments(&whole, 1200, identification).into_iter().next());
        }
    }
    packets
}

/// Segments with every combination of flags but those of a SYN, each of another connection that there is not.
pub fn strays(lab: &Lab) -> Packets {
    let opens = |bits: &u8| bits & (flags::SYN | flags::ACK | flags::RST | flags::FIN) == flags::SYN;
    let of = |(from, to): (SocketAddr, SocketAddr)| {
        (0..=255u8).filter(move |bits| !opens(bits)).map(move |bits| {
            let from = SocketAddr::new(from.ip(), 39_000 + u16::from(bits));
            let seq = u32::MAX - u32::from(bits);
            Tcp { seq, ack: seq, flags: bits, urgent: 3, ..Tcp::new(from, to) }.with_payload(b"stray").build()
        })
    };
    lab.pairs().into_iter().flat_map(of).collect()
}

/// Every protocol number, with a payload of which no known one makes sense; and for IPv6 a chain of 31 headers.
pub fn protocols(lab: &Lab) -> Packets {
    let mut packets = Vec::new();
    for (from, to) in lab.pairs() {
        packets.extend((0..=255u8).map(|number| packet::ip(from.ip(), to.ip(), number, &[0x11; 64])));
    }
    // Hop-by-hop options headers (RFC 8200: the first may be one, and only the first).
    let (from, to) = lab.pairs()[1];
    let mut chain = Vec::new();
    for _ in 0..30 {
        chain.extend([0, 0, 1, 4, 0, 0, 0, 0]);
    }
    chain.extend([protocol::TCP, 0, 1, 4, 0, 0, 0, 0]);
    packets.push(packet::ip(from.ip(), to.ip(), 0, &chain));
    packets
}

/// Good packets with a few bytes changed.
pub fn mutations(lab: &Lab, count: usize) -> impl Iterator<Item = Vec<u8>> + Send {
    let pairs = lab.pairs().map(|(from, to)| {
        let other = Host::OtherWeb.both()[usize::from(to.is_ipv6())];
        (from.ip(), SocketAddr::new(other, 80))
    });
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(move || {
        let (from, to) = pairs[random.usize(0..2)];
        let from = SocketAddr::new(from, random.u16(1024..));
        let mut packet = match random.u8(0..4) {
            0 => packet::udp(from, to, &[1; 32]),
            1 => packet::echo_request(from.ip(), to.ip(), random.u16(..), 1, &[2; 32]),
            _ => {
                let flags = *random
                    .choice(&[flags::SYN, flags::ACK, flags::SYN | flags::ACK, flags::RST, flags::FIN])
                    .expect("some");
                Tcp { flags, seq: random.u32(..), ack: random.u32(..), ..Tcp::new(from, to) }
                    .with_payload(&[3; 32])
                    .build()
            }
        };
        for _ in 0..random.usize(1..6) {
            let at = random.usize(0..packet.len());
            packet[at] = random.u8(..);
        }
        packet
    })
    .take(count)
}

/// Pings with as many identifiers, which nobody answers.
pub fn pings(lab: &Lab, count: u16) -> Packets {
    let holes: [(IpAddr, IpAddr); 2] = [(lab.v4, BLACK_HOLE_V4.into()), (lab.v6, BLACK_HOLE_V6.into())];
    let ping = |identifier: u16| {
        let (from, to) = holes[usize::from(identifier % 2)];
        packet::echo_request(from, to, identifier, 1, b"x")
    };
    (0..count).map(ping).collect()
}

/// Datagrams to nobody from `count` source ports.
pub fn ports(lab: &Lab, to: SocketAddr, count: u16) -> Packets {
    (0..count).map(|index| packet::udp(SocketAddr::new(lab.own(to), 2_000 + index), to, b"x")).collect()
}

/// Datagrams from one source port to `count` ports of nobody.
pub fn peers(lab: &Lab, to: IpAddr, count: u16) -> Packets {
    let from = SocketAddr::new(lab.own((to, 0).into()), 1_999);
    (0..count).map(|index| packet::udp(from, SocketAddr::new(to, 10_000 + index), b"x")).collect()
}

/// SYNs from `count` ports.
pub fn syns(lab: &Lab, to: SocketAddr, count: u16) -> Packets {
    let syn = |index| {
        let from = SocketAddr::new(lab.own(to), 20_000 + index);
        Tcp::syn(from, to, u32::from(from.port()) << 12, 1460).build()
    };
    (0..count).map(syn).collect()
}

/// The reset with which the sender of a SYN takes it back.
pub fn reset_of(syn: &[u8]) -> Vec<u8> {
    let (source, destination, header) = packet::addresses(syn);
    let field = |at: usize| u16::from_be_bytes([syn[header + at], syn[header + at + 1]]);
    let seq = (u32::from(field(4)) << 16 | u32::from(field(6))).wrapping_add(1);
    let (from, to) = (SocketAddr::new(source, field(0)), SocketAddr::new(destination, field(2)));
    Tcp { seq, flags: flags::RST, ..Tcp::new(from, to) }.build()
}
