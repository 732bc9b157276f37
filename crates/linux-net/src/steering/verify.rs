//! CHECK: is everything still as it was made, and does the kernel route as it should?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::chained::{families, routes, rules, source};
use super::{ChainedPlan, INTERFACE_GROUP, SteeringError};
use crate::naming::{Owner, Slot, tun_name};
use crate::netlink::{Family, Link, Netlink, RouteAnswer, RouteProbe, Transport};
use crate::netns::NetNs;

/// Compares a chained pod with its plan. Empty: all is well. The plan's `mtu` and `queues` are not compared.
pub fn verify_chained(namespace: &NetNs, plan: &ChainedPlan) -> Result<Vec<String>, SteeringError> {
    let mut netlink = Netlink::open_in(namespace)??;
    let mut problems = Vec::new();
    let ifname = &plan.owner.ifname;
    let name = tun_name(ifname);
    let Some(main) = netlink.link(ifname)? else {
        return Ok(vec![format!("interface {ifname} is gone")]);
    };
    let Some(tun) = verify_tun(&mut netlink, &name, &plan.owner, &mut problems)? else {
        return Ok(problems);
    };
    let addresses = netlink.addresses_of(&main)?;
    if main.group != INTERFACE_GROUP {
        problems.push(format!("interface {ifname} is in group {}, not {INTERFACE_GROUP}", main.group));
    }
    verify_routes(&mut netlink, plan, &tun, &addresses, &mut problems)?;
    for family in families() {
        let found = netlink.rules(family)?;
        let wanted = rules(plan, &addresses);
        let missing = wanted.iter().filter(|rule| rule.family == family && !found.contains(rule));
        problems.extend(missing.map(|rule| format!("rule is missing: {rule}")));
        if let Some(own) = source(&addresses, family) {
            probe(&mut netlink, plan, &tun, own, &mut problems)?;
        }
    }
    Ok(problems)
}

/// Compares a standalone pod with what was made for it.
pub fn verify_standalone(
    namespace: &NetNs,
    owner: &Owner,
    addresses: &[IpNet],
) -> Result<Vec<String>, SteeringError> {
    let mut netlink = Netlink::open_in(namespace)??;
    let mut problems = Vec::new();
    let Some(tun) = verify_tun(&mut netlink, &owner.ifname, owner, &mut problems)? else {
        return Ok(problems);
    };
    let found: Vec<IpAddr> = netlink.addresses_of(&tun)?.iter().map(IpNet::addr).collect();
    for address in addresses.iter().map(IpNet::addr) {
        if !found.contains(&address) {
            problems.push(format!("{} lacks address {address}", tun.name));
        }
        let probe =
            RouteProbe { destination: outside(Family::of(address)), source: None, mark: 0, port: None };
        expect(&mut netlink, &probe, Way::Into(&tun), "off-cluster traffic", &mut problems)?;
    }
    Ok(problems)
}

/// `None` when it makes no sense to look further.
fn verify_tun(
    netlink: &mut Netlink,
    name: &str,
    owner: &Owner,
    problems: &mut Vec<String>,
) -> Result<Option<Link>, SteeringError> {
    let Some(tun) = netlink.link(name)? else {
        problems.push(format!("TUN {name} is gone"));
        return Ok(None);
    };
    let Some(info) = tun.tun.filter(|info| info.is_tun) else {
        problems.push(format!("interface {name} is not a TUN"));
        return Ok(None);
    };
    if tun.alias.as_deref() != Some(owner.alias().as_str()) {
        problems.push(format!("TUN {name} is not marked as made for {owner}"));
    }
    if !tun.up {
        problems.push(format!("TUN {name} is down"));
    }
    if !info.persistent {
        problems.push(format!("TUN {name} is not persistent: it would vanish with the agent"));
    }
    if info.owner != Some(0) {
        problems.push(format!("TUN {name} does not belong to root"));
    }
    Ok(Some(tun))
}

