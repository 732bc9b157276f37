//! Gates in front of real pods, with somebody outside as the witness.

mod frames;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use ipnet::IpNet;

use super::*;
use crate::naming::Owner;
use crate::netns::NetNs;
use crate::nft::{Change, Family, Found, Nft, Table};
use crate::testing::{ip, is_root};

const LIMIT: Duration = Duration::from_secs(20);
const OUTSIDE: [&str; 2] = ["203.0.113.2", "2001:db8::2"];
const POD: [&str; 2] = ["10.244.1.2", "fd00:244::1:2"];
const NEIGHBOUR: [&str; 2] = ["10.244.1.3", "fd00:244::1:3"];
const HOST: [&str; 2] = ["10.244.1.1", "fd00:244::1:1"];

/// Two pods behind a host that forwards, and somebody outside who knows the way to them.
struct Lab {
    host: NetNs,
    outside: NetNs,
    pod: NetNs,
    neighbour: NetNs,
    nft: Nft,
}

fn owner() -> Owner {
    Owner { container_id: "c1".into(), ifname: "eth0".into() }
}

fn cluster() -> [IpNet; 3] {
    ["10.244.0.0/16", "10.96.0.0/12", "fd00:244::/32"].map(|network| network.parse().unwrap())
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Lab {
    fn new() -> Self {
        let [host, outside, pod, neighbour] = std::array::from_fn(|_| NetNs::create().unwrap());
        for namespace in [&host, &outside, &pod, &neighbour] {
            ip(namespace, "link set lo up");
        }
        join(
            &host,
            "up0",
            ["203.0.113.1/24", "2001:db8::1/64"],
            &outside,
            ["203.0.113.2/24", "2001:db8::2/64"],
        );
        for (namespace, device, own) in [(&pod, "vethp", POD), (&neighbour, "vethn", NEIGHBOUR)] {
            let [v4, v6] = own;
            join(&host, device, HOST, namespace, own);
            for (gateway, own) in HOST.into_iter().zip([v4, v6]) {
                ip(namespace, &format!("route add {gateway} dev eth0"));
                ip(namespace, &format!("route add default via {gateway} dev eth0"));
                ip(&host, &format!("route add {own} dev {device}"));
            }
        }
        for (gateway, network) in [("203.0.113.1", "10.244.0.0/16"), ("2001:db8::1", "fd00:244::/32")] {
            ip(&outside, &format!("route add {network} via {gateway}"));
        }
        let forward = || -> io::Result<()> {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        };
        host.run(forward).unwrap().unwrap();
        let nft = Nft::open_in(&host).unwrap().unwrap();
        Self { host, outside, pod, neighbour, nft }
    }

    /// With the pod's gate and the node's table.
    fn gated() -> Self {
        let mut lab = Self::new();
        let table = lab.gate();
        let services = ["10.96.0.0/12".parse().unwrap()];
        let node = node_table(&POD.map(address), &cluster(), &services, &[], false);
        lab.nft.apply(&[Change::Replace(&table), Change::Replace(&node)]).unwrap();
        lab
    }

    fn gate(&self) -> Table {
        let peer = self.host.run(|| find_peer(&self.pod, "eth0")).unwrap().unwrap();
        let (owner, cluster) = (owner(), cluster());
        let (device, addresses) = (peer.device.as_str(), peer.addresses.as_slice());
        Gate { owner: &owner, device, addresses, cluster: &cluster, owned: false }.table()
    }

    /// Packets that the gate, or the node's table, refused.
    fn refused(&self, family: &str, table: &str) -> u64 {
        counted(&self.host, family, table, REFUSED)
    }

    fn refused_by_gate(&self) -> u64 {
        self.refused("netdev", &gate_name(&owner()))
    }
}

/// Packets that a chain counted.
fn counted(namespace: &NetNs, family: &str, table: &str, chain: &str) -> u64 {
    let run =
        || std::process::Command::new("nft").args(["-j", "list", "chain", family, table, chain]).output();
    let output = namespace.run(run).unwrap().unwrap();
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rules = document["nftables"].as_array().unwrap().iter().filter_map(|object| object.get("rule"));
    let expressions = rules.filter_map(|rule| rule["expr"].as_array()).flatten();
    expressions.filter_map(|expression| expression["counter"]["packets"].as_u64()).sum()
}

/// A pair of devices: `device` here, `eth0` there.
fn join(host: &NetNs, device: &str, here: [&str; 2], there: &NetNs, addresses: [&str; 2]) {
    let fd = there.as_fd().as_raw_fd();
    ip(
        host,
        &format!("link add {device} type veth peer name eth0 netns /proc/{}/fd/{fd}", std::process::id()),
    );
    for (namespace, name, addresses) in [(host, device, here), (there, "eth0", addresses)] {
        ip(namespace, &format!("link set {name} up"));
        for address in addresses {
            ip(namespace, &format!("addr add {address} dev {name} nodad"));
        }
    }
}

fn udp(namespace: &NetNs, ip: &str, port: u16) -> UdpSocket {
    let socket = namespace.run(|| UdpSocket::bind(SocketAddr::new(address(ip), port))).unwrap().unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

fn listen(namespace: &NetNs, ip: &str) -> (TcpListener, SocketAddr) {
    let listener = namespace.run(|| TcpListener::bind(SocketAddr::new(address(ip), 0))).unwrap().unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

fn connect(namespace: &NetNs, to: SocketAddr) -> io::Result<TcpStream> {
    namespace.run(|| TcpStream::connect_timeout(&to, LIMIT)).unwrap()
}

/// Octets both ways, and a close in each order.
fn talk(mut client: TcpStream, listener: &TcpListener) {
    use std::io::{Read, Write};
    let (mut server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
    }
    for _ in 0..3 {
        client.write_all(b"ask").unwrap();
        server.read_exact(&mut [0; 3]).unwrap();
        server.write_all(b"answer").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
    }
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    server.write_all(&vec![7; 200_000]).unwrap();
    drop(server);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 200_000);
}

/// What was sent reached the receiver.
fn arrives(from: &UdpSocket, to: &UdpSocket, octets: &[u8]) {
    from.send_to(octets, to.local_addr().unwrap()).unwrap();
    let mut buffer = vec![0; 70_000];
    let length = to.recv(&mut buffer).unwrap();
    assert_eq!(buffer[..length], *octets);
}

/// Nothing waits in the socket, after what was sent later has arrived elsewhere.
fn is_empty(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).unwrap();
    let empty = socket.recv(&mut [0; 9]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    socket.set_nonblocking(false).unwrap();
    empty
}

#[test]
fn the_other_end_is_found_by_what_the_kernel_says() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    ip(&lab.host, "link set vethp name other");
    let find = |namespace: &NetNs| lab.host.run(|| find_peer(namespace, "eth0")).unwrap();
    let peer = find(&lab.pod).unwrap();
    assert_eq!(peer.device, "other");
    let mac = ip(&lab.pod, "-o link show dev eth0");
    for own in POD.map(address) {
        assert!(peer.addresses.contains(&own), "{peer:?}, {mac}");
    }
    assert!(peer.addresses.iter().any(|ip| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())));
    // Of another namespace's pod.
    let error = lab.outside.run(|| find_peer(&lab.pod, "eth0")).unwrap().unwrap_err();
    assert!(matches!(error, PeerError::Elsewhere { .. }), "{error}");
    // The other end stands in the pod itself.
    let alone = NetNs::create().unwrap();
    ip(&alone, "link add eth0 type veth peer name eth1");
    let error = find(&alone).unwrap_err();
    assert!(matches!(error, PeerError::Elsewhere { .. }), "{error}");
    let error = find(&NetNs::create().unwrap()).unwrap_err();
    assert!(matches!(error, PeerError::NoInterface { .. }), "{error}");
    let flat = NetNs::create().unwrap();
    let fd = flat.as_fd().as_raw_fd();
    let words = "type macvlan mode bridge";
    ip(&lab.host, &format!("link add link up0 name eth0 netns /proc/{}/fd/{fd} {words}", std::process::id()));
    let error = find(&flat).unwrap_err();
    assert!(error.to_string().contains("is a macvlan, not one end of a veth pair"), "{error}");
}

