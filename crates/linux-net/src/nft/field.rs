//! What rules look at.

use std::net::IpAddr;

use super::uapi::{NFT_REG_1, NFT_REG32_00};

/// A place in a packet, or something that the kernel knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Payload(Payload),
    Meta(Meta),
    Ct(Ct),
}

/// `length` octets at `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    pub base: Base,
    pub offset: u32,
    pub length: u32,
}

/// Where a header begins (`enum nft_payload_bases`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    Link,
    Network,
    /// Behind extension headers; a rule that loads it does not match fragments but the first.
    Transport,
}

/// `enum nft_meta_keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// EtherType.
    Protocol,
    Mark,
    InputName,
    OutputName,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    NetworkProtocol,
    /// The protocol behind IPv6 extension headers.
    TransportProtocol,
}

/// `enum nft_ct_keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ct {
    State,
    /// 0 original, 1 reply.
    Direction,
    Status,
    Mark,
    /// Where its first packet was sent to, before any translation.
    OriginalIpv4Destination,
    OriginalIpv6Destination,
}

/// How a field's octets stand in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Network,
    Host,
}

/// States of a connection, as bits of [`Ct::State`] (`NF_CT_STATE_BIT`).
pub mod ct_state {
    pub const INVALID: u32 = 1;
    pub const ESTABLISHED: u32 = 2;
    pub const RELATED: u32 = 4;
    pub const NEW: u32 = 8;
    pub const UNTRACKED: u32 = 64;
}

/// Properties of a connection, as bits of [`Ct::Status`] (`enum ip_conntrack_status`).
pub mod ct_status {
    /// Its destination is translated.
    pub const DESTINATION_NAT: u32 = 1 << 5;
}

impl Ct {
    /// `NFTA_CT_DIRECTION`, for what a connection has once for each direction.
    pub(super) const fn direction(self) -> Option<u8> {
        match self {
            Self::OriginalIpv4Destination | Self::OriginalIpv6Destination => Some(0),
            Self::State | Self::Direction | Self::Status | Self::Mark => None,
        }
    }
}

impl Field {
    pub const PROTOCOL: Self = Self::Meta(Meta::Protocol);
    pub const MARK: Self = Self::Meta(Meta::Mark);
    pub const INPUT_NAME: Self = Self::Meta(Meta::InputName);
    pub const OUTPUT_NAME: Self = Self::Meta(Meta::OutputName);
    pub const NETWORK_PROTOCOL: Self = Self::Meta(Meta::NetworkProtocol);
    pub const TRANSPORT_PROTOCOL: Self = Self::Meta(Meta::TransportProtocol);
    pub const CT_STATE: Self = Self::Ct(Ct::State);
    pub const CT_DIRECTION: Self = Self::Ct(Ct::Direction);
    pub const CT_STATUS: Self = Self::Ct(Ct::Status);
    pub const CT_MARK: Self = Self::Ct(Ct::Mark);
    pub const CT_ORIGINAL_IPV4_DESTINATION: Self = Self::Ct(Ct::OriginalIpv4Destination);
    pub const CT_ORIGINAL_IPV6_DESTINATION: Self = Self::Ct(Ct::OriginalIpv6Destination);

    /// RFC 826: types and lengths of the addresses, 0x0001_0800_0604 for Ethernet and IPv4.
    pub const ARP_START: Self = Self::payload(Base::Network, 0, 6);
    pub const ARP_SENDER: Self = Self::payload(Base::Network, 14, 4);
    /// RFC 791: version and header length, 0x45 without options.
    pub const IPV4_START: Self = Self::payload(Base::Network, 0, 1);
    pub const IPV4_IDENTIFICATION: Self = Self::payload(Base::Network, 4, 2);
    /// Flags and offset.
    pub const IPV4_FRAGMENT: Self = Self::payload(Base::Network, 6, 2);
    pub const IPV4_PROTOCOL: Self = Self::payload(Base::Network, 9, 1);
    pub const IPV4_SOURCE: Self = Self::payload(Base::Network, 12, 4);
    pub const IPV4_DESTINATION: Self = Self::payload(Base::Network, 16, 4);
    /// RFC 8200.
    pub const IPV6_NEXT_HEADER: Self = Self::payload(Base::Network, 6, 1);
    pub const IPV6_HOP_LIMIT: Self = Self::payload(Base::Network, 7, 1);
    pub const IPV6_SOURCE: Self = Self::payload(Base::Network, 8, 16);
    pub const IPV6_DESTINATION: Self = Self::payload(Base::Network, 24, 16);
    /// Of a fragment header that comes first: offset and flag.
    pub const IPV6_FRAGMENT: Self = Self::payload(Base::Network, 42, 2);
    pub const IPV6_FRAGMENT_PROTOCOL: Self = Self::payload(Base::Network, 40, 1);
    /// The two halves of its identification.
    pub const IPV6_IDENTIFICATION: [Self; 2] =
        [Self::payload(Base::Network, 44, 2), Self::payload(Base::Network, 46, 2)];
    /// Of TCP and UDP.
    pub const SOURCE_PORT: Self = Self::payload(Base::Transport, 0, 2);
    pub const DESTINATION_PORT: Self = Self::payload(Base::Transport, 2, 2);
    pub const TCP_FLAGS: Self = Self::payload(Base::Transport, 13, 1);
    /// Of both ICMPs.
    pub const ICMP_TYPE: Self = Self::payload(Base::Transport, 0, 1);
    pub const ICMP_IDENTIFIER: Self = Self::payload(Base::Transport, 4, 2);
    /// RFC 4861: what is asked for or told of.
    pub const ND_TARGET: Self = Self::payload(Base::Transport, 8, 16);
    /// Of the packet in an error, which has no options: its start, protocol and ports.
    pub const QUOTED_IPV4_START: Self = Self::payload(Base::Transport, 8, 1);
    pub const QUOTED_IPV4_PROTOCOL: Self = Self::payload(Base::Transport, 17, 1);
    pub const QUOTED_IPV4_PORTS: [Self; 2] =
        [Self::payload(Base::Transport, 28, 2), Self::payload(Base::Transport, 30, 2)];
    pub const QUOTED_IPV6_NEXT_HEADER: Self = Self::payload(Base::Transport, 14, 1);
    pub const QUOTED_IPV6_PORTS: [Self; 2] =
        [Self::payload(Base::Transport, 48, 2), Self::payload(Base::Transport, 50, 2)];

