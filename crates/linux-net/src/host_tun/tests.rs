use std::time::{Duration, Instant};

use super::*;
use crate::netns::NetNs;
use crate::testing::{Pod, ip, ip_fails, is_root, snapshot};

fn plan() -> HostPlan {
    HostPlan {
        name: "tun9".into(),
        queues: 2,
        mtu: 1500,
        addresses: vec!["198.18.0.1/30".parse().unwrap(), "fdfe::1/126".parse().unwrap()],
        mark: 0x7474,
    }
}

fn inside<T: Send>(namespace: &NetNs, work: impl FnOnce() -> T + Send) -> T {
    namespace.run(work).unwrap()
}

#[test]
fn everything_but_the_marked_goes_into_the_tun_and_removal_is_complete() {
    if !is_root() {
        return;
    }
    let pod = Pod::new(true);
    inside(&pod.pod, || fs::write("/proc/sys/net/ipv4/conf/eth0/rp_filter", "1").unwrap());
    let before = snapshot(&pod.pod);
    let host = inside(&pod.pod, || HostTun::set_up(&plan()).unwrap());
    assert_eq!(host.tun.queues.len(), 2);
    let ways = [
        ("203.0.113.9", "dev tun9"),
        ("203.0.113.9 mark 0x7474", "dev eth0"),
        ("10.77.0.1", "dev eth0"),
        ("2001:db8::1", "dev tun9"),
        ("2001:db8::1 mark 0x7474", "dev eth0"),
    ];
    for (words, device) in ways {
        let text = ip(&pod.pod, &format!("route get {words}"));
        assert!(text.contains(device), "{words}: {text}");
    }
    let filter =
        || inside(&pod.pod, || fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/rp_filter").unwrap());
    assert_eq!(filter(), "2\n");
    inside(&pod.pod, || host.remove().unwrap());
    assert_eq!(snapshot(&pod.pod), before);
    assert_eq!(filter(), "1\n");
}

#[test]
fn a_device_that_was_there_stays_without_our_addresses() {
    if !is_root() {
        return;
    }
    let pod = Pod::new(true);
    ip(&pod.pod, "tuntap add dev tun9 mode tun");
    // Or the kernel gives it an IPv6 address once a queue is open.
    ip(&pod.pod, "link set tun9 addrgenmode none");
    ip(&pod.pod, "addr add 198.18.0.1/30 dev tun9");
    ip(&pod.pod, "link set tun9 up");
    let before = snapshot(&pod.pod);
    let host = inside(&pod.pod, || HostTun::set_up(&plan()).unwrap());
    // Made without multi_queue: one queue is all it has.
    assert_eq!(host.tun.queues.len(), 1);
    assert!(ip(&pod.pod, "addr show dev tun9").contains("fdfe::1"));
    inside(&pod.pod, || drop(host));
    assert_eq!(snapshot(&pod.pod), before);
}

#[test]
fn what_a_killed_run_left_is_without_effect_and_taken_over() {
    if !is_root() {
        return;
    }
    let pod = Pod::new(true);
    let before = snapshot(&pod.pod);
    let mut host = inside(&pod.pod, || HostTun::set_up(&plan()).unwrap());
    host.removed = true;
    inside(&pod.pod, || drop(host));
    // A child that another test starts at this moment holds the descriptor until it executes its program.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !ip_fails(&pod.pod, "link show dev tun9") {
        assert!(Instant::now() < deadline, "the device stays");
    }
    assert!(ip(&pod.pod, "route get 203.0.113.9").contains("dev eth0"));
    let host = inside(&pod.pod, || HostTun::set_up(&plan()).unwrap());
    assert!(ip(&pod.pod, "route get 203.0.113.9").contains("dev tun9"));
    inside(&pod.pod, || host.remove().unwrap());
    assert_eq!(snapshot(&pod.pod), before);
}

#[test]
fn a_failed_set_up_leaves_nothing() {
    if !is_root() {
        return;
    }
    let pod = Pod::new(true);
    inside(&pod.pod, || fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap());
    let before = snapshot(&pod.pod);
    let error = inside(&pod.pod, || HostTun::set_up(&plan()).unwrap_err());
    assert!(error.to_string().contains("fdfe::1/126"), "{error}");
    assert_eq!(snapshot(&pod.pod), before);
}
