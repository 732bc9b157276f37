//! A device that lost its queues serves again at once. In a process of its own: a child that another test starts holds
//! this one's descriptors until it calls `exec`, and with them the queue that is meant to be gone.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tunproxy_linux_net::naming::Owner;
use tunproxy_linux_net::tun::{self, TunSpec};
use tunproxy_linux_net::{NetNs, Netlink};

/// Enough for the deferred work, which is due up to a second after the carrier changed, to fall between two steps.
const ROUNDS: usize = 300;

#[test]
fn the_first_packet_after_a_restart_arrives() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI must run these tests as root");
        eprintln!("SKIPPED: this test needs root");
        return;
    }
    let namespace = NetNs::create().unwrap();
    let dropped = namespace.run(|| {
        make_and_leave();
        let mut netlink = Netlink::open().unwrap();
        let socket = UdpSocket::bind("10.5.0.1:0").unwrap();
        // On this thread, one step right after the other.
        let drops = |_: &usize| {
            let tun = tun::reopen(&mut netlink, "tun0", 1).unwrap();
            socket.send_to(b"hello", "10.5.0.2:7").unwrap();
            !is_readable(&tun.queues[0])
        };
        (0..ROUNDS).filter(drops).count()
    });
    assert_eq!(dropped.unwrap(), 0, "packets of {ROUNDS} were dropped");
}

/// A persistent TUN with an address, up, whose queues are closed again.
fn make_and_leave() {
    let mut netlink = Netlink::open().unwrap();
    let owner = Owner { container_id: "c1".into(), ifname: "eth0".into() };
    let spec = TunSpec { name: "tun0", queues: 1, mtu: 1500, persistent: Some(&owner) };
    let tun = tun::create(&mut netlink, &spec).unwrap();
    netlink.add_address(&tun.link, "10.5.0.1/24".parse().unwrap()).unwrap();
    netlink.set_link_up(&tun.link).unwrap();
}

fn is_readable(queue: &OwnedFd) -> bool {
    // The packet is in the ring when the send has returned, or it was dropped.
    let limit = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(queue, PollFlags::IN)], Some(&limit)).unwrap() > 0
}
