//! Frames as a pod with `CAP_NET_RAW` can write them.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::Instant;

use super::{LIMIT, NEIGHBOUR, OUTSIDE, POD, address};
use crate::netlink::Netlink;
use crate::netns::NetNs;

const ETHERNET: usize = 12;

/// The pod's kernel sends by itself too; the witness knows these frames by their address.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];

/// A packet socket of a pod, on its `eth0`, and a witness behind the gate.
pub struct Frames<'a> {
    host: &'a NetNs,
    socket: OwnedFd,
    index: u32,
    /// To the host's end, from [`SENDER`].
    addresses: [u8; ETHERNET],
}

impl<'a> Frames<'a> {
    pub fn open(pod: &NetNs, host: &'a NetNs, device: &str) -> Self {
        let link = |namespace: &NetNs, name: &str| {
            Netlink::open_in(namespace).unwrap().unwrap().link(name).unwrap().unwrap()
        };
        let (inner, outer) = (link(pod, "eth0"), link(host, device));
        let mut addresses = [0; ETHERNET];
        addresses[..6].copy_from_slice(&outer.hardware_address.unwrap());
        addresses[6..].copy_from_slice(&SENDER);
        nft(
            host,
            &format!(
                "table netdev witness {{\nchain passed {{\ntype filter hook ingress device {device} priority 500;\n\
                 ether saddr 02:00:00:00:00:aa counter\n}}\n}}\n"
            ),
        );
        let open = || {
            // SAFETY: it takes numbers only.
            let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            // SAFETY: the descriptor is new and nobody else's.
            unsafe { OwnedFd::from_raw_fd(fd) }
        };
        Self { host, socket: pod.run(open).unwrap(), index: inner.index, addresses }
    }

    /// Frames sent here that were not refused.
    pub fn passed(&self) -> u64 {
        super::counted(self.host, "netdev", "witness", "passed")
    }

    /// Sends what stands behind the two addresses.
    pub fn send(&self, frame: &[u8]) {
        let octets = [&self.addresses[..], frame].concat();
        // SAFETY: all zeroes are a value of this plain struct.
        let mut to: libc::sockaddr_ll = unsafe { mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = self.index.cast_signed();
        // SAFETY: both pointers are valid for the lengths that go with them.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                octets.as_ptr().cast(),
                octets.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        assert_eq!(usize::try_from(sent).ok(), Some(octets.len()), "{}", io::Error::last_os_error());
    }
}

/// Waits for what the kernel does in a moment.
pub fn until(reached: impl Fn() -> bool, what: &str) {
    let end = Instant::now() + LIMIT;
    while !reached() {
        assert!(Instant::now() < end, "{what}: not within {LIMIT:?}");
    }
}

pub fn nft(namespace: &NetNs, rules: &str) {
    let run = || Command::new("nft").arg(rules).output();
    let output = namespace.run(run).unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub fn tc(namespace: &NetNs, words: &str) {
    let run = || Command::new("tc").args(words.split(' ')).output();
    let output = namespace.run(run).unwrap().unwrap();
    assert!(output.status.success(), "tc {words}: {}", String::from_utf8_lossy(&output.stderr));
}

fn v4(text: &str) -> Ipv4Addr {
    match address(text) {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => panic!("{text}"),
    }
}

fn v6(text: &str) -> Ipv6Addr {
    match address(text) {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(_) => panic!("{text}"),
    }
}

/// `fragment`: flags and offset.
fn ipv4(source: &str, destination: &str, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    with_options(source, destination, protocol, fragment, &[], payload)
}

fn with_options(
    source: &str,
    destination: &str,
    protocol: u8,
    fragment: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let header = 20 + options.len();
    let length = (header + payload.len()) as u16;
    let mut frame = vec![0x08, 0x00, 0x40 | (header / 4) as u8, 0];
    frame.extend(length.to_be_bytes());
    frame.extend([0x12, 0x34]);
    frame.extend(fragment.to_be_bytes());
    frame.extend([64, protocol, 0, 0]);
    frame.extend(v4(source).octets());
    frame.extend(v4(destination).octets());
    frame.extend(options);
    let sum = checksum(&frame[2..]);
    frame[12..14].copy_from_slice(&sum.to_be_bytes());
    frame.extend(payload);
    frame
}

fn ipv6(source: &str, destination: &str, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([next, hops]);
    frame.extend(v6(source).octets());
    frame.extend(v6(destination).octets());
    frame.extend(payload);
    frame
}

fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(folded as u16 + (folded >> 16) as u16)
}

/// Without a checksum, which IPv4 allows.
fn udp(source: u16, destination: u16) -> Vec<u8> {
    let mut segment = Vec::new();
    for number in [source, destination, 12, 0] {
        segment.extend(number.to_be_bytes());
    }
    segment.extend(b"data");
    segment
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut segment = vec![0x1b, 0x58, 0x1b, 0x58];
    segment.extend([0; 8]);
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(b"data");
    segment
}

/// A message of either ICMP, behind whose first eight octets this stands.
fn icmp(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 1, 0, 1], rest].concat()
}

