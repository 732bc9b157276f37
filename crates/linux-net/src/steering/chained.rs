//! Beside the main plugin's interface.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{ChainedPlan, INTERFACE_GROUP, LAST_METRIC, Plumbed, SteeringError, TUN_METRIC};
use crate::naming::{Owner, Priorities, Slot, tun_name};
use crate::netlink::{Family, Link, MAIN_TABLE, Netlink, Route, RouteKind, Rule, RuleTarget, Transport};
use crate::netns::NetNs;
use crate::sysctl;
use crate::tun::{self, Tun, TunError, TunSpec};

pub(super) fn plumb(namespace: &NetNs, plan: &ChainedPlan) -> Result<Plumbed, SteeringError> {
    // Sysctl files and /dev/net/tun belong to the namespace of the thread that opens them.
    namespace.run(|| plumb_here(namespace, plan))?
}

fn plumb_here(namespace: &NetNs, plan: &ChainedPlan) -> Result<Plumbed, SteeringError> {
    let mut netlink = Netlink::open()?;
    let ifname = &plan.owner.ifname;
    let netns = || namespace.path().display().to_string();
    let links = netlink.links()?;
    let main = links
        .iter()
        .find(|link| link.name == *ifname)
        .ok_or_else(|| SteeringError::NoInterface { ifname: ifname.clone(), netns: netns() })?;
    let addresses = netlink.addresses_of(main)?;
    if addresses.is_empty() {
        return Err(SteeringError::NoAddress { ifname: ifname.clone(), netns: netns() });
    }
    refuse_shared_table(&links, &plan.owner)?;

    let mtu = plan.mtu.unwrap_or(main.mtu);
    let tun = open_tun(&mut netlink, plan, mtu)?;
    set_sysctls(ifname, &tun.name)?;
    netlink.set_link_group(main, INTERFACE_GROUP)?;
    netlink.set_link_up(&tun.link)?;
    for route in routes(&plan.owner, tun.link.index, &addresses) {
        netlink.add_route(&route)?;
    }
    let wanted = rules(plan, &addresses);
    remove_outdated(&mut netlink, plan, &wanted)?;
    for rule in &wanted {
        netlink.add_rule(rule)?;
    }
    Ok(Plumbed { tun, mtu, addresses })
}

/// Two interface names can hash to one slot; of the interfaces of one pod that has not been seen to happen.
fn refuse_shared_table(links: &[Link], owner: &Owner) -> Result<(), SteeringError> {
    let slot = Slot::of(&owner.ifname);
    let others = links.iter().filter_map(|link| Owner::from_alias(link.alias.as_deref()?));
    match others.into_iter().find(|other| other.ifname != owner.ifname && Slot::of(&other.ifname) == slot) {
        Some(other) => Err(SteeringError::TableTaken {
            ifname: owner.ifname.clone(),
            other: other.ifname,
            table: slot.table(),
        }),
        None => Ok(()),
    }
}

/// Makes the TUN, or opens ours again when an earlier ADD made it.
fn open_tun(netlink: &mut Netlink, plan: &ChainedPlan, mtu: u32) -> Result<Tun, SteeringError> {
    let name = tun_name(&plan.owner.ifname);
    let Some(existing) = netlink.link(&name)? else {
        let spec = TunSpec { name: &name, queues: plan.queues, mtu, persistent: Some(&plan.owner) };
        return Ok(tun::create(netlink, &spec)?);
    };
    if existing.alias.as_deref() != Some(plan.owner.alias().as_str()) {
        return Err(TunError::Foreign { name, owner: plan.owner.clone() }.into());
    }
    let tun = tun::reopen(netlink, &name, plan.queues)?;
    netlink.set_link_mtu(&tun.link, mtu)?;
    Ok(tun)
}

fn set_sysctls(ifname: &str, tun: &str) -> Result<(), SteeringError> {
    // Replies come in by the TUN for addresses that route to another interface, and the other way round. The kernel
    // takes the greater of `all` and the interface's own.
    for interface in ["all", ifname, tun] {
        sysctl::write(&conf("ipv4", interface, "rp_filter"), "0")?;
    }
    // Replies to marked inbound connections keep the mark, and with it the way back.
    sysctl::write_if_present("ipv4/tcp_fwmark_accept", "1")?;
    sysctl::write(&conf("ipv4", "all", "src_valid_mark"), "1")?;
    Ok(())
}