fn verify_routes(
    netlink: &mut Netlink,
    plan: &ChainedPlan,
    tun: &Link,
    addresses: &[IpNet],
    problems: &mut Vec<String>,
) -> Result<(), SteeringError> {
    let table = Slot::of(&plan.owner.ifname).table();
    let wanted = routes(&plan.owner, tun.index, addresses);
    for family in families() {
        let found = netlink.routes(family, table)?;
        let missing = wanted.iter().filter(|route| route.family == family && !found.contains(route));
        problems.extend(missing.map(|route| format!("route is missing: {route}")));
    }
    Ok(())
}

/// Asks the kernel which way packets of each kind go. A secondary interface answers for its own address only.
fn probe(
    netlink: &mut Netlink,
    plan: &ChainedPlan,
    tun: &Link,
    own: IpAddr,
    problems: &mut Vec<String>,
) -> Result<(), SteeringError> {
    let family = Family::of(own);
    let primary = Slot::of(&plan.owner.ifname).is_primary();
    let source = (!primary).then_some(own);
    // The main table's default route may be any interface's, but never a TUN's.
    let has_way_out = primary && netlink.has_main_default(family)?;
    let off_cluster = RouteProbe { destination: outside(family), source, mark: 0, port: None };
    expect(netlink, &off_cluster, Way::Into(tun), "off-cluster traffic", problems)?;
    if has_way_out {
        let marked = RouteProbe { mark: plan.mark, ..off_cluster };
        expect(netlink, &marked, Way::Past(tun), "replies to inbound connections", problems)?;
    }
    let networks = plan.cluster.iter().filter(|network| Family::of(network.addr()) == family);
    let local: Vec<IpAddr> = netlink.addresses()?.iter().map(|address| address.network.addr()).collect();
    // The first address of an IPv6 network is the routers' anycast address: skipped.
    let candidates = networks.flat_map(|network| network.hosts().skip(1).take(local.len() + 1));
    if let Some(inside) = candidates.into_iter().find(|ip| !local.contains(ip)) {
        let to_cluster = RouteProbe { destination: inside, ..off_cluster };
        if has_way_out {
            expect(netlink, &to_cluster, Way::Past(tun), "cluster traffic", problems)?;
        }
        let dns = RouteProbe { port: Some((Transport::Udp, 53)), ..to_cluster };
        expect(netlink, &dns, Way::Into(tun), "DNS", problems)?;
    }
    Ok(())
}

/// Where a packet has to go.
#[derive(Debug, Clone, Copy)]
enum Way<'a> {
    Into(&'a Link),
    /// Out, by whichever interface the main table says.
    Past(&'a Link),
}

fn expect(
    netlink: &mut Netlink,
    probe: &RouteProbe,
    way: Way<'_>,
    what: &str,
    problems: &mut Vec<String>,
) -> Result<(), SteeringError> {
    let answer = netlink.probe(probe)?;
    let (right, wanted) = match (way, answer) {
        (Way::Into(tun), RouteAnswer::Device { index, .. }) => {
            (index == tun.index, format!("into {}", tun.name))
        }
        (Way::Past(tun), RouteAnswer::Device { index, .. }) => {
            (index != tun.index, format!("past {}", tun.name))
        }
        (Way::Into(tun), RouteAnswer::Refused) => (false, format!("into {}", tun.name)),
        (Way::Past(tun), RouteAnswer::Refused) => (false, format!("past {}", tun.name)),
    };
    let found = match answer {
        RouteAnswer::Device { index, .. } => format!("to interface #{index}"),
        RouteAnswer::Refused => "nowhere".into(),
    };
    if !right {
        problems.push(format!("{what} to {} goes {found}, not {wanted}", probe.destination));
    }
    Ok(())
}

/// Documentation addresses (RFC 5737, RFC 3849): never inside, never reached.
fn outside(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
    }
}