#[test]
fn gate_and_node_table_read_back_as_they_were_made() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::gated();
    let wanted = lab.gate();
    assert_eq!(lab.nft.table(Family::Netdev, &wanted.name).unwrap(), Found::Table(wanted));
    let services = ["10.96.0.0/12".parse().unwrap()];
    let node = node_table(&POD.map(address), &cluster(), &services, &[], false);
    assert_eq!(lab.nft.table(Family::Inet, NODE_TABLE).unwrap(), Found::Table(node));
}

#[test]
fn a_pod_reaches_the_cluster_and_nobody_outside() {
    if !is_root() {
        return;
    }
    let lab = Lab::gated();
    for ((pod, neighbour), outside) in POD.into_iter().zip(NEIGHBOUR).zip(OUTSIDE) {
        let (listener, at) = listen(&lab.neighbour, neighbour);
        talk(connect(&lab.pod, at).unwrap(), &listener);
        let (listener, at) = listen(&lab.pod, pod);
        talk(connect(&lab.neighbour, at).unwrap(), &listener);
        let (from, to) = (udp(&lab.pod, pod, 0), udp(&lab.neighbour, neighbour, 0));
        let witness = udp(&lab.outside, outside, 0);
        let before = lab.refused_by_gate();
        from.send_to(b"out", witness.local_addr().unwrap()).unwrap();
        // DNS is the TUN's, also to a pod of the cluster.
        from.send_to(b"name", SocketAddr::new(address(neighbour), 53)).unwrap();
        arrives(&from, &to, &vec![1; 60_000]);
        assert!(is_empty(&witness));
        assert_eq!(lab.refused_by_gate() - before, 2, "{outside}");
        // The node reaches its pod, and the pod answers.
        let node = udp(&lab.host, if pod.contains(':') { HOST[1] } else { HOST[0] }, 0);
        arrives(&node, &from, b"probe");
        arrives(&from, &to, b"still");
    }
}

