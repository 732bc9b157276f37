//! Links.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoTun, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use rtnetlink::packet_core::{DefaultNla, Nla};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::{Netlink, NetlinkError, first};

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
    pub hardware_address: Option<[u8; 6]>,
    /// Index of the other end of a veth pair, or of the device that this one stands on; in which namespace says
    /// [`Self::peer_namespace`].
    pub peer: Option<u32>,
    /// That namespace, by this namespace's number for it ([`Netlink::number_of`]). Absent: this namespace itself.
    pub peer_namespace: Option<i32>,
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
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump(&message, || "list links".into())?;
        let links = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(to_link(message)),
            _ => None,
        });
        Ok(links.collect())
    }

    /// `None` when there is no such link.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let answers = self.handle.link().get().match_name(name).execute();
        match self.perform(first(answers), || format!("look up link {name}")) {
            Ok(answer) => Ok(answer.map(to_link)),
            Err(error) if error.is(&[libc::ENODEV]) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `None` when there is no such link.
    pub fn link_at(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let answers = self.handle.link().get().match_index(index).execute();
        match self.perform(first(answers), || format!("look up link #{index}")) {
            Ok(answer) => Ok(answer.map(to_link)),
            Err(error) if error.is(&[libc::ENODEV]) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn set_link_up(&mut self, link: &Link) -> Result<(), NetlinkError> {
        self.set(set(link).up(), || format!("set link {} up", link.name))
    }

    pub fn set_link_mtu(&mut self, link: &Link, mtu: u32) -> Result<(), NetlinkError> {
        self.set(set(link).mtu(mtu), || format!("set MTU {mtu} on link {}", link.name))
    }

    /// Packets each queue holds before it drops.
    pub fn set_link_queue_length(&mut self, link: &Link, packets: u32) -> Result<(), NetlinkError> {
        let what = || format!("set queue length {packets} on link {}", link.name);
        self.set(set(link).txqueuelen(packets), what)
    }

    pub fn set_link_group(&mut self, link: &Link, group: u32) -> Result<(), NetlinkError> {
        self.set(set(link).link_group(group), || format!("set group {group} on link {}", link.name))
    }

    pub fn set_link_alias(&mut self, link: &Link, alias: &str) -> Result<(), NetlinkError> {
        self.set(set(link).alias(alias), || format!("set alias {alias} on link {}", link.name))
    }

    /// No link-local address will appear by itself. Must precede [`Self::set_link_up`].
    pub fn disable_address_generation(&mut self, link: &Link) -> Result<(), NetlinkError> {
        let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let change = set(link).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![inet6]));
        match self.set(change, || format!("disable IPv6 address generation on link {}", link.name)) {
            // A kernel without IPv6 generates none.
            Err(error) if error.is(&[libc::EAFNOSUPPORT]) => Ok(()),
            result => result,
        }
    }

    /// A link that is already gone is a success.
    pub fn delete_link(&mut self, link: &Link) -> Result<(), NetlinkError> {
        let request = self.handle.link().del(link.index).execute();
        match self.perform(request, || format!("delete link {}", link.name)) {
            Err(error) if error.is(&[libc::ENODEV]) => Ok(()),
            result => result,
        }
    }

    fn set(
        &self,
        change: LinkMessageBuilder<LinkUnspec>,
        operation: impl Fn() -> String,
    ) -> Result<(), NetlinkError> {
        self.perform(self.handle.link().set(change.build()).execute(), operation)
    }
}

fn set(link: &Link) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(link.index)
}

fn to_link(message: LinkMessage) -> Link {
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
            LinkAttribute::Address(octets) => link.hardware_address = octets.try_into().ok(),
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::LinkNetNsId(number) => link.peer_namespace = Some(number),
            LinkAttribute::LinkInfo(infos) => read_info(infos, &mut link),
            _ => {}
        }
    }
    link
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
