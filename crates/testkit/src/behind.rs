//! A machine behind a pod: the pod's addresses move to it, and an emulated link lies between the two.
//!
//! It puts a bad link between the kernel's TCP of "the pod" and whatever owns the pod's interface: that is a TUN, which
//! neither loses nor delays. The pod's own namespace is left as a router without addresses.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::link::{LinkConfig, LinkEmulator};
use crate::netns::Namespace;

const LINK: &str = "link0";
/// The router's own addresses on the link.
const ROUTER: [&str; 2] = ["169.254.77.1", "fd00:77::1"];

#[derive(Debug)]
pub struct Behind {
    /// Dropped first: its thread holds the interfaces of both namespaces.
    pub link: LinkEmulator,
    pub namespace: Arc<Namespace>,
    /// The router's own, and the link's other end.
    _pod: Arc<Namespace>,
}

impl Behind {
    /// Moves `addresses` of `interface` in `pod` to a new namespace; `up` is the direction from there to the pod.
    pub fn new(
        pod: &Arc<Namespace>,
        interface: &str,
        addresses: &[IpAddr],
        [up, down]: [LinkConfig; 2],
        seed: u64,
    ) -> Result<Self> {
        let behind = Namespace::new("behind")?;
        let link = LinkEmulator::start([&behind, pod], [LINK, LINK], up, down, seed)?;
        let (near, far) = (hardware_address(&behind)?, hardware_address(pod)?);
        let gateways = [gateway(pod, "-4")?, gateway(pod, "-6")?];
        pod.ip(&format!("addr flush dev {interface} scope global"))?;
        become_router(pod, interface)?;
        for (router, flag) in ROUTER.into_iter().zip(["-4", "-6"]) {
            pod.ip(&format!("{flag} addr add {router} dev {LINK}{}", without_detection(flag)))?;
            let gateway = &gateways[usize::from(flag == "-6")];
            let via = gateway.as_ref().map(|ip| format!("via {ip} ")).unwrap_or_default();
            let onlink = if gateway.is_some() { " onlink" } else { "" };
            pod.ip(&format!("{flag} route replace default {via}dev {interface}{onlink}"))?;
        }
        for address in addresses {
            let (flag, bits) = if address.is_ipv4() { ("-4", 32) } else { ("-6", 128) };
            let router = ROUTER[usize::from(address.is_ipv6())];
            behind.ip(&format!("{flag} addr add {address}/{bits} dev {LINK}{}", without_detection(flag)))?;
            behind.ip(&format!("{flag} route add default via {router} dev {LINK} onlink src {address}"))?;
            pod.ip(&format!("{flag} route add {address}/{bits} dev {LINK}"))?;
            // What the link loses is to be the traffic, not the way to it.
            behind.ip(&format!("neigh replace {router} lladdr {far} dev {LINK} nud permanent"))?;
            pod.ip(&format!("neigh replace {address} lladdr {near} dev {LINK} nud permanent"))?;
            // On a link with neighbours, somebody must answer for the address that is no longer there.
            if gateways[usize::from(address.is_ipv6())].is_some() {
                pod.ip(&format!("neigh add proxy {address} dev {interface}"))?;
            }
        }
        Ok(Self { link, namespace: Arc::new(behind), _pod: Arc::clone(pod) })
    }
}

fn hardware_address(end: &Namespace) -> Result<String> {
    let links = end.ip_json(&format!("link show {LINK}"))?;
    links[0]["address"].as_str().map(ToOwned::to_owned).context("no hardware address")
}

/// A route may name an address as its source only when it is known to be nobody else's.
fn without_detection(flag: &str) -> &'static str {
    if flag == "-6" { " nodad" } else { "" }
}

/// Of the default route; an interface without neighbours has none.
fn gateway(pod: &Namespace, flag: &str) -> Result<Option<String>> {
    let routes = pod.ip_json(&format!("{flag} route show default"))?;
    let route =
        routes.as_array().and_then(|routes| routes.first()).context("the pod has no default route")?;
    Ok(route["gateway"].as_str().map(ToOwned::to_owned))
}

fn become_router(pod: &Namespace, interface: &str) -> Result<()> {
    pod.sysctl("net.ipv4.ip_forward", "1")?;
    pod.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    for scope in ["all", interface, LINK] {
        pod.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "0")?;
    }
    pod.sysctl(&format!("net.ipv4.conf.{interface}.proxy_arp"), "1")?;
    pod.sysctl(&format!("net.ipv6.conf.{interface}.proxy_ndp"), "1")
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use super::*;
    use crate::{CniNetwork, Host, MainPlugin, PodIdentity, Topology, Wire, root_or_skip};

    #[test]
    fn the_machine_behind_has_the_pods_addresses_and_its_link_is_in_the_way() {
        if !root_or_skip() {
            return;
        }
        let topology = Topology::new(Wire::Veth).unwrap();
        let network = Arc::new(CniNetwork::new("behind", None).unwrap().with_main(MainPlugin::Ptp, 7));
        let pod = topology.pod_namespace("pod").unwrap();
        let identity = PodIdentity::new("default", "pod", &[]);
        let attachment = network.attach(&topology.node, &pod, &identity).unwrap();
        let slow = LinkConfig { delay: Duration::from_millis(5), ..LinkConfig::default() };
        let behind = Behind::new(&pod, "eth0", &attachment.addresses(), [slow; 2], 3).unwrap();
        for ip in Host::Web.both() {
            let listener = topology.outside.tcp_listen(SocketAddr::new(ip, 8_000)).unwrap();
            let to = listener.local_addr().unwrap();
            let stream = behind.namespace.tcp_connect(to, Duration::from_mins(1)).unwrap();
            let (_, from) = listener.accept().unwrap();
            assert_eq!(from, stream.local_addr().unwrap());
            assert!(attachment.addresses().contains(&from.ip()), "{from}");
        }
        for direction in [behind.link.forward(), behind.link.back()] {
            assert!(direction.carried.load(Ordering::Relaxed) > 4, "{direction:?}");
        }
    }
}
