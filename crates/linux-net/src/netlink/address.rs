//! Addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::AddressMessageBuilder;

use super::{Link, Netlink, NetlinkError};

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub index: u32,
    /// Address with the prefix length of its subnet.
    pub network: IpNet,
    /// Usable beyond the link.
    pub global: bool,
}

impl Netlink {
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump(&message, || "list addresses".into())?;
        Ok(answers.into_iter().filter_map(to_address).collect())
    }

    /// The global addresses of one link.
    pub fn addresses_of(&mut self, link: &Link) -> Result<Vec<IpNet>, NetlinkError> {
        let all = self.addresses()?;
        Ok(all.into_iter().filter(|a| a.index == link.index && a.global).map(|a| a.network).collect())
    }

    /// IPv6 without duplicate address detection: nobody else is on our links, and a route may name the address as its
    /// source at once. An address that is already there is a success.
    pub fn add_address(&mut self, link: &Link, network: IpNet) -> Result<(), NetlinkError> {
        let (ip, prefix) = (network.addr(), network.prefix_len());
        let mut request = self.handle.address().add(link.index, ip, prefix).replace();
        let message = request.message_mut();
        if ip.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        // Nor is there anybody to broadcast to.
        message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        self.perform(request.execute(), || format!("add address {network} to link {}", link.name))
    }

    /// An address that is already gone is a success.
    pub fn delete_address(&mut self, link: &Link, network: IpNet) -> Result<(), NetlinkError> {
        let message = match network {
            IpNet::V4(v4) => AddressMessageBuilder::<Ipv4Addr>::new()
                .index(link.index)
                .address(v4.addr(), v4.prefix_len())
                .build(),
            IpNet::V6(v6) => AddressMessageBuilder::<Ipv6Addr>::new()
                .index(link.index)
                .address(v6.addr(), v6.prefix_len())
                .build(),
        };
        let request = self.handle.address().del(message).execute();
        match self.perform(request, || format!("delete address {network} of link {}", link.name)) {
            Err(error) if error.is(&[libc::EADDRNOTAVAIL, libc::ENODEV]) => Ok(()),
            result => result,
        }
    }
}

fn to_address(answer: RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
    // On a point-to-point link `Address` is the peer, `Local` is ours; IPv6 has only the former.
    let mut local: Option<IpAddr> = None;
    let mut address: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let network = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some(Address {
        index: message.header.index,
        network,
        global: message.header.scope == AddressScope::Universe,
    })
}
