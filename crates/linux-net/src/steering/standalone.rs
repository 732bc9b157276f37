//! The TUN is the pod's interface.

use ipnet::IpNet;

use super::chained::{families, source};
use super::{LAST_METRIC, Plumbed, StandalonePlan, SteeringError, TUN_METRIC, unplumb};
use crate::naming::{Owner, Priorities, Slot};
use crate::netlink::{Family, MAIN_TABLE, Netlink, Route, RouteKind, Rule, RuleTarget};
use crate::netns::NetNs;
use crate::sysctl;
use crate::tun::{self, TunError, TunSpec};

pub(super) fn plumb(namespace: &NetNs, plan: &StandalonePlan) -> Result<Plumbed, SteeringError> {
    let result = namespace.run(|| plumb_here(plan))?;
    result.inspect_err(|error| {
        // An interface that was there before is none of ours to remove.
        if !matches!(error, SteeringError::Tun(TunError::Exists { .. })) {
            let _ = unplumb(namespace, &plan.owner);
        }
    })
}

fn plumb_here(plan: &StandalonePlan) -> Result<Plumbed, SteeringError> {
    let mut netlink = Netlink::open()?;
    let spec = TunSpec {
        name: &plan.owner.ifname,
        queues: plan.queues,
        mtu: plan.mtu,
        persistent: Some(&plan.owner),
    };
    let tun = tun::create(&mut netlink, &spec)?;
    // Replies come from everywhere.
    for interface in ["all", &tun.name] {
        sysctl::write(&format!("ipv4/conf/{interface}/rp_filter"), "0")?;
    }
    let addresses: Vec<IpNet> = plan.addresses.iter().map(|network| IpNet::from(network.addr())).collect();
    if addresses.iter().any(|network| network.addr().is_ipv6()) {
        sysctl::write_if_present(&format!("ipv6/conf/{}/disable_ipv6", tun.name), "0")?;
    }
    for address in &addresses {
        netlink.add_address(&tun.link, *address)?;
    }
    if let Some(loopback) = netlink.links()?.iter().find(|link| link.loopback) {
        netlink.set_link_up(loopback)?;
    }
    netlink.set_link_up(&tun.link)?;
    for route in routes(&plan.owner, tun.link.index, &addresses) {
        netlink.add_route(&route)?;
    }
    for rule in rules(&plan.owner, &addresses) {
        netlink.add_rule(&rule)?;
    }
    Ok(Plumbed { tun, mtu: plan.mtu, addresses })
}

/// Defaults of the main table; a secondary interface comes behind the primary one there, and has a table of its own for
/// what is sent from its addresses.
fn routes(owner: &Owner, tun: u32, addresses: &[IpNet]) -> Vec<Route> {
    let slot = Slot::of(&owner.ifname);
    let tables = std::iter::once(MAIN_TABLE).chain((!slot.is_primary()).then_some(slot.table()));
    let mut routes = Vec::new();
    for table in tables {
        for family in families() {
            let default =
                |kind, source, metric| Route { family, table, destination: None, kind, source, metric };
            routes.push(default(RouteKind::Unreachable, None, LAST_METRIC));
            if let Some(source) = source(addresses, family) {
                let metric = TUN_METRIC + slot.table() - Slot::PRIMARY.table();
                routes.push(default(RouteKind::Device(tun), Some(source), metric));
            }
        }
    }
    routes
}

fn rules(owner: &Owner, addresses: &[IpNet]) -> Vec<Rule> {
    let slot = Slot::of(&owner.ifname);
    if slot.is_primary() {
        return Vec::new();
    }
    let rule = |address: &IpNet| Rule {
        source: Some(*address),
        ..Rule::new(Family::of(address.addr()), Priorities::JUMP, RuleTarget::Table(slot.table()))
    };
    addresses.iter().map(rule).collect()
}
