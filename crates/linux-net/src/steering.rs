//! The pod side: everything that is not inside goes into the TUN.
//!
//! Chained, beside the interface that a main plugin made: the TUN is unnumbered; a table of its own has a default
//! route through it, whose source is the pod's address, and behind that an `unreachable` default, so that a TUN that
//! is down or gone fails closed; rules decide what is looked up there. The main table is never touched.
//!
//! Standalone, the TUN is the pod's only interface and has its addresses.
//!
//! This is steering, not a boundary: a pod with `CAP_NET_RAW` gets around anything inside its own namespace.

mod chained;
mod standalone;
mod verify;

use ipnet::IpNet;

use crate::naming::{Owner, Slot, tun_name};
use crate::netlink::{self, Family, Link, MAIN_TABLE, Netlink, NetlinkError, RuleTarget};
use crate::netns::{NetNs, NetNsError};
use crate::sysctl::SysctlError;
use crate::tun::{Tun, TunError};

/// Group of the interfaces that are steered: rules skip routes through them.
pub const INTERFACE_GROUP: u32 = 74;

/// Metric of the `unreachable` default behind the TUN's own.
const LAST_METRIC: u32 = 4_000_000_000;

/// Metric of the default through the TUN: before a default that a main plugin may have set.
const TUN_METRIC: u32 = 1;

/// The pod could not be plumbed.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Tun(#[from] TunError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error(
        "there is no interface {ifname} in {netns}: the main plugin must come before tunproxy in the chain"
    )]
    NoInterface { ifname: String, netns: String },
    #[error("interface {ifname} in {netns} has no address")]
    NoAddress { ifname: String, netns: String },
    #[error("interfaces {ifname} and {other} would share routing table {table}: rename one of them")]
    TableTaken { ifname: String, other: String, table: u32 },
}

/// How to steer a pod whose interface a main plugin made.
#[derive(Debug, Clone)]
pub struct ChainedPlan {
    pub owner: Owner,
    pub queues: u16,
    /// `None`: that of the main interface.
    pub mtu: Option<u32>,
    /// Firewall mark of replies to inbound connections.
    pub mark: u32,
    /// Pod and service networks: reached by the main interface, but for port 53.
    pub cluster: Vec<IpNet>,
}

/// How to plumb a pod that has nothing but the TUN.
#[derive(Debug, Clone)]
pub struct StandalonePlan {
    /// The TUN's name is the owner's interface name.
    pub owner: Owner,
    pub queues: u16,
    pub mtu: u32,
    pub addresses: Vec<IpNet>,
}

/// A plumbed pod.
#[derive(Debug)]
pub struct Plumbed {
    pub tun: Tun,
    pub mtu: u32,
    /// Addresses the pod may use as a source.
    pub addresses: Vec<IpNet>,
}

/// Steers the pod; repeated, it converges and opens further queues. When the first time fails, nothing of it stays.
pub fn plumb_chained(namespace: &NetNs, plan: &ChainedPlan) -> Result<Plumbed, SteeringError> {
    let existed = is_plumbed(namespace, &plan.owner)?;
    let result = chained::plumb(namespace, plan);
    if result.is_err() && !existed {
        let _ = unplumb(namespace, &plan.owner);
    }
    result
}

/// Makes the pod's interface. An interface of that name is an error and stays as it is.
pub fn plumb_standalone(namespace: &NetNs, plan: &StandalonePlan) -> Result<Plumbed, SteeringError> {
    standalone::plumb(namespace, plan)
}

/// Removes all that [`plumb_chained`] and [`plumb_standalone`] made for `owner`, however far they came, and nothing
/// that belongs to anybody else. Nothing there is a success.
pub fn unplumb(namespace: &NetNs, owner: &Owner) -> Result<(), SteeringError> {
    remove(namespace, owner, |netlink, link| Ok(netlink.delete_link(link)?))
}

/// [`unplumb`] for a process that ends soon: see [`netlink::delete_promptly`].
pub fn unplumb_promptly(namespace: &NetNs, owner: &Owner) -> Result<(), SteeringError> {
    remove(namespace, owner, |_, link| Ok(netlink::delete_promptly(namespace, link)??))
}

fn remove(
    namespace: &NetNs,
    owner: &Owner,
    delete: impl Fn(&mut Netlink, &Link) -> Result<(), SteeringError>,
) -> Result<(), SteeringError> {
    let mut netlink = Netlink::open_in(namespace)??;
    let links = netlink.links()?;
    let owner_of = |name: &str| {
        let link = links.iter().find(|link| link.name == name)?;
        Some((link, link.alias.as_deref().and_then(Owner::from_alias)))
    };
    // A successor with the same interface name: rules and table are its own now.
    let successor = |found: &Owner| found.ifname == owner.ifname && found.container_id != owner.container_id;
    let names = [tun_name(&owner.ifname), owner.ifname.clone()];
    let found: Vec<_> = names.iter().filter_map(|name| owner_of(name)).collect();
    if found.iter().any(|(_, alias)| alias.as_ref().is_some_and(successor)) {
        return Ok(());
    }
    for (link, alias) in found {
        if alias.as_ref() == Some(owner) {
            delete(&mut netlink, link)?;
        }
    }
    let slot = Slot::of(&owner.ifname);
    let others = || links.iter().filter_map(|link| Owner::from_alias(link.alias.as_deref()?));
    // A refused attempt whose name hashes to another interface's slot: what is there belongs to that one.
    if others().all(|other| other.ifname == owner.ifname || Slot::of(&other.ifname) != slot) {
        remove_rules(&mut netlink, slot)?;
        remove_routes(&mut netlink, slot.table())?;
    }
    // What a standalone interface put into the main table is shared by those of the pod: the last one takes it along.
    if others().all(|other| other == *owner) {
        remove_routes(&mut netlink, MAIN_TABLE)?;
    }
    if let Some(link) = links.iter().find(|link| link.name == owner.ifname && link.group == INTERFACE_GROUP) {
        netlink.set_link_group(link, 0)?;
    }
    Ok(())
}

/// The owner's TUN is there: a caller that fails later leaves it, lest a running pod lose its steering.
pub fn is_plumbed(namespace: &NetNs, owner: &Owner) -> Result<bool, SteeringError> {
    let links = Netlink::open_in(namespace)??.links()?;
    let mut owners = links.iter().filter_map(|link| Owner::from_alias(link.alias.as_deref()?));
    Ok(owners.any(|found| found == *owner))
}

pub(crate) use chained::DNS;
pub use verify::{verify_chained, verify_standalone};

fn remove_rules(netlink: &mut Netlink, slot: Slot) -> Result<(), NetlinkError> {
    let priorities = slot.priorities();
    for family in Family::ALL {
        for rule in netlink.rules(family)? {
            let targets = [RuleTarget::Goto(priorities.mark), RuleTarget::Table(slot.table())];
            if priorities.contains(rule.priority) || targets.contains(&rule.target) {
                netlink.delete_rule(&rule)?;
            }
        }
    }
    Ok(())
}

fn remove_routes(netlink: &mut Netlink, table: u32) -> Result<(), NetlinkError> {
    for family in Family::ALL {
        for route in netlink.routes(family, table)? {
            netlink.delete_route(&route)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