/// A dot in an interface name (a VLAN) is no separator here: the path has slashes.
fn conf(family: &str, interface: &str, key: &str) -> String {
    format!("{family}/conf/{interface}/{key}")
}

/// The table: the TUN where the pod has an address of the family, and refusal behind it, always for both families.
pub(super) fn routes(owner: &Owner, tun: u32, addresses: &[IpNet]) -> Vec<Route> {
    let table = Slot::of(&owner.ifname).table();
    let mut routes = Vec::new();
    for family in families() {
        routes.push(Route {
            family,
            table,
            destination: None,
            kind: RouteKind::Unreachable,
            source: None,
            metric: LAST_METRIC,
        });
        if let Some(source) = source(addresses, family) {
            routes.push(Route {
                family,
                table,
                destination: None,
                kind: RouteKind::Device(tun),
                source: Some(source),
                metric: TUN_METRIC,
            });
        }
    }
    routes
}

/// The rules in the order in which they go in. The one that steers comes first: while the others are missing too much
/// is steered, never too little.
pub(super) fn rules(plan: &ChainedPlan, addresses: &[IpNet]) -> Vec<Rule> {
    let slot = Slot::of(&plan.owner.ifname);
    let at = slot.priorities();
    let steered = RuleTarget::Table(slot.table());
    let main = RuleTarget::Table(MAIN_TABLE);
    let mut rules = Vec::new();
    for family in families() {
        rules.push(Rule::new(family, at.steer, steered));
        rules.push(Rule {
            suppress_prefix_length: Some(0),
            suppress_group: Some(INTERFACE_GROUP),
            ..Rule::new(family, at.local, main)
        });
        for network in plan.cluster.iter().filter(|n| Family::of(n.addr()) == family) {
            rules.push(Rule { destination: Some(network.trunc()), ..Rule::new(family, at.cluster, main) });
        }
        for transport in Transport::ALL {
            rules.push(Rule { port: Some((transport, DNS)), ..Rule::new(family, at.dns, steered) });
        }
        rules.push(Rule { mark: Some(plan.mark), ..Rule::new(family, at.mark, main) });
        if !slot.is_primary() {
            rules.extend(jumps(family, addresses, at));
        }
    }
    rules
}

/// Traffic from a secondary interface's own addresses obeys that interface's rules.
fn jumps(family: Family, addresses: &[IpNet], at: Priorities) -> Vec<Rule> {
    let own = addresses.iter().map(IpNet::addr).filter(|ip| Family::of(*ip) == family);
    own.map(|ip| Rule {
        source: Some(IpNet::from(ip)),
        ..Rule::new(family, Priorities::JUMP, RuleTarget::Goto(at.mark))
    })
    .collect()
}

/// An earlier ADD with other settings may have left rules that no longer hold.
fn remove_outdated(netlink: &mut Netlink, plan: &ChainedPlan, wanted: &[Rule]) -> Result<(), SteeringError> {
    let at = Slot::of(&plan.owner.ifname).priorities();
    for family in Family::ALL {
        for rule in netlink.rules(family)? {
            let ours = at.contains(rule.priority) || rule.target == RuleTarget::Goto(at.mark);
            if ours && !wanted.contains(&rule) {
                netlink.delete_rule(&rule)?;
            }
        }
    }
    Ok(())
}

/// Both, unless the kernel has no IPv6 at all: a pod without an IPv6 address still must not get one out later.
pub(super) fn families() -> impl Iterator<Item = Family> {
    Family::ALL.into_iter().filter(|family| *family == Family::V4 || sysctl::has_ipv6())
}

/// The pod's first address of the family.
pub(super) fn source(addresses: &[IpNet], family: Family) -> Option<IpAddr> {
    addresses.iter().map(IpNet::addr).find(|ip| Family::of(*ip) == family)
}

/// Port of DNS over TCP and UDP, RFC 1035.
pub const DNS: u16 = 53;
