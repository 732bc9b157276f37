//! A node and the world outside it, each a network namespace, joined by a veth pair or an emulated link.
//!
//! Nothing ever runs in the host's own namespace. The pods' networks are routed back to the node, so that the plain
//! routed path works too and can serve as the honest twin of ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::Result;

use crate::link::{LinkConfig, LinkEmulator};
use crate::netns::Namespace;

pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const NODE_V6: Ipv6Addr = v6(0x100, 1);
pub const POD_NETWORK_V4: &str = "10.244.0.0/16";
pub const POD_NETWORK_V6: &str = "fd00:244::/48";
/// Answered by ICMP outside: "host unreachable" for IPv4, "no route" for IPv6.
pub const UNREACHABLE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);
pub const UNREACHABLE_V6: Ipv6Addr = v6(0x200, 0x66);
/// Swallowed outside without an answer.
pub const BLACK_HOLE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);
pub const BLACK_HOLE_V6: Ipv6Addr = v6(0x200, 0x77);

/// The node's interface towards the outside, and the other end of it.
pub const UPLINK: &str = "up0";
pub const OUTSIDE: &str = "out0";

const fn v6(net: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host)
}

/// A machine outside: a role with an IPv4 and an IPv6 address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// Also the node's default gateway.
    Web,
    OtherWeb,
    Socks,
    Dns,
    Ssh,
    Iperf,
    /// Not on the node's link: reached by the default route only.
    Far,
}

impl Host {
    const ALL: [Self; 7] =
        [Self::Web, Self::OtherWeb, Self::Socks, Self::Dns, Self::Ssh, Self::Iperf, Self::Far];

    pub const fn v4(self) -> Ipv4Addr {
        if self.is_on_link() {
            Ipv4Addr::new(198, 51, 100, self.number())
        } else {
            Ipv4Addr::new(203, 0, 113, self.number())
        }
    }

    pub const fn v6(self) -> Ipv6Addr {
        v6(if self.is_on_link() { 0x100 } else { 0x200 }, self.number() as u16)
    }

    pub fn both(self) -> [IpAddr; 2] {
        [self.v4().into(), self.v6().into()]
    }

    const fn is_on_link(self) -> bool {
        !matches!(self, Self::Far)
    }

    const fn number(self) -> u8 {
        match self {
            Self::Web => 10,
            Self::OtherWeb => 11,
            Self::Socks => 20,
            Self::Ssh => 22,
            Self::Dns => 53,
            Self::Iperf => 100,
            Self::Far => 150,
        }
    }
}

/// What joins the node to the outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wire {
    Veth,
    /// The emulated link; `up` from the node to the outside.
    Emulated {
        up: LinkConfig,
        down: LinkConfig,
        seed: u64,
    },
}

#[derive(Debug)]
pub struct Topology {
    /// Dropped first: its thread holds the interfaces of both namespaces.
    pub link: Option<LinkEmulator>,
    pub node: Arc<Namespace>,
    pub outside: Arc<Namespace>,
}

impl Topology {
    pub fn new(wire: Wire) -> Result<Self> {
        let node = Namespace::new("node")?;
        let outside = Namespace::new("outside")?;
        let link = join(&node, &outside, wire)?;
        set_up_node(&node)?;
        set_up_outside(&outside)?;
        Ok(Self { link, node: Arc::new(node), outside: Arc::new(outside) })
    }

    /// A namespace for a pod, without any interface but `lo`, that asks the outside resolver.
    pub fn pod_namespace(&self, label: &str) -> Result<Arc<Namespace>> {
        let pod = Namespace::new(label)?;
        pod.set_resolver(&[Host::Dns.v4().into()])?;
        Ok(Arc::new(pod))
    }
}

fn join(node: &Namespace, outside: &Namespace, wire: Wire) -> Result<Option<LinkEmulator>> {
    match wire {
        Wire::Veth => {
            node.ip(&format!("link add {UPLINK} type veth peer name {OUTSIDE} netns {}", outside.name()))?;
            node.ip(&format!("link set {UPLINK} up"))?;
            outside.ip(&format!("link set {OUTSIDE} up"))?;
            Ok(None)
        }
        Wire::Emulated { up, down, seed } => {
            LinkEmulator::start([node, outside], [UPLINK, OUTSIDE], up, down, seed).map(Some)
        }
    }
}

fn set_up_node(node: &Namespace) -> Result<()> {
    forward(node)?;
    node.ip(&format!("addr add {NODE_V4}/24 dev {UPLINK}"))?;
    node.ip(&format!("addr add {NODE_V6}/64 dev {UPLINK} nodad"))?;
    node.ip(&format!("route add default via {}", Host::Web.v4()))?;
    node.ip(&format!("route add default via {}", Host::Web.v6()))?;
    node.set_resolver(&[Host::Dns.v4().into()])
}

