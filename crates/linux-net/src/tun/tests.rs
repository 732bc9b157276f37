use super::*;
use crate::testing::{ip, ip_json, is_root};

fn owner() -> Owner {
    Owner { container_id: "c0ffee".into(), ifname: "eth0".into() }
}

fn make(namespace: &NetNs, persistent: bool, queues: u16) -> Tun {
    let owner = owner();
    let spec = TunSpec { name: "tun0", queues, mtu: 1450, persistent: persistent.then_some(&owner) };
    namespace.run(|| create(&mut Netlink::open().unwrap(), &spec)).unwrap().unwrap()
}

#[test]
fn a_persistent_tun_is_as_the_design_says() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create().unwrap();
    let tun = make(&namespace, true, 3);
    assert_eq!(tun.queues.len(), 3);
    let shown = &ip_json(&namespace, "-d link show dev tun0")[0];
    assert_eq!((&shown["mtu"], &shown["txqlen"]), (&1450.into(), &5000.into()));
    assert_eq!((&shown["ifalias"], &shown["inet6_addr_gen_mode"]), (&owner().alias().into(), &"none".into()));
    let data = &shown["linkinfo"]["info_data"];
    for (key, value) in [("pi", false), ("vnet_hdr", true), ("multi_queue", true), ("persist", true)] {
        assert_eq!(data[key], value, "{key}: {data}");
    }
    assert_eq!((&data["type"], &data["user"]), (&"tun".into(), &"root".into()));
    assert_eq!(
        tun.link.tun.unwrap(),
        TunInfo {
            is_tun: true,
            persistent: true,
            owner: Some(0),
            multi_queue: true,
            vnet_header: true,
            queues: tun.link.tun.unwrap().queues,
        }
    );
}

#[test]
fn it_outlives_its_descriptors_and_opens_again() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create().unwrap();
    drop(make(&namespace, true, 2));
    let tun = reopen_in(&namespace, "tun0", 2).unwrap();
    assert_eq!(tun.queues.len(), 2);
    let flags = rustix::fs::fcntl_getfl(&tun.queues[0]).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn a_passing_tun_ends_with_its_descriptors() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create().unwrap();
    drop(make(&namespace, false, 2));
    let error = reopen_in(&namespace, "tun0", 1).unwrap_err();
    assert_eq!(error.to_string(), "there is no TUN tun0 in this namespace");
}

#[test]
fn an_existing_interface_is_neither_taken_nor_changed() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create().unwrap();
    ip(&namespace, "tuntap add dev tun0 mode tun");
    let before = ip(&namespace, "-d -o link show dev tun0");
    let spec = TunSpec { name: "tun0", queues: 1, mtu: 1500, persistent: None };
    let error = namespace.run(|| create(&mut Netlink::open().unwrap(), &spec)).unwrap().unwrap_err();
    assert!(matches!(error, TunError::Exists { .. }), "{error}");
    assert_eq!(ip(&namespace, "-d -o link show dev tun0"), before);
}

#[test]
fn a_tap_is_not_reopened() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create().unwrap();
    ip(&namespace, "tuntap add dev tun0 mode tap");
    assert!(matches!(reopen_in(&namespace, "tun0", 1).unwrap_err(), TunError::NotATun { .. }));
}

/// The device answers packets by kernel offload: a datagram arrives behind a header of ten bytes.
#[test]
fn packets_come_with_the_header() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create().unwrap();
    let tun = make(&namespace, false, 1);
    ip(&namespace, "addr add 10.5.0.1/24 dev tun0");
    ip(&namespace, "link set tun0 up");
    send_udp(&namespace);
    let packet = read_packet(&tun.queues[0]).expect("a packet within five seconds");
    assert_eq!(packet.len(), VNET_HEADER + 20 + 8 + 5);
    assert_eq!(packet[VNET_HEADER] >> 4, 4);
    assert_eq!(&packet[packet.len() - 5..], b"hello");
}

fn send_udp(namespace: &NetNs) {
    let send = || {
        let socket = std::net::UdpSocket::bind("10.5.0.1:0").unwrap();
        socket.send_to(b"hello", "10.5.0.2:7").unwrap();
    };
    namespace.run(send).unwrap();
}

fn read_packet(queue: &OwnedFd) -> Option<Vec<u8>> {
    let mut fds = [rustix::event::PollFd::new(queue, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    if rustix::event::poll(&mut fds, Some(&limit)).unwrap() == 0 {
        return None;
    }
    let mut packet = vec![0; 2048];
    let length = rustix::io::read(queue, &mut packet).unwrap();
    packet.truncate(length);
    Some(packet)
}

#[test]
fn a_descriptor_is_adopted_with_its_header() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create().unwrap();
    let mut tun = make(&namespace, false, 1);
    let adopted = adopt(tun.queues.remove(0)).unwrap();
    assert_eq!((adopted.name.as_str(), adopted.vnet_header, adopted.multi_queue), ("tun0", true, true));
}

#[test]
fn what_is_no_tun_is_not_adopted() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(adopt(file.into()).unwrap_err(), TunError::NotATun { .. }));
}

#[test]
fn bad_names_and_counts_are_named() {
    let mut cases = Vec::new();
    for name in ["", "a/b", "..", "sixteen-bytes-xx", "a b"] {
        cases.push(check(name, 1).unwrap_err().to_string());
    }
    assert!(cases.iter().all(|text| text.contains("is not an interface name")), "{cases:?}");
    assert!(check("tun0", 0).is_err());
    assert!(check("tun0", MAX_QUEUES + 1).is_err());
}

use crate::netlink::TunInfo;
