//! What rules of IPv4 and of IPv6 differ in.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Layer, OWN, SCTP, TCP, UDP};
use crate::nft::{Field, KeyType, Rule, Set};

impl Layer {
    /// What sets and chains of the family are called.
    pub(super) fn named(self, name: &str) -> String {
        match self {
            Self::V4 => format!("{name}4"),
            Self::V6 => format!("{name}6"),
        }
    }

    pub(super) const fn ether_type(self) -> u64 {
        match self {
            Self::V4 => libc::ETH_P_IP as u64,
            Self::V6 => libc::ETH_P_IPV6 as u64,
        }
    }

    /// `NFPROTO_*`, where packets of both families come to one chain.
    pub(super) const fn protocol(self) -> u64 {
        match self {
            Self::V4 => libc::NFPROTO_IPV4 as u64,
            Self::V6 => libc::NFPROTO_IPV6 as u64,
        }
    }

    pub(super) const fn source(self) -> Field {
        match self {
            Self::V4 => Field::IPV4_SOURCE,
            Self::V6 => Field::IPV6_SOURCE,
        }
    }

    pub(super) const fn destination(self) -> Field {
        match self {
            Self::V4 => Field::IPV4_DESTINATION,
            Self::V6 => Field::IPV6_DESTINATION,
        }
    }

    pub(super) const fn address(self) -> KeyType {
        match self {
            Self::V4 => KeyType::Ipv4Address,
            Self::V6 => KeyType::Ipv6Address,
        }
    }

    pub(super) const fn icmp(self) -> u64 {
        match self {
            Self::V4 => libc::IPPROTO_ICMP as u64,
            Self::V6 => libc::IPPROTO_ICMPV6 as u64,
        }
    }

    /// Protocols that go to the cluster's networks.
    pub(super) const fn protocols(self) -> [u64; 4] {
        [TCP, UDP, self.icmp(), SCTP]
    }

    /// Types of an echo's two messages.
    pub(super) const fn echo_request(self) -> u64 {
        match self {
            Self::V4 => 8,
            Self::V6 => 128,
        }
    }

    pub(super) const fn echo_reply(self) -> u64 {
        match self {
            Self::V4 => 0,
            Self::V6 => 129,
        }
    }

    /// Types of errors that quote a packet: no redirects.
    pub(super) const fn errors(self) -> &'static [u64] {
        match self {
            Self::V4 => &[3, 11, 12],
            Self::V6 => &[1, 2, 3, 4],
        }
    }

    /// What the packet in an error has to begin with, for its ports to be where they are looked for.
    pub(super) fn quoted(self, protocol: u64) -> Rule {
        match self {
            Self::V4 => {
                Rule::new().is(Field::QUOTED_IPV4_START, 0x45).is(Field::QUOTED_IPV4_PROTOCOL, protocol)
            }
            Self::V6 => Rule::new().is(Field::QUOTED_IPV6_NEXT_HEADER, protocol),
        }
    }

    /// Source and destination port of the packet in an error.
    pub(super) const fn quoted_ports(self) -> [Field; 2] {
        match self {
            Self::V4 => Field::QUOTED_IPV4_PORTS,
            Self::V6 => Field::QUOTED_IPV6_PORTS,
        }
    }

    /// A fragment that others follow.
    pub(super) fn more_follow(self) -> Rule {
        match self {
            Self::V4 => Rule::new().any_of(Field::IPV4_FRAGMENT, 0x2000),
            Self::V6 => Rule::new()
                .is(Field::IPV6_NEXT_HEADER, libc::IPPROTO_FRAGMENT as u64)
                .any_of(Field::IPV6_FRAGMENT, 1),
        }
    }

    /// A fragment that is not the first. Of IPv6, one whose fragment header comes first.
    pub(super) fn later_fragment(self) -> Rule {
        match self {
            Self::V4 => Rule::new().any_of(Field::IPV4_FRAGMENT, 0x1fff),
            Self::V6 => Rule::new().any_of(Field::IPV6_FRAGMENT, 0xfff8),
        }
    }

    /// Destination and identification: what fragments of one packet have in common.
    pub(super) fn fragment_key(self) -> Vec<Field> {
        match self {
            Self::V4 => vec![self.destination(), Field::IPV4_IDENTIFICATION],
            Self::V6 => [&[self.destination()][..], &Field::IPV6_IDENTIFICATION].concat(),
        }
    }

    /// The protocol of a fragment that is not the first.
    pub(super) const fn fragment_protocol(self) -> Field {
        match self {
            Self::V4 => Field::IPV4_PROTOCOL,
            Self::V6 => Field::IPV6_FRAGMENT_PROTOCOL,
        }
    }

    /// Those of the networks that are of this family.
    pub(super) fn networks(self, networks: &[IpNet]) -> impl Iterator<Item = IpNet> {
        networks.iter().copied().filter(move |network| Self::of(network.addr()) == self)
    }

    /// Those of the addresses that are of this family.
    pub(super) fn addresses(self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        addresses.iter().copied().filter(|address| Self::of(*address) == self).collect()
    }

    /// Of the field's address: it is not one of these, which the set `own` has.
    pub(super) fn is_not_own(self, field: Field, own: &[IpAddr]) -> Rule {
        match own {
            [own] => Rule::new().is_not_address(field, *own),
            _ => Rule::new().not_in_set(&[field], &self.named(OWN)),
        }
    }

    pub(super) fn address_set(self, name: &str, addresses: &[IpAddr]) -> Set {
        Set::addresses(&self.named(name), self == Self::V6, addresses)
    }
}
