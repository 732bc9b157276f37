//! Whose a packet is: its protocol and its ends, read from octets that nobody has checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tunproxy_policy::Protocol;

use super::format::Direction;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Extension headers that are walked, as in the datapath.
const MAX_EXTENSION_HEADERS: usize = 8;

/// What a packet's headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The number of the transport protocol.
    pub protocol: u8,
    /// Of TCP and UDP, where they are in this packet: no fragment but the first has them.
    pub ports: Option<(u16, u16)>,
    /// Of an ICMP echo request or reply.
    identifier: Option<u16>,
    /// A TCP SYN without ACK.
    pub opens: bool,
    /// Of an ICMP error: the ends of the packet it is about.
    pub about: Option<Box<Ends>>,
}

/// A flow as the pod names it; for ICMP echo, the identifier stands for the pod's port and 0 for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    pub protocol: Protocol,
    pub pod: SocketAddr,
    pub remote: SocketAddr,
}

impl Ends {
    /// `ip`: the packet from its IP header on. `None`: it has none.
    pub fn parse(ip: &[u8]) -> Option<Self> {
        Self::parse_nested(ip, true)
    }

    fn parse_nested(ip: &[u8], outermost: bool) -> Option<Self> {
        let (source, destination, protocol, transport) = match ip.first()? >> 4 {
            4 => network_v4(ip)?,
            6 => network_v6(ip)?,
            _ => return None,
        };
        let mut ends =
            Self { source, destination, protocol, ports: None, identifier: None, opens: false, about: None };
        if let Some(transport) = transport {
            ends.read_transport(transport, outermost);
        }
        Some(ends)
    }

    fn read_transport(&mut self, transport: &[u8], outermost: bool) {
        let word =
            |at: usize| transport.get(at..at + 2).map(|field| u16::from_be_bytes([field[0], field[1]]));
        match self.protocol {
            TCP | UDP => {
                self.ports = word(0).zip(word(2));
                // SYN without ACK, of the flags in octet 13.
                self.opens =
                    self.protocol == TCP && transport.get(13).is_some_and(|flags| flags & 0x12 == 0x02);
            }
            ICMP | ICMPV6 => match (self.protocol, transport.first()) {
                (ICMP, Some(0 | 8)) | (ICMPV6, Some(128 | 129)) => self.identifier = word(4),
                (ICMP, Some(3 | 11 | 12)) | (ICMPV6, Some(1..=4)) if outermost => {
                    let quoted = transport.get(8..).and_then(|quoted| Self::parse_nested(quoted, false));
                    self.about = quoted.map(Box::new);
                }
                _ => {}
            },
            _ => {}
        }
    }

    /// The flow that the packet belongs to, or is about.
    pub fn flow(&self, direction: Direction) -> Option<FlowKey> {
        if let Some(about) = &self.about {
            // An error quotes what went the other way.
            let quoted = match direction {
                Direction::Inbound => Direction::Outbound,
                Direction::Outbound => Direction::Inbound,
            };
            return about.flow(quoted);
        }
        let (protocol, source, destination) = match (self.protocol, self.ports, self.identifier) {
            (TCP, Some((from, to)), _) => (Protocol::Tcp, from, to),
            (UDP, Some((from, to)), _) => (Protocol::Udp, from, to),
            (_, _, Some(identifier)) => match direction {
                Direction::Outbound => (Protocol::Icmp, identifier, 0),
                Direction::Inbound => (Protocol::Icmp, 0, identifier),
            },
            _ => return None,
        };
        let source = SocketAddr::new(self.source, source);
        let destination = SocketAddr::new(self.destination, destination);
        let (pod, remote) = match direction {
            Direction::Outbound => (source, destination),
            Direction::Inbound => (destination, source),
        };
        Some(FlowKey { protocol, pod, remote })
    }
}

/// Addresses, the transport protocol, and its octets if they begin in this packet.
type Network<'a> = (IpAddr, IpAddr, u8, Option<&'a [u8]>);

fn network_v4(ip: &[u8]) -> Option<Network<'_>> {
    let header = ip.first_chunk::<20>()?;
    let address =
        |at: usize| Ipv4Addr::from([header[at], header[at + 1], header[at + 2], header[at + 3]]).into();
    let later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    let transport = if later_fragment { None } else { ip.get(usize::from(header[0] & 0x0f) * 4..) };
    Some((address(12), address(16), header[9], transport))
}

