//! A table as a value: what is wanted, and what the kernel has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::field::KeyType;
use super::rule::Rule;
use super::uapi::*;

/// `NFTA_TABLE_FLAGS` of what [`Table::owned`] stands for.
pub(super) const OWNED: u32 = NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST;

/// `NFTA_SET_FLAGS` of [`SetContent::Flows`].
pub(super) const FLOWS: u32 = NFT_SET_TIMEOUT | NFT_SET_EVAL;

/// Between two looks for elements of [`SetContent::Flows`] whose time is over. They are out of the set by then, but count
/// for its size. The kernel's own second would have it look at each set of each pod that often.
pub(super) const COLLECTION: Duration = Duration::from_secs(10);

/// What kind of packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 and IPv6 of a namespace.
    Inet,
    /// All frames of single devices.
    Netdev,
}

/// A table with all that is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub family: Family,
    pub name: String,
    /// Only the socket that made it may change it, and `nft flush ruleset` passes it by. When that socket is closed it
    /// stays, reads as not owned, and is anybody's: to adopt, but also to change and to flush (`NFT_TABLE_F_OWNER`,
    /// `NFT_TABLE_F_PERSIST`; Linux 6.9).
    pub owned: bool,
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    /// `None`: it sees what other chains hand it.
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

/// Where a chain gets its packets from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    pub point: HookPoint,
    pub priority: i32,
    /// True: what no rule decides is dropped.
    pub drop: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookPoint {
    Prerouting,
    Input,
    Forward,
    Output,
    /// Output, after which the packet is routed again when its mark changed.
    Reroute,
    Postrouting,
    /// What the device of this name receives.
    Ingress(String),
    /// What the device of this name sends (Linux 5.16).
    Egress(String),
}

/// A set. It has the elements it is made with, or those that rules put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    pub content: SetContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetContent {
    Networks(Networks),
    /// Single addresses of one family, sorted.
    Addresses {
        v6: bool,
        addresses: Vec<IpAddr>,
    },
    /// Rules put elements in; each goes when its time is over. What is in it is not part of this value.
    Flows {
        key: Vec<KeyType>,
        /// Elements at most. The kernel reserves a table for as many at once, 16 to 32 octets each; but for
        /// [`Self::OPEN_SIZE`] it has one that grows.
        size: u32,
        /// For elements that a rule puts in without a time of their own.
        timeout: Duration,
    },
}

impl SetContent {
    /// The kernel's own bound, where a set names none (`nft_dynset_init`).
    pub const OPEN_SIZE: u32 = 65_535;
}

/// Networks of one family, merged and sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks {
    v6: bool,
    networks: Vec<IpNet>,
}

/// One step of an interval set: from this address on, up to the next step, addresses are in or out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Step {
    pub address: IpAddr,
    pub side: Side,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// Where one network ends and the next begins the end comes first.
    Out,
    In,
    /// In, up to the last address there is.
    InToTheEnd,
}

impl Family {
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Inet => NFPROTO_INET,
            Self::Netdev => NFPROTO_NETDEV,
        }
    }

    /// What messages call a table of the family.
    pub(super) fn table(self, name: &str) -> String {
        format!("table {} {name}", self.name())
    }

    /// What nft calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Netdev => "netdev",
        }
    }
}

impl HookPoint {
    /// `NFTA_HOOK_HOOKNUM`.
    pub(super) const fn code(&self) -> u32 {
        match self {
            Self::Prerouting => NF_INET_PRE_ROUTING,
            Self::Input => NF_INET_LOCAL_IN,
            Self::Forward => NF_INET_FORWARD,
            Self::Output | Self::Reroute => NF_INET_LOCAL_OUT,
            Self::Postrouting => NF_INET_POST_ROUTING,
            Self::Ingress(_) => NF_NETDEV_INGRESS,
            Self::Egress(_) => NF_NETDEV_EGRESS,
        }
    }