    pub const fn payload(base: Base, offset: u32, length: u32) -> Self {
        Self::Payload(Payload { base, offset, length })
    }

    /// Octets.
    pub const fn length(self) -> u32 {
        match self {
            Self::Payload(payload) => payload.length,
            Self::Meta(Meta::Protocol) => 2,
            Self::Meta(Meta::NetworkProtocol | Meta::TransportProtocol) | Self::Ct(Ct::Direction) => 1,
            Self::Meta(Meta::InputName | Meta::OutputName) => libc::IFNAMSIZ as u32,
            Self::Meta(Meta::Mark)
            | Self::Ct(Ct::State | Ct::Status | Ct::Mark | Ct::OriginalIpv4Destination) => 4,
            Self::Ct(Ct::OriginalIpv6Destination) => 16,
        }
    }

    /// A number as the field has it.
    ///
    /// # Panics
    ///
    /// When the field is wider than eight octets, or the number than the field.
    pub(super) fn number(self, number: u64) -> Vec<u8> {
        let length = self.length() as usize;
        assert!(
            length <= 8 && (length == 8 || number >> (8 * length) == 0),
            "{number} does not fit {self:?}"
        );
        let mut octets = number.to_be_bytes()[8 - length..].to_vec();
        // A field of the kernel's own is an integer of its machine.
        if self.order() == Order::Host && cfg!(target_endian = "little") {
            octets.reverse();
        }
        octets
    }

    const fn order(self) -> Order {
        match self {
            Self::Payload(_)
            | Self::Meta(Meta::Protocol)
            | Self::Ct(Ct::OriginalIpv4Destination | Ct::OriginalIpv6Destination) => Order::Network,
            Self::Meta(_) | Self::Ct(_) => Order::Host,
        }
    }
}

/// An address as a packet has it.
pub(super) fn address(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The registers of fields that are looked up together: each begins at the next four octets. The kernel calls those at
/// each 16 octets by other names (`nft_dump_register`).
pub(super) fn registers(fields: &[Field]) -> Vec<(Field, u32)> {
    const WORDS: u32 = 4;
    let mut words = 0_u32;
    let mut placed = Vec::new();
    for &field in fields {
        let aligned = words.is_multiple_of(WORDS);
        placed.push((field, if aligned { NFT_REG_1 + words / WORDS } else { NFT_REG32_00 + words }));
        words += field.length().div_ceil(WORDS);
    }
    placed
}

/// Types of keys (nft's `datatype.h`): the kernel only keeps them, for nft to show elements by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    Ipv4Address,
    Ipv6Address,
    TransportProtocol,
    /// Also right for an identifier of ICMP.
    Port,
}

impl KeyType {
    pub(super) const fn code(self) -> u32 {
        match self {
            Self::Ipv4Address => 7,
            Self::Ipv6Address => 8,
            Self::TransportProtocol => 12,
            Self::Port => 13,
        }
    }

    pub(super) const fn from_code(code: u32) -> Option<Self> {
        match code {
            7 => Some(Self::Ipv4Address),
            8 => Some(Self::Ipv6Address),
            12 => Some(Self::TransportProtocol),
            13 => Some(Self::Port),
            _ => None,
        }
    }

    /// Octets.
    pub const fn length(self) -> u32 {
        match self {
            Self::Ipv4Address => 4,
            Self::Ipv6Address => 16,
            Self::TransportProtocol => 1,
            Self::Port => 2,
        }
    }
}
