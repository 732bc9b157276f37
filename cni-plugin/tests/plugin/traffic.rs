//! Packets: into the queue that the agent got, and back into the pod's sockets.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tunproxy_linux_net::{NetNs, tun};
use tunproxy_testkit::{Namespace, root_or_skip, wait};

use crate::node::{Node, pod};

/// Bytes of the virtio-net header before each packet.
const HEADER: usize = 10;

/// Reads the UDP packet with this source port from any of the queues, past what else there is: what the kernel says on
/// its own, what was sent twice. `None` when none comes for a moment.
fn read_udp(queues: &[OwnedFd], source: u16) -> Option<(usize, Vec<u8>)> {
    let moment = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    loop {
        let mut fds: Vec<PollFd<'_>> = queues.iter().map(|queue| PollFd::new(queue, PollFlags::IN)).collect();
        if poll(&mut fds, Some(&moment)).unwrap() == 0 {
            return None;
        }
        let ready = fds.iter().position(|fd| fd.revents().contains(PollFlags::IN)).unwrap();
        let mut packet = vec![0; 65_536];
        let length = rustix::io::read(&queues[ready], &mut packet).unwrap();
        packet.truncate(length);
        let (protocol, header) =
            if packet[HEADER] >> 4 == 4 { (packet[HEADER + 9], 20) } else { (packet[HEADER + 6], 40) };
        if protocol == 17 && packet[HEADER + header..HEADER + header + 2] == source.to_be_bytes() {
            return Some((ready, packet));
        }
    }
}

/// The answer of an echo server: addresses and ports exchanged, which no checksum notices.
fn turn_round(packet: &mut [u8]) {
    let ip = &mut packet[HEADER..];
    let (first, width, header) = if ip[0] >> 4 == 4 { (12, 4, 20) } else { (8, 16, 40) };
    for at in 0..width {
        ip.swap(first + at, first + width + at);
    }
    for at in 0..2 {
        ip.swap(header + at, header + 2 + at);
    }
}

/// One datagram from the pod to the far end and back, by the agent's queues.
fn echo(pod: &Namespace, queues: &[OwnedFd], local: &str, remote: &str) {
    let socket: UdpSocket = pod.udp_bind(local.parse().unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    socket.connect(remote).unwrap_or_else(|error| panic!("{remote}: {error}"));
    let port = socket.local_addr().unwrap().port();
    // Sent again when it does not come: a child that another test starts holds a copy of our descriptors until it calls
    // exec, and a queue that is held so takes its share of the packets.
    let (queue, mut packet) = wait::until("the packet in a queue", Duration::from_mins(1), || {
        socket.send(b"there and back").unwrap();
        read_udp(queues, port)
    })
    .unwrap();
    turn_round(&mut packet);
    rustix::io::write(&queues[queue], &packet).unwrap();
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer).unwrap_or_else(|error| panic!("{remote}: {error}"));
    assert_eq!(&answer[..length], b"there and back");
}

#[test]
fn datagrams_of_a_chained_pod_go_there_and_back() {
    if !root_or_skip() {
        return;
    }
    for kind in ["ptp", "bridge"] {
        let (node, pod) = (Node::new(), pod());
        // As strict as a distribution may set it: ADD has to relax what would drop the answers.
        pod.sysctl("net.ipv4.conf.all.rp_filter", "1").unwrap();
        pod.sysctl("net.ipv4.conf.default.rp_filter", "1").unwrap();
        let agent = node.agent();
        node.chain_add(kind, "c1", &pod).1.succeeded();
        let queues = agent.take("c1", "eth0").queues;
        echo(&pod, &queues, "0.0.0.0:0", "203.0.113.9:7");
        echo(&pod, &queues, "[::]:0", "[2001:db8::9]:7");
        // The cluster's own resolver, which is reached by eth0 but for its port.
        echo(&pod, &queues, "0.0.0.0:0", "10.96.0.10:53");
    }
}

#[test]
fn datagrams_of_a_standalone_pod_go_there_and_back() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    node.call("ADD", "c1", &pod).config(&node.standalone_config()).run().succeeded();
    let queues = agent.take("c1", "eth0").queues;
    echo(&pod, &queues, "0.0.0.0:0", "203.0.113.9:7");
    echo(&pod, &queues, "[::]:0", "[2001:db8::9]:7");
}

/// The agent is gone, its queues with it: the pod's packets go nowhere, although the node would take them.
#[test]
fn without_the_agents_queues_nothing_leaves_by_the_main_interface() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    node.chain_add("ptp", "c1", &pod).1.succeeded();
    drop(agent.take("c1", "eth0"));
    node.host.ip("addr add 203.0.113.9/32 dev lo").unwrap();
    let outside = node.host.udp_bind("0.0.0.0:9".parse().unwrap()).unwrap();
    outside.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let inside = pod.udp_bind("0.0.0.0:0".parse().unwrap()).unwrap();
    for _ in 0..100 {
        let _ = inside.send_to(b"leak", "203.0.113.9:9");
    }
    // By the same wire, to a cluster address: what comes before it would have leaked.
    inside.send_to(b"allowed", "10.77.1.1:9").unwrap();
    let mut first = [0; 16];
    let length = outside.recv(&mut first).unwrap();
    assert_eq!(String::from_utf8_lossy(&first[..length]), "allowed");
}

/// An agent that comes back serves the same device without the plugin.
#[test]
fn a_device_that_lost_its_agent_is_served_again() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    node.chain_add("ptp", "c1", &pod).1.succeeded();
    let attachment = agent.take("c1", "eth0").attachment;
    let namespace = NetNs::open(&attachment.netns_path).unwrap();
    let tun = tun::reopen_in(&namespace, &attachment.tun_name, attachment.queues).unwrap();
    echo(&pod, &tun.queues, "0.0.0.0:0", "203.0.113.9:7");
    echo(&pod, &tun.queues, "[::]:0", "[2001:db8::9]:7");
}