    /// `NFTA_CHAIN_TYPE`.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Reroute => "route",
            Self::Prerouting
            | Self::Input
            | Self::Forward
            | Self::Output
            | Self::Postrouting
            | Self::Ingress(_)
            | Self::Egress(_) => "filter",
        }
    }

    pub(super) fn device(&self) -> Option<&str> {
        match self {
            Self::Ingress(device) | Self::Egress(device) => Some(device),
            Self::Prerouting
            | Self::Input
            | Self::Forward
            | Self::Output
            | Self::Reroute
            | Self::Postrouting => None,
        }
    }

    /// `device` is empty where the kernel names none.
    pub(super) fn from_parts(family: Family, code: u32, kind: &str, device: &str) -> Option<Self> {
        let device = || device.to_owned();
        match (family, code, kind) {
            (Family::Netdev, NF_NETDEV_INGRESS, "filter") => Some(Self::Ingress(device())),
            (Family::Netdev, NF_NETDEV_EGRESS, "filter") => Some(Self::Egress(device())),
            (Family::Inet, NF_INET_LOCAL_OUT, "route") => Some(Self::Reroute),
            (Family::Inet, NF_INET_PRE_ROUTING, "filter") => Some(Self::Prerouting),
            (Family::Inet, NF_INET_LOCAL_IN, "filter") => Some(Self::Input),
            (Family::Inet, NF_INET_FORWARD, "filter") => Some(Self::Forward),
            (Family::Inet, NF_INET_LOCAL_OUT, "filter") => Some(Self::Output),
            (Family::Inet, NF_INET_POST_ROUTING, "filter") => Some(Self::Postrouting),
            _ => None,
        }
    }
}

impl Set {
    /// Those of `networks` that are of the family.
    pub fn networks(name: &str, v6: bool, networks: &[IpNet]) -> Self {
        Self { name: name.to_owned(), content: SetContent::Networks(Networks::new(v6, networks)) }
    }

    /// Those of `addresses` that are of the family.
    pub fn addresses(name: &str, v6: bool, addresses: &[IpAddr]) -> Self {
        let mut addresses: Vec<_> = addresses.iter().copied().filter(|ip| ip.is_ipv6() == v6).collect();
        addresses.sort_unstable();
        addresses.dedup();
        Self { name: name.to_owned(), content: SetContent::Addresses { v6, addresses } }
    }

    pub fn flows(name: &str, key: &[KeyType], size: u32, timeout: Duration) -> Self {
        Self { name: name.to_owned(), content: SetContent::Flows { key: key.to_vec(), size, timeout } }
    }

    pub(super) fn key(&self) -> Vec<KeyType> {
        match &self.content {
            SetContent::Networks(Networks { v6, .. }) | SetContent::Addresses { v6, .. } => {
                vec![if *v6 { KeyType::Ipv6Address } else { KeyType::Ipv4Address }]
            }
            SetContent::Flows { key, .. } => key.clone(),
        }
    }

    /// `NFTA_SET_FLAGS`.
    pub(super) fn flags(&self) -> u32 {
        match self.content {
            SetContent::Networks(_) => NFT_SET_INTERVAL,
            SetContent::Addresses { .. } => 0,
            SetContent::Flows { .. } => FLOWS,
        }
    }
}

impl Networks {
    pub fn new(v6: bool, networks: &[IpNet]) -> Self {
        let of_family = networks.iter().filter(|network| network.addr().is_ipv6() == v6);
        let mut networks = IpNet::aggregate(&of_family.map(IpNet::trunc).collect());
        networks.sort_unstable();
        Self { v6, networks }
    }

    pub(super) const fn is_v6(&self) -> bool {
        self.v6
    }

    /// How the kernel has them: in ascending order, beginning with one at address 0, and without an end where the last
    /// network is the space's.
    pub(super) fn steps(&self) -> Vec<Step> {
        let zero = if self.v6 { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv4Addr::UNSPECIFIED) };
        let mut steps = Vec::new();
        if self.networks.first().is_some_and(|network| network.network() != zero) {
            steps.push(Step { address: zero, side: Side::Out });
        }
        for network in &self.networks {
            let end = following(network.broadcast());
            let side = if end.is_some() { Side::In } else { Side::InToTheEnd };
            steps.push(Step { address: network.network(), side });
            steps.extend(end.map(|address| Step { address, side: Side::Out }));
        }
        steps
    }

    pub(super) fn from_steps(v6: bool, mut steps: Vec<Step>) -> Self {
        steps.sort_unstable();
        let mut networks = Vec::new();
        let mut start = None;
        for step in steps {
            match step.side {
                Side::In | Side::InToTheEnd => start = Some(step.address),
                Side::Out => {
                    let range = start.take().zip(preceding(step.address));
                    networks.extend(range.into_iter().flat_map(|(first, last)| between(first, last)));
                }
            }
        }
        if let Some(first) = start {
            let last = if v6 { Ipv6Addr::from(u128::MAX).into() } else { Ipv4Addr::BROADCAST.into() };
            networks.extend(between(first, last));
        }
        Self::new(v6, &networks)
    }
}

/// The address behind this one.
fn following(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| Ipv4Addr::from(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| Ipv6Addr::from(bits).into()),
    }
}

/// The address before this one.
fn preceding(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_sub(1).map(|bits| Ipv4Addr::from(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_sub(1).map(|bits| Ipv6Addr::from(bits).into()),
    }
}

/// The networks that make up a range.
fn between(first: IpAddr, last: IpAddr) -> Vec<IpNet> {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
    }
}