#[test]
fn who_speaks_to_a_pod_from_outside_is_answered() {
    if !is_root() {
        return;
    }
    let lab = Lab::gated();
    for (pod, outside) in POD.into_iter().zip(OUTSIDE) {
        let (listener, at) = listen(&lab.pod, pod);
        talk(connect(&lab.outside, at).unwrap(), &listener);
        drop(listener);
        // The truth comes back too: nobody listens.
        let error = connect(&lab.outside, at).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
        let (server, client) = (udp(&lab.pod, pod, 0), udp(&lab.outside, outside, 0));
        arrives(&client, &server, b"ask");
        arrives(&server, &client, b"answer");
        // In fragments.
        arrives(&client, &server, &[2; 5_000]);
        arrives(&server, &client, &vec![3; 30_000]);
        // To nobody else, and to no other port of the pod's.
        let other = udp(&lab.pod, pod, 0);
        other.send_to(b"out", client.local_addr().unwrap()).unwrap();
        arrives(&server, &client, b"answer");
        assert!(is_empty(&client));
        // A closed port says so.
        let closed = server.local_addr().unwrap();
        drop(server);
        client.connect(closed).unwrap();
        client.send(b"ask").unwrap();
        let error = client.recv(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
        for size in [56, 4_000] {
            let words = format!("-c 1 -w 10 -s {size} {pod}");
            let ping = || std::process::Command::new("ping").args(words.split(' ')).output();
            let output = lab.outside.run(ping).unwrap().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    }
}

/// What a pod may send that can write frames itself: each is refused, by the gate, and counted.
#[test]
fn frames_of_a_hostile_pod_are_refused() {
    if !is_root() {
        return;
    }
    let lab = Lab::gated();
    let frames = frames::Frames::open(&lab.pod, &lab.host, "vethp");
    let neighbour = udp(&lab.neighbour, NEIGHBOUR[0], 7_000);
    for ((what, frame), number) in frames::hostile().into_iter().zip(1..) {
        let before = lab.refused_by_gate();
        frames.send(&frame);
        // One after it that may pass, so that this one has been decided on.
        frames.send(&frames::to_neighbour());
        assert_eq!(neighbour.recv(&mut [0; 9]).unwrap(), 4);
        assert_eq!(frames.passed(), number, "{what} passed");
        assert!(lab.refused_by_gate() > before, "{what} is not counted");
    }
}

/// The gate lets through what goes to the cluster's networks; where that is the node itself, the node's table decides.
#[test]
fn the_node_takes_no_tunnel_from_a_pod() {
    if !is_root() {
        return;
    }
    let lab = Lab::gated();
    for (pod, host) in POD.into_iter().zip(HOST) {
        const VXLAN: u16 = 8_472;
        let tunnel = udp(&lab.host, host, VXLAN);
        let (from, before) = (udp(&lab.pod, pod, 0), lab.refused("inet", NODE_TABLE));
        from.send_to(b"frame", tunnel.local_addr().unwrap()).unwrap();
        frames::until(|| lab.refused("inet", NODE_TABLE) == before + 1, host);
        assert!(is_empty(&tunnel));
        // What the node asked for it takes.
        arrives(&tunnel, &from, b"ask");
        arrives(&from, &tunnel, b"answer");
        let (listener, at) = listen(&lab.host, host);
        talk(connect(&lab.pod, at).unwrap(), &listener);
    }
}

/// A gate alone would let a pod send to a service whose addresses are outside: it does not see where that leads.
#[test]
fn a_service_does_not_lead_out_of_the_cluster() {
    if !is_root() {
        return;
    }
    let mut lab = Lab::gated();
    let rules = "table ip services { chain pre { type nat hook prerouting priority dstnat;\n\
                 ip daddr 10.96.0.7 udp dport 7000 dnat to 203.0.113.2:7000\n\
                 ip daddr 10.96.0.8 udp dport 7000 dnat to 10.244.1.3:7000\n}\n}\n";
    frames::nft(&lab.host, rules);
    let outside = udp(&lab.outside, OUTSIDE[0], 7_000);
    let inside = udp(&lab.neighbour, NEIGHBOUR[0], 7_000);
    let from = udp(&lab.pod, POD[0], 0);
    let before = lab.refused("inet", NODE_TABLE);
    from.send_to(b"out", "10.96.0.7:7000").unwrap();
    frames::until(|| lab.refused("inet", NODE_TABLE) == before + 1, "the service that leads out");
    from.send_to(b"in", "10.96.0.8:7000").unwrap();
    assert_eq!(inside.recv(&mut [0; 9]).unwrap(), 2);
    assert!(is_empty(&outside));
    // Of nodes that are named a service may lead to one, as that of the API server does; nobody gets there without it.
    let services = ["10.96.0.0/12".parse().unwrap()];
    let node =
        node_table(&POD.map(address), &cluster(), &services, &["203.0.113.2/32".parse().unwrap()], false);
    lab.nft.apply(&[Change::Replace(&node)]).unwrap();
    let from = udp(&lab.pod, POD[0], 0);
    from.send_to(b"in", "10.96.0.7:7000").unwrap();
    assert_eq!(outside.recv(&mut [0; 9]).unwrap(), 2);
    let before = lab.refused_by_gate();
    from.send_to(b"out", "203.0.113.2:7000").unwrap();
    frames::until(|| lab.refused_by_gate() == before + 1, "the node without the service");
}

/// What leads past a gate: tc takes the packet first, and another device receives it (the `bandwidth` plugin's way).
#[test]
fn a_packet_led_past_the_gate_meets_the_nodes_table() {
    if !is_root() {
        return;
    }
    let lab = Lab::gated();
    ip(&lab.host, "link add ifb0 type ifb");
    ip(&lab.host, "link set ifb0 up");
    frames::tc(&lab.host, "qdisc add dev vethp clsact");
    frames::tc(
        &lab.host,
        "filter add dev vethp ingress protocol all u32 match u32 0 0 action mirred egress redirect dev ifb0",
    );
    for (pod, outside) in POD.into_iter().zip(OUTSIDE) {
        let (from, witness) = (udp(&lab.pod, pod, 0), udp(&lab.outside, outside, 0));
        let before = lab.refused("inet", NODE_TABLE);
        from.send_to(b"out", witness.local_addr().unwrap()).unwrap();
        frames::until(|| lab.refused("inet", NODE_TABLE) == before + 1, outside);
        assert!(is_empty(&witness));
        arrives(&witness, &from, b"ask");
        arrives(&from, &witness, b"answer");
    }
}

#[test]
fn a_name_leads_to_its_gate() {
    assert_eq!(gate_name(&owner()), "tunproxy-c1-eth0");
    let long = Owner { container_id: "c".repeat(crate::naming::MAX_CONTAINER_ID), ifname: "e".repeat(15) };
    // NFT_NAME_MAXLEN.
    assert!(gate_name(&long).len() < 256);
}