fn set_up_outside(outside: &Namespace) -> Result<()> {
    forward(outside)?;
    for host in Host::ALL {
        let (v4, v6, device) = if host.is_on_link() { (24, 64, OUTSIDE) } else { (32, 128, "lo") };
        outside.ip(&format!("addr add {}/{v4} dev {device}", host.v4()))?;
        outside.ip(&format!("addr add {}/{v6} dev {device} nodad", host.v6()))?;
    }
    outside.ip(&format!("route add {POD_NETWORK_V4} via {NODE_V4}"))?;
    outside.ip(&format!("route add {POD_NETWORK_V6} via {NODE_V6}"))?;
    outside.ip(&format!("route add unreachable {UNREACHABLE_V4}/32"))?;
    outside.ip(&format!("route add unreachable {UNREACHABLE_V6}/128"))?;
    outside.ip(&format!("route add blackhole {BLACK_HOLE_V4}/32"))?;
    outside.ip(&format!("route add blackhole {BLACK_HOLE_V6}/128"))?;
    // The kernel limits ICMP errors to one a second and peer; a test asks more often.
    outside.sysctl("net.ipv4.icmp_ratelimit", "0")?;
    outside.sysctl("net.ipv6.icmp.ratelimit", "0")?;
    outside.set_resolver(&[Host::Dns.v4().into()])
}

fn forward(namespace: &Namespace) -> Result<()> {
    namespace.sysctl("net.ipv4.ip_forward", "1")?;
    namespace.sysctl("net.ipv6.conf.all.forwarding", "1")
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::SocketAddr;
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::root_or_skip;

    const LIMIT: Duration = Duration::from_mins(1);

    #[test]
    fn the_node_reaches_every_host_and_sees_each_kind_of_failure() {
        if !root_or_skip() {
            return;
        }
        let topology = Topology::new(Wire::Veth).unwrap();
        for host in Host::ALL {
            for address in host.both() {
                let address = SocketAddr::new(address, 7000);
                let _listener = topology.outside.tcp_listen(address).unwrap();
                topology.node.tcp_connect(address, LIMIT).unwrap();
            }
        }
        for ip in Host::Web.both() {
            let refused = topology.node.tcp_connect(SocketAddr::new(ip, 1), LIMIT).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        }
        // An IPv6 router has only "no route" to say (RFC 4443 code 0).
        let kinds = [ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable];
        for (ip, kind) in [IpAddr::from(UNREACHABLE_V4), UNREACHABLE_V6.into()].into_iter().zip(kinds) {
            let error = topology.node.tcp_connect(SocketAddr::new(ip, 1), LIMIT).unwrap_err();
            assert_eq!(error.kind(), kind, "{ip}");
        }
        let short = Duration::from_millis(300);
        for ip in [IpAddr::from(BLACK_HOLE_V4), BLACK_HOLE_V6.into()] {
            let error = topology.node.tcp_connect(SocketAddr::new(ip, 1), short).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{ip}");
        }
    }

    #[test]
    fn the_emulated_link_loses_delays_and_still_carries_tcp() {
        if !root_or_skip() {
            return;
        }
        let lossy = LinkConfig { loss: 0.03, ..LinkConfig::lossy() };
        let topology = Topology::new(Wire::Emulated { up: lossy, down: lossy, seed: 5 }).unwrap();
        let address = SocketAddr::new(Host::Web.v4().into(), 7001);
        let listener = topology.outside.tcp_listen(address).unwrap();
        let sink = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            received
        });
        let began = Instant::now();
        let mut stream = topology.node.tcp_connect(address, LIMIT).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(20), "two delays of 10 ms");
        let payload: Vec<u8> = (0..1_000_000u32).map(|index| (index % 251) as u8).collect();
        stream.write_all(&payload).unwrap();
        drop(stream);
        assert!(sink.join().unwrap() == payload, "every byte once and in order");
        let up = topology.link.as_ref().unwrap().forward();
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        assert!(count(&up.lost) > 5 && count(&up.reordered) > 1, "{up:?}");
        assert!(count(&up.carried) > 600, "MTU-sized frames, not super-segments: {up:?}");
    }

    #[test]
    fn a_rate_limited_link_keeps_its_rate() {
        if !root_or_skip() {
            return;
        }
        let slow = LinkConfig { rate: Some(8_000_000), ..LinkConfig::default() };
        let topology =
            Topology::new(Wire::Emulated { up: slow, down: LinkConfig::default(), seed: 5 }).unwrap();
        let address = SocketAddr::new(Host::Web.v6().into(), 7002);
        let listener = topology.outside.tcp_listen(address).unwrap();
        let mut stream = topology.node.tcp_connect(address, LIMIT).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        let began = Instant::now();
        let sender = std::thread::spawn(move || stream.write_all(&vec![0; 500_000]));
        let mut received = Vec::new();
        accepted.read_to_end(&mut received).unwrap();
        sender.join().unwrap().unwrap();
        assert_eq!(received.len(), 500_000);
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(450), "half a megabyte at one a second took {took:?}");
    }
}
