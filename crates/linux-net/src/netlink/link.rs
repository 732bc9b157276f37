//! Links.

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoTun, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};

use super::{Netlink, NetlinkError};

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub group: u32,
    pub alias: Option<String>,
    pub up: bool,
    pub loopback: bool,
    /// Driver kind, for example `veth`; absent for physical devices.
    pub kind: Option<String>,
    /// Present when the device is a TUN or TAP.
    pub tun: Option<TunInfo>,
}

/// What the kernel tells of a TUN or TAP device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TunInfo {
    /// Layer 3; `false`: a TAP.
    pub is_tun: bool,
    pub persistent: bool,
    pub owner: Option<u32>,
    pub multi_queue: bool,
    pub vnet_header: bool,
    /// Queues that have an open descriptor.
    pub queues: u32,
}

impl Netlink {
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let answers =
            self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), || "list links".into())?;
        Ok(answers.into_iter().filter_map(to_link).collect())
    }

    /// `None` when there is no such link.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.get(RouteNetlinkMessage::GetLink(message), || format!("look up link {name}")) {
            Ok(answers) => Ok(answers.into_iter().find_map(to_link)),
            Err(error) if error.is(&[libc::ENODEV]) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn set_link_up(&mut self, link: &Link) -> Result<(), NetlinkError> {
        let mut message = set(link);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(message), 0, || format!("set link {} up", link.name))
    }

    pub fn set_link_mtu(&mut self, link: &Link, mtu: u32) -> Result<(), NetlinkError> {
        let attribute = LinkAttribute::Mtu(mtu);
        self.set_attribute(link, attribute, || format!("set MTU {mtu} on link {}", link.name))
    }

    /// Packets each queue holds before it drops.
    pub fn set_link_queue_length(&mut self, link: &Link, packets: u32) -> Result<(), NetlinkError> {
        let attribute = LinkAttribute::TxQueueLen(packets);
        self.set_attribute(link, attribute, || format!("set queue length {packets} on link {}", link.name))
    }

    pub fn set_link_group(&mut self, link: &Link, group: u32) -> Result<(), NetlinkError> {
        let attribute = LinkAttribute::Group(group);
        self.set_attribute(link, attribute, || format!("set group {group} on link {}", link.name))
    }

    pub fn set_link_alias(&mut self, link: &Link, alias: &str) -> Result<(), NetlinkError> {
        let attribute = LinkAttribute::IfAlias(alias.to_owned());
        self.set_attribute(link, attribute, || format!("set alias {alias} on link {}", link.name))
    }

    /// No link-local address will appear by itself. Must precede [`Self::set_link_up`].
    pub fn disable_address_generation(&mut self, link: &Link) -> Result<(), NetlinkError> {
        let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let attribute = LinkAttribute::AfSpecUnspec(vec![inet6]);
        let what = || format!("disable IPv6 address generation on link {}", link.name);
        match self.set_attribute(link, attribute, what) {
            // A kernel without IPv6 generates none.
            Err(error) if error.is(&[libc::EAFNOSUPPORT]) => Ok(()),
            result => result,
        }
    }

    /// A link that is already gone is a success.
    pub fn delete_link(&mut self, link: &Link) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelLink(set(link));
        match self.change(message, 0, || format!("delete link {}", link.name)) {
            Err(error) if error.is(&[libc::ENODEV]) => Ok(()),
            result => result,
        }
    }

    fn set_attribute(
        &mut self,
        link: &Link,
        attribute: LinkAttribute,
        operation: impl Fn() -> String,
    ) -> Result<(), NetlinkError> {
        let mut message = set(link);
        message.attributes.push(attribute);
        self.change(RouteNetlinkMessage::SetLink(message), 0, operation)
    }
}

pub(super) fn set(link: &Link) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    message
}

fn to_link(answer: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::LinkInfo(infos) => read_info(infos, &mut link),
            _ => {}
        }
    }
    Some(link)
}

fn read_info(infos: Vec<LinkInfo>, link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Tun) => {
                link.kind = Some("tun".into());
                link.tun.get_or_insert_default();
            }
            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Tun(attributes)) => link.tun = Some(read_tun(&attributes)),
            _ => {}
        }
    }
}

/// `IFLA_TUN_*` of include/uapi/linux/if_link.h, which netlink-packet-route leaves undecoded.
fn read_tun(attributes: &[InfoTun]) -> TunInfo {
    const OWNER: u16 = 1;
    const TYPE: u16 = 3;
    const VNET_HDR: u16 = 5;
    const PERSIST: u16 = 6;
    const MULTI_QUEUE: u16 = 7;
    const NUM_QUEUES: u16 = 8;
    let mut tun = TunInfo::default();
    for attribute in attributes {
        let InfoTun::Other(attribute) = attribute else { continue };
        let value = value(attribute);
        let flag = value.first().is_some_and(|byte| *byte != 0);
        let number = value.get(..4).map_or(0, |v| u32::from_ne_bytes([v[0], v[1], v[2], v[3]]));
        match attribute.kind() {
            OWNER => tun.owner = Some(number),
            // IFF_TUN is 1, IFF_TAP is 2.
            TYPE => tun.is_tun = value.first() == Some(&1),
            VNET_HDR => tun.vnet_header = flag,
            PERSIST => tun.persistent = flag,
            MULTI_QUEUE => tun.multi_queue = flag,
            NUM_QUEUES => tun.queues = number,
            _ => {}
        }
    }
    tun
}

fn value(attribute: &DefaultNla) -> Vec<u8> {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value
}