fn network_v6(ip: &[u8]) -> Option<Network<'_>> {
    let header = ip.first_chunk::<40>()?;
    let address = |at: usize| -> IpAddr {
        let octets: [u8; 16] = header[at..at + 16].try_into().expect("sixteen octets");
        Ipv6Addr::from(octets).into()
    };
    let (mut next, mut at) = (header[6], 40);
    for _ in 0..MAX_EXTENSION_HEADERS {
        let Some(extension) = ip.get(at..at + 4) else { break };
        match next {
            0 | 43 | 60 => (next, at) = (extension[0], at + (usize::from(extension[1]) + 1) * 8),
            44 => {
                next = extension[0];
                if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 {
                    return Some((address(8), address(24), next, None));
                }
                at += 8;
            }
            _ => break,
        }
    }
    Some((address(8), address(24), next, ip.get(at..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10.0.0.1 to 192.0.2.1, with the identifier 7 or the ports 1000 and 443 in front.
    fn v4(protocol: u8, transport: &[u8]) -> Vec<u8> {
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1];
        ip.extend(transport);
        ip
    }

    fn flow(ip: &[u8], direction: Direction) -> Option<String> {
        let FlowKey { protocol, pod, remote } = Ends::parse(ip)?.flow(direction)?;
        Some(format!("{protocol} {pod} {remote}"))
    }

    #[test]
    fn a_flow_is_named_as_the_pod_names_it() {
        let syn = v4(TCP, &[3, 232, 1, 187, 0, 0, 0, 0, 0, 0, 0, 0, 80, 2]);
        assert_eq!(flow(&syn, Direction::Outbound).unwrap(), "tcp 10.0.0.1:1000 192.0.2.1:443");
        assert_eq!(flow(&syn, Direction::Inbound).unwrap(), "tcp 192.0.2.1:443 10.0.0.1:1000");
        assert!(Ends::parse(&syn).unwrap().opens);
        let mut answer = syn.clone();
        answer[33] = 0x12;
        assert!(!Ends::parse(&answer).unwrap().opens);
        let echo = v4(ICMP, &[8, 0, 0, 0, 0, 7]);
        assert_eq!(flow(&echo, Direction::Outbound).unwrap(), "icmp 10.0.0.1:7 192.0.2.1:0");
        assert_eq!(flow(&echo, Direction::Inbound).unwrap(), "icmp 192.0.2.1:7 10.0.0.1:0");
    }

    #[test]
    fn an_error_is_about_the_flow_it_quotes() {
        let datagram = v4(UDP, &[3, 232, 0, 53, 0, 8, 0, 0]);
        let error = v4(ICMP, &[&[3, 3, 0, 0, 0, 0, 0, 0][..], &datagram].concat());
        assert_eq!(flow(&error, Direction::Inbound), flow(&datagram, Direction::Outbound));
        let nested = v4(ICMP, &[&[3, 3, 0, 0, 0, 0, 0, 0][..], &error].concat());
        assert_eq!(flow(&nested, Direction::Inbound), None, "no error is about an error");
    }

    #[test]
    fn later_fragments_have_no_ports() {
        let mut fragment = v4(UDP, &[3, 232, 0, 53, 0, 8, 0, 0]);
        fragment[7] = 1;
        assert_eq!(Ends::parse(&fragment).unwrap().ports, None);
        let mut v6 = vec![0x60, 0, 0, 0, 0, 16, 44, 64];
        v6.extend([0; 32]);
        v6.extend([UDP, 0, 0, 1, 0, 0, 0, 9, 3, 232, 0, 53, 0, 8, 0, 0]);
        assert_eq!(Ends::parse(&v6).unwrap().ports, Some((1000, 53)));
        v6[43] = 9;
        let ends = Ends::parse(&v6).unwrap();
        assert_eq!((ends.protocol, ends.ports), (UDP, None));
    }

    proptest::proptest! {
        #[test]
        fn any_octets_are_read(mut ip in proptest::collection::vec(proptest::num::u8::ANY, 0..120), six: bool) {
            if let Some(first) = ip.first_mut() {
                *first = if six { 0x60 } else { 0x40 | *first & 0x0f };
            }
            if let Some(ends) = Ends::parse(&ip) {
                let _ = ends.flow(Direction::Inbound);
            }
        }
    }
}
