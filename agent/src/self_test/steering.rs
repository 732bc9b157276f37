//! The agent's own steering in scratch namespaces, asked from the kernel afterwards.

use anyhow::Context;
use ipnet::IpNet;
use tunproxy_linux_net::host_tun::{HostPlan, HostTun};
use tunproxy_linux_net::naming::Owner;
use tunproxy_linux_net::netlink::{Family, MAIN_TABLE, Route, RouteAnswer, RouteKind, RouteProbe, Transport};
use tunproxy_linux_net::steering::{ChainedPlan, plumb_chained, verify_chained};
use tunproxy_linux_net::tun::{self, Tun, TunSpec};
use tunproxy_linux_net::{NetNs, Netlink, sysctl};

use super::report::Row;
use crate::causes::told;

const MTU: u32 = 1_500;
const MARK: u32 = 0x7470;
const IFNAME: &str = "eth0";
/// Of the range for benchmarks (RFC 2544) and of this program's ULA prefix.
const ADDRESSES: [&str; 2] = ["198.19.251.2/30", "fdb4:7c1e:52a9:251::2/64"];
/// Stands for the outside (RFC 5737, RFC 3849).
const OUTSIDE: [&str; 2] = ["203.0.113.1", "2001:db8::1"];

const REMEDY: &str = "a kernel with policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES), and a \
                      writable /proc/sys/net";

pub fn rows() -> Vec<Row> {
    vec![
        row("steering", "rules, marks and routes lead a chained pod into its TUN", chained()),
        row("host-routes", "rules lead all but the agent's marked sockets into a host's TUN", host()),
    ]
}

fn row(check: &'static str, works: &str, problems: anyhow::Result<Vec<String>>) -> Row {
    match problems {
        Ok(problems) if problems.is_empty() => Row::ok(check, works),
        Ok(problems) => Row::failed(check, problems.join("; "), REMEDY),
        Err(error) => Row::failed(check, told(&error), REMEDY),
    }
}

/// The kernel's families; one that is switched off has no addresses to steer.
fn of_this_kernel<T>(both: [T; 2]) -> impl Iterator<Item = T> {
    both.into_iter().take(if sysctl::has_ipv6() { 2 } else { 1 })
}

fn addresses() -> Vec<IpNet> {
    of_this_kernel(ADDRESSES).map(|text| text.parse().expect("a constant")).collect()
}

/// A pod as a main plugin leaves it, then as the CNI plugin steers it.
fn chained() -> anyhow::Result<Vec<String>> {
    let pod = NetNs::create()?;
    // Open for as long as the pod is looked at: an interface whose queue nobody has is down.
    let _main = pod.run(main_interface)?.context("the pod's main interface")?;
    let plan = ChainedPlan {
        owner: Owner { container_id: "self-test".to_owned(), ifname: IFNAME.to_owned() },
        queues: 2,
        mtu: None,
        mark: MARK,
        cluster: of_this_kernel(["10.244.0.0/16", "fd00:244::/48"])
            .map(|text| text.parse().expect("a constant"))
            .collect(),
    };
    let _steered = plumb_chained(&pod, &plan)?;
    Ok(verify_chained(&pod, &plan)?)
}

/// Any interface with addresses and a default route will do.
fn main_interface() -> anyhow::Result<Tun> {
    let mut netlink = Netlink::open()?;
    let made = tun::create(&mut netlink, &TunSpec { name: IFNAME, queues: 1, mtu: MTU, persistent: None })?;
    if sysctl::has_ipv6() {
        sysctl::write_if_present(&format!("ipv6/conf/{IFNAME}/disable_ipv6"), "0")?;
    }
    let addresses = addresses();
    for address in &addresses {
        netlink.add_address(&made.link, *address)?;
    }
    netlink.set_link_up(&made.link)?;
    for source in addresses.iter().map(IpNet::addr) {
        netlink.add_route(&Route {
            family: Family::of(source),
            table: MAIN_TABLE,
            destination: None,
            kind: RouteKind::Device(made.link.index),
            source: Some(source),
            metric: 100,
        })?;
    }
    Ok(made)
}

/// As `tun --setup` leads a host's traffic.
fn host() -> anyhow::Result<Vec<String>> {
    NetNs::create()?.run(|| {
        sysctl::write_if_present("ipv6/conf/default/disable_ipv6", "0")?;
        let name = "tun0".to_owned();
        let plan = HostPlan { name, queues: 2, mtu: MTU, addresses: addresses(), mark: MARK };
        let host = HostTun::set_up(&plan)?;
        let problems = wrong_ways(host.tun.link.index)?;
        host.remove()?;
        Ok(problems)
    })?
}

/// The host has no other way out than the TUN: marked packets have none.
fn wrong_ways(tun: u32) -> anyhow::Result<Vec<String>> {
    let mut netlink = Netlink::open()?;
    let mut problems = Vec::new();
    for destination in of_this_kernel(OUTSIDE) {
        let plain = RouteProbe {
            destination: destination.parse().expect("a constant"),
            source: None,
            mark: 0,
            port: None,
        };
        let dns = RouteProbe { port: Some((Transport::Udp, 53)), ..plain };
        let marked = RouteProbe { mark: MARK, ..plain };
        for (what, probe, expected) in [("plain", plain, true), ("DNS", dns, true), ("marked", marked, false)]
        {
            let into_tun =
                matches!(netlink.probe(&probe)?, RouteAnswer::Device { index, .. } if index == tun);
            if into_tun != expected {
                let way = if into_tun { "goes into the TUN" } else { "goes past the TUN" };
                problems.push(format!("{what} traffic to {destination} {way}"));
            }
        }
    }
    Ok(problems)
}