fn arp(sender: &str) -> Vec<u8> {
    let mut frame = vec![0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1];
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend(v4(sender).octets());
    frame.extend([0; 6]);
    frame.extend(v4(super::HOST[0]).octets());
    frame
}

/// A frame that is nobody's harm.
pub fn to_neighbour() -> Vec<u8> {
    ipv4(POD[0], NEIGHBOUR[0], UDP, 0, &udp(9, 7_000))
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

pub fn hostile() -> Vec<(String, Vec<u8>)> {
    let mut frames = of_ipv4();
    frames.extend(of_ipv6());
    frames.extend([
        ("an ARP answer for the gateway", arp(super::HOST[0])),
        ("an ARP answer for another pod", arp(NEIGHBOUR[0])),
        ("RARP", vec![0x80, 0x35, 0, 0]),
        ("a frame of LLDP", vec![0x88, 0xcc, 0, 0]),
        ("a frame of a protocol for experiments", vec![0x88, 0xb5, b'd', b'a', b't', b'a']),
        (
            "MPLS around a datagram",
            [&[0x88, 0x47, 0, 0, 1, 64][..], &ipv4(POD[0], OUTSIDE[0], UDP, 0, &udp(9, 9))[2..]].concat(),
        ),
        ("a session of PPPoE", vec![0x88, 0x64, 0x11, 0, 0, 1, 0, 2, 0, 0x21]),
        (
            "a datagram with a VLAN's tag",
            [&[0x81, 0x00, 0, 7][..], &ipv4(POD[0], OUTSIDE[0], UDP, 0, &udp(9, 9))].concat(),
        ),
    ]);
    frames.into_iter().map(|(what, frame)| (what.to_owned(), frame)).collect()
}

fn of_ipv4() -> Vec<(&'static str, Vec<u8>)> {
    let ([pod, _], [outside, _], [neighbour, _]) = (POD, OUTSIDE, NEIGHBOUR);
    let to_outside = |protocol, payload: &[u8]| ipv4(pod, outside, protocol, 0, payload);
    let quoted = &ipv4(outside, pod, UDP, 0, &udp(9, 9))[2..];
    let source_route = [131, 7, 4, 203, 0, 113, 2, 0];
    vec![
        ("a datagram", to_outside(UDP, &udp(9, 9))),
        ("a query", to_outside(UDP, &udp(9, 53))),
        ("a SYN", to_outside(TCP, &tcp(SYN))),
        ("a SYN|ACK that nobody asked for", to_outside(TCP, &tcp(SYN | ACK))),
        ("a segment of no connection", to_outside(TCP, &tcp(ACK))),
        ("a reset of no connection", to_outside(TCP, &tcp(RST))),
        ("an echo request", to_outside(1, &icmp(8, b"data"))),
        ("an echo reply that nobody asked for", to_outside(1, &icmp(0, b"data"))),
        ("an error about nothing, with data", to_outside(1, &icmp(3, quoted))),
        ("a redirect to another pod", ipv4(pod, neighbour, 1, 0, &icmp(5, quoted))),
        ("a router's advertisement to another pod", ipv4(pod, neighbour, 1, 0, &icmp(9, b""))),
        ("GRE", to_outside(47, b"data")),
        ("IPv4 in IPv4", to_outside(4, quoted)),
        ("IPv6 in IPv4", to_outside(41, b"data")),
        ("GRE to another pod", ipv4(pod, neighbour, 47, 0, b"data")),
        ("IPv4 in IPv4 to another pod", ipv4(pod, neighbour, 4, 0, quoted)),
        ("the first fragment of a datagram", ipv4(pod, outside, UDP, 0x2000, &udp(9, 9))),
        ("a later fragment", ipv4(pod, outside, UDP, 3, b"data")),
        ("the source of another pod", ipv4(neighbour, outside, UDP, 0, &udp(9, 9))),
        ("the source of another pod, to the gateway", ipv4(neighbour, super::HOST[0], UDP, 0, &udp(9, 9))),
        ("the source of somebody outside", ipv4(outside, neighbour, UDP, 0, &udp(9, 9))),
        ("no source", ipv4("0.0.0.0", outside, UDP, 0, &udp(68, 67))),
        ("broadcast", ipv4(pod, "255.255.255.255", UDP, 0, &udp(9, 9))),
        ("multicast", ipv4(pod, "224.0.0.251", UDP, 0, &udp(5_353, 5_353))),
        ("the metadata service", ipv4(pod, "169.254.169.254", TCP, 0, &tcp(SYN))),
        ("loopback", ipv4(pod, "127.0.0.1", UDP, 0, &udp(9, 9))),
        (
            "a source route by way of the gateway",
            with_options(pod, super::HOST[0], UDP, 0, &source_route, &udp(9, 9)),
        ),
        ("DNS to another pod", ipv4(pod, neighbour, UDP, 0, &udp(9, 53))),
        (
            "DNS to another pod by TCP",
            ipv4(pod, neighbour, TCP, 0, &[&[0x1b, 0x58, 0, 53][..], &tcp(SYN)[4..]].concat()),
        ),
        ("a header that is cut short", ipv4(pod, outside, UDP, 0, &udp(9, 9))[..12].to_vec()),
    ]
}

fn of_ipv6() -> Vec<(&'static str, Vec<u8>)> {
    let ([_, pod], [_, outside], [_, neighbour]) = (POD, OUTSIDE, NEIGHBOUR);
    let to_outside = |protocol, payload: &[u8]| ipv6(pod, outside, protocol, 64, payload);
    let quoted = &ipv6(outside, pod, UDP, 64, &udp(9, 9))[2..];
    let options = [UDP, 0, 1, 4, 0, 0, 0, 0];
    let routing = [&[UDP, 2, 4, 1, 0, 0, 0, 0][..], &v6(outside).octets()].concat();
    let fragment = |offset: u16| [&[UDP, 0][..], &offset.to_be_bytes(), &[0, 0, 0, 7], &udp(9, 9)].concat();
    let told = |kind: u8, target: &str| icmp(kind, &v6(target).octets());
    let local = "fe80::1234";
    vec![
        ("a datagram", to_outside(UDP, &udp(9, 9))),
        ("a query", to_outside(UDP, &udp(9, 53))),
        ("a SYN", to_outside(TCP, &tcp(SYN))),
        ("a SYN|ACK that nobody asked for", to_outside(TCP, &tcp(SYN | ACK))),
        ("a segment of no connection", to_outside(TCP, &tcp(ACK))),
        ("an echo request", to_outside(ICMPV6, &icmp(128, b"data"))),
        ("an echo reply that nobody asked for", to_outside(ICMPV6, &icmp(129, b"data"))),
        ("an error about nothing, with data", to_outside(ICMPV6, &icmp(1, quoted))),
        ("IPv6 in IPv6", to_outside(41, quoted)),
        ("GRE to another pod", ipv6(pod, neighbour, 47, 64, b"data")),
        ("no next header", to_outside(59, b"data")),
        ("options before a datagram", to_outside(0, &[&options[..], &udp(9, 9)].concat())),
        ("options for the destination", ipv6(pod, neighbour, 60, 64, &[&options[..], &udp(9, 53)].concat())),
        (
            "a routing header by way of another pod",
            ipv6(pod, neighbour, 43, 64, &[&routing[..], &udp(9, 9)].concat()),
        ),
        ("the first fragment of a datagram", to_outside(44, &fragment(1))),
        ("a later fragment", to_outside(44, &fragment(0x18))),
        (
            "a fragment of an unknown protocol to another pod",
            ipv6(pod, neighbour, 44, 64, &[&[47_u8, 0, 0, 0x18, 0, 0, 0, 7][..], b"data"].concat()),
        ),
        ("the source of another pod", ipv6(neighbour, outside, UDP, 64, &udp(9, 9))),
        ("a datagram from the link's address", ipv6(local, "fe80::1", UDP, 64, &udp(9, 9))),
        ("multicast", ipv6(pod, "ff02::fb", UDP, 64, &udp(5_353, 5_353))),
        ("a router's advertisement", ipv6(local, "ff02::1", ICMPV6, 255, &icmp(134, &[0; 8]))),
        ("a router's advertisement to another pod", ipv6(pod, neighbour, ICMPV6, 255, &icmp(134, &[0; 8]))),
        ("a redirect", ipv6(pod, neighbour, ICMPV6, 255, &told(137, outside))),
        ("the advertisement of another's address", ipv6(pod, "ff02::1", ICMPV6, 255, &told(136, neighbour))),
        ("the same to a pod", ipv6(pod, neighbour, ICMPV6, 255, &told(136, super::HOST[1]))),
        (
            "a solicitation from another's address",
            ipv6(neighbour, "ff02::1", ICMPV6, 255, &told(135, super::HOST[1])),
        ),
        ("a solicitation from far away", ipv6(pod, "ff02::1", ICMPV6, 64, &told(135, super::HOST[1]))),
        ("a solicitation to somebody outside", ipv6(pod, outside, ICMPV6, 255, &told(135, super::HOST[1]))),
        ("a report of groups", ipv6(local, "ff02::16", ICMPV6, 1, &icmp(143, b""))),
        ("DNS to another pod", ipv6(pod, neighbour, UDP, 64, &udp(9, 53))),
    ]
}
