//! The host's end of a pod's interface, by what the kernel says of the pair, not by its name.

use std::net::{IpAddr, Ipv6Addr};

use crate::netlink::{Link, Netlink, NetlinkError};
use crate::netns::{NetNs, NetNsError};

/// A pod's interface, and the host's end of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The host's end.
    pub device: String,
    pub index: u32,
    /// Addresses of the pod's end, those of the link too, sorted.
    pub addresses: Vec<IpAddr>,
}

/// There is no device of this namespace through which all that the interface sends would have to come.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("there is no interface {ifname} in {netns}")]
    NoInterface { ifname: String, netns: String },
    #[error(
        "interface {ifname} in {netns} is a {kind}, not one end of a veth pair: nothing on the host sees all that a pod \
         sends by it, so a pod with CAP_NET_RAW would get around policy; use a main plugin that makes veth pairs (ptp, \
         bridge), or set unsafeNoGate: true"
    )]
    NoVeth { ifname: String, netns: String, kind: String },
    #[error(
        "the other end of {ifname} in {netns} is not in the agent's network namespace: run the agent in the host's \
         (hostNetwork: true), or set unsafeNoGate: true"
    )]
    Elsewhere { ifname: String, netns: String },
}

/// Finds the other end of the pod's interface in the calling thread's namespace.
pub fn find_peer(pod: &NetNs, ifname: &str) -> Result<Peer, PeerError> {
    let netns = || pod.path().display().to_string();
    let mut inside = Netlink::open_in(pod)??;
    let link = inside
        .link(ifname)?
        .ok_or_else(|| PeerError::NoInterface { ifname: ifname.to_owned(), netns: netns() })?;
    let peer = match (link.kind.as_deref(), link.peer) {
        (Some("veth"), Some(peer)) => peer,
        (kind, _) => {
            let kind = kind.unwrap_or("physical device").to_owned();
            return Err(PeerError::NoVeth { ifname: ifname.to_owned(), netns: netns(), kind });
        }
    };
    let mut here = Netlink::open()?;
    let number = here.number_of(pod)?;
    // The index alone may be that of any device here; the device must say the same of the pod's.
    let is_other_end = |found: &Link| {
        found.kind.as_deref() == Some("veth")
            && found.peer == Some(link.index)
            && number.is_some()
            && found.peer_namespace == number
    };
    let Some(found) = here.link_at(peer)?.filter(is_other_end) else {
        return Err(PeerError::Elsewhere { ifname: ifname.to_owned(), netns: netns() });
    };
    let of_link = inside.addresses()?.into_iter().filter(|address| address.index == link.index);
    let mut addresses: Vec<_> = of_link.map(|address| address.network.addr()).collect();
    addresses.extend(link.hardware_address.map(link_local));
    addresses.sort_unstable();
    addresses.dedup();
    Ok(Peer { device: found.name, index: found.index, addresses })
}

/// The address that an interface gives itself from its hardware address (RFC 4291, appendix A), unless it is told
/// otherwise. It may still be missing when the pod is added.
fn link_local(hardware: [u8; 6]) -> IpAddr {
    const UNIVERSAL: u8 = 2;
    let [first, second, third, rest @ ..] = hardware;
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..13].copy_from_slice(&[first ^ UNIVERSAL, second, third, 0xff, 0xfe]);
    octets[13..].copy_from_slice(&rest);
    Ipv6Addr::from(octets).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_local_address_follows_from_the_hardware_address() {
        // RFC 2464, section 4.
        let address = link_local([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]);
        assert_eq!(address, "fe80::3656:78ff:fe9a:bcde".parse::<IpAddr>().unwrap());
    }
}
