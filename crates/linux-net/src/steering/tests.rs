use super::*;
use crate::testing::{Pod, ip, ip_json, is_root, snapshot};

const MARK: u32 = 0x74;

fn plan(container: &str, ifname: &str) -> ChainedPlan {
    ChainedPlan {
        owner: Owner { container_id: container.into(), ifname: ifname.into() },
        queues: 2,
        mtu: None,
        mark: MARK,
        cluster: ["10.77.0.0/24", "10.96.0.0/12", "fd77::/48"].map(|n| n.parse().unwrap()).into(),
    }
}

/// Device a packet would leave by, according to `ip route get`; `None` when it is refused.
fn way(pod: &Pod, words: &str) -> Option<String> {
    if crate::testing::ip_fails(&pod.pod, &format!("route get {words}")) {
        return None;
    }
    let text = ip(&pod.pod, &format!("route get {words}"));
    let mut words = text.split_whitespace();
    words.find(|word| *word == "dev")?;
    words.next().map(str::to_owned)
}

#[test]
fn a_chained_pod_is_steered_and_comes_back_as_it_was() {
    if !is_root() {
        return;
    }
    let pod = Pod::new(true);
    let before = snapshot(&pod.pod);
    let plan = plan("c1", "eth0");
    let plumbed = plumb_chained(&pod.pod, &plan).unwrap();
    assert_eq!((plumbed.mtu, plumbed.tun.queues.len()), (1500, 2));
    assert_eq!(plumbed.addresses.len(), 2);

    let eth0 = || Some("eth0".to_owned());
    let tun0 = || Some("tun0".to_owned());
    assert_eq!(way(&pod, "203.0.113.9"), tun0());
    assert_eq!(way(&pod, "203.0.113.9 mark 0x74"), eth0());
    assert_eq!(way(&pod, "10.96.0.1"), eth0());
    assert_eq!(way(&pod, "10.96.0.10 ipproto udp dport 53"), tun0());
    assert_eq!(way(&pod, "10.96.0.10 ipproto tcp dport 53"), tun0());
    assert_eq!(way(&pod, "2001:db8::1"), tun0());
    assert_eq!(way(&pod, "2001:db8::1 mark 0x74"), eth0());
    assert_eq!(way(&pod, "fd77:0::1"), eth0());
    assert_eq!(way(&pod, "fd77:0::1 ipproto udp dport 53"), tun0());
    assert_eq!(verify_chained(&pod.pod, &plan).unwrap(), Vec::<String>::new());
    let source = ip(&pod.pod, "route get 203.0.113.9");
    assert!(source.contains("src 10.77.0.2"), "{source}");

    unplumb(&pod.pod, &plan.owner).unwrap();
    assert_eq!(snapshot(&pod.pod), before);
    unplumb(&pod.pod, &plan.owner).unwrap();
    assert_eq!(snapshot(&pod.pod), before);
}

#[test]
fn the_main_table_is_never_touched() {
    if !is_root() {
        return;
    }
    let pod = Pod::new(true);
    let main = |pod: &Pod| ip(&pod.pod, "route show") + &ip(&pod.pod, "-6 route show dev eth0");
    let before = main(&pod);
    plumb_chained(&pod.pod, &plan("c1", "eth0")).unwrap();
    assert_eq!(main(&pod), before);
}

#[test]
fn a_second_time_converges_to_the_same() {
    if !is_root() {
        return;
    }
    let pod = Pod::new(true);
    let first = plumb_chained(&pod.pod, &plan("c1", "eth0")).unwrap();
    let once = snapshot(&pod.pod);
    let second = plumb_chained(&pod.pod, &plan("c1", "eth0")).unwrap();
    assert_eq!(snapshot(&pod.pod), once);
    assert_eq!(first.tun.link.index, second.tun.link.index);
}

#[test]
fn other_settings_replace_the_old_rules() {
    if !is_root() {
        return;
    }
    let pod = Pod::new(false);
    let old = plan("c1", "eth0");
    plumb_chained(&pod.pod, &old).unwrap();
    let new = ChainedPlan { cluster: vec!["10.200.0.0/16".parse().unwrap()], ..old };
    plumb_chained(&pod.pod, &new).unwrap();
    assert_eq!(way(&pod, "10.96.0.1").as_deref(), Some("tun0"));
    assert_eq!(way(&pod, "10.200.0.1").as_deref(), Some("eth0"));
    assert_eq!(verify_chained(&pod.pod, &new).unwrap(), Vec::<String>::new());
}

#[test]
fn without_the_tun_nothing_gets_out() {
    if !is_root() {
        return;
    }
    for ipv6 in [true, false] {
        let pod = Pod::new(ipv6);
        let tun = plumb_chained(&pod.pod, &plan("c1", "eth0")).unwrap().tun;
        ip(&pod.pod, "link set tun0 down");
        assert_eq!(way(&pod, "203.0.113.9"), None, "down");
        drop(tun);
        ip(&pod.pod, "link del tun0");
        assert_eq!(way(&pod, "203.0.113.9"), None, "deleted");
        assert_eq!(way(&pod, "2001:db8::1"), None, "IPv6, deleted");
    }
}

#[test]
fn a_pod_without_ipv6_cannot_get_it_out_later() {
    if !is_root() {
        return;
    }
    let pod = Pod::new(false);
    plumb_chained(&pod.pod, &plan("c1", "eth0")).unwrap();
    ip(&pod.pod, "addr add 2001:db8:5::2/64 dev eth0 nodad");
    ip(&pod.pod, "-6 route add default via 2001:db8:5::1");
    assert_eq!(way(&pod, "2001:db8::1"), None);
}

#[test]
fn a_pod_with_ipv6_switched_off_is_plumbed() {
    if !is_root() {
        return;
    }
    let pod = Pod::new(false);
    let off = || std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    pod.pod.run(off).unwrap();
    let before = snapshot(&pod.pod);
    let plan = plan("c1", "eth0");
    plumb_chained(&pod.pod, &plan).unwrap();
    assert_eq!(verify_chained(&pod.pod, &plan).unwrap(), Vec::<String>::new());
    unplumb(&pod.pod, &plan.owner).unwrap();
    assert_eq!(snapshot(&pod.pod), before);
}

#[test]
fn two_interfaces_do_not_disturb_each_other() {
    if !is_root() {
        return;
    }
    let pod = Pod::new(true);
    pod.join("net1", "10.88.0", Some("fd88:0"));
    let before = snapshot(&pod.pod);
    let (first, second) = (plan("c1", "eth0"), plan("c1", "net1"));
    plumb_chained(&pod.pod, &first).unwrap();
    let one = snapshot(&pod.pod);
    plumb_chained(&pod.pod, &second).unwrap();
    assert_eq!(way(&pod, "203.0.113.9").as_deref(), Some("tun0"));
    assert_eq!(way(&pod, "203.0.113.9 from 10.88.0.2").as_deref(), Some("tun-net1"));
    assert_eq!(way(&pod, "2001:db8::1 from fd88:0::2").as_deref(), Some("tun-net1"));
    assert_eq!(way(&pod, "203.0.113.9 from 10.77.0.2").as_deref(), Some("tun0"));
    for plan in [&first, &second] {
        assert_eq!(verify_chained(&pod.pod, plan).unwrap(), Vec::<String>::new());
    }
    unplumb(&pod.pod, &second.owner).unwrap();
    assert_eq!(snapshot(&pod.pod), one);
    unplumb(&pod.pod, &first.owner).unwrap();
    assert_eq!(snapshot(&pod.pod), before);
}

#[test]
fn a_secondary_interface_alone_steers_everything() {
    if !is_root() {
        return;
    }
    let pod = Pod::new(false);
    pod.join("net1", "10.88.0", None);
    plumb_chained(&pod.pod, &plan("c1", "net1")).unwrap();
    assert_eq!(way(&pod, "203.0.113.9").as_deref(), Some("tun-net1"));
    assert_eq!(way(&pod, "203.0.113.9 from 10.88.0.2").as_deref(), Some("tun-net1"));
}

#[test]
fn a_foreign_interface_of_that_name_stays() {
    if !is_root() {
        return;
    }
    let pod = Pod::new(true);
    ip(&pod.pod, "tuntap add dev tun0 mode tun");
    let before = snapshot(&pod.pod);
    let error = plumb_chained(&pod.pod, &plan("c1", "eth0")).unwrap_err();
    assert!(matches!(error, SteeringError::Tun(TunError::Foreign { .. })), "{error}");
    assert_eq!(snapshot(&pod.pod), before);
    unplumb(&pod.pod, &plan("c1", "eth0").owner).unwrap();
    assert_eq!(snapshot(&pod.pod), before);
}

#[test]
fn a_late_removal_spares_the_successor() {
    if !is_root() {
        return;
    }
    let pod = Pod::new(true);
    plumb_chained(&pod.pod, &plan("successor", "eth0")).unwrap();
    let before = snapshot(&pod.pod);
    unplumb(&pod.pod, &plan("predecessor", "eth0").owner).unwrap();
    assert_eq!(snapshot(&pod.pod), before);
}

#[test]
fn every_kind_of_damage_is_named() {
    if !is_root() {
        return;
    }
    let damages = [
        ("link set tun0 down", "TUN tun0 is down"),
        ("link del tun0", "TUN tun0 is gone"),
        ("link set eth0 group 0", "interface eth0 is in group 0"),
        ("rule del priority 200", "rule is missing: V4 200"),
        ("-6 rule del priority 105", "rule is missing: V6 105"),
        ("route flush table 74000", "route is missing: V4 default"),
        ("rule add priority 1 lookup main", "off-cluster traffic to 198.51.100.1 goes to interface #"),
        ("-6 rule add priority 1 unreachable", "off-cluster traffic to 2001:db8:ffff::1 goes nowhere"),
    ];
    for (damage, wanted) in damages {
        let pod = Pod::new(true);
        let plan = plan("c1", "eth0");
        let _tun = plumb_chained(&pod.pod, &plan).unwrap();
        ip(&pod.pod, damage);
        let problems = verify_chained(&pod.pod, &plan).unwrap();
        assert!(problems.iter().any(|problem| problem.starts_with(wanted)), "{damage}: {problems:?}");
    }
}

#[test]
fn without_a_main_interface_the_remedy_is_said() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create().unwrap();
    let before = snapshot(&namespace);
    let error = plumb_chained(&namespace, &plan("c1", "eth0")).unwrap_err();
    assert!(error.to_string().contains("must come before tunproxy in the chain"), "{error}");
    assert_eq!(snapshot(&namespace), before);
}

fn standalone() -> StandalonePlan {
    StandalonePlan {
        owner: Owner { container_id: "c1".into(), ifname: "eth0".into() },
        queues: 1,
        mtu: 1500,
        addresses: vec!["10.66.0.7/24".parse().unwrap(), "fd66::7/64".parse().unwrap()],
    }
}

#[test]
fn a_standalone_pod_has_the_tun_and_nothing_else() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create().unwrap();
    let plan = standalone();
    let plumbed = plumb_standalone(&namespace, &plan).unwrap();
    let shown = ip_json(&namespace, "addr show dev eth0");
    let addresses: Vec<(&str, u64)> = shown[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| (a["local"].as_str().unwrap(), a["prefixlen"].as_u64().unwrap()))
        .collect();
    assert_eq!(addresses, [("10.66.0.7", 32), ("fd66::7", 128)]);
    for (target, source) in [("203.0.113.9", "10.66.0.7"), ("2001:db8::1", "fd66::7")] {
        let text = ip(&namespace, &format!("route get {target}"));
        assert!(text.contains("dev eth0") && text.contains(&format!("src {source}")), "{text}");
    }
    assert_eq!(verify_standalone(&namespace, &plan.owner, &plumbed.addresses).unwrap(), Vec::<String>::new());
    unplumb(&namespace, &plan.owner).unwrap();
    assert!(crate::testing::ip_fails(&namespace, "link show dev eth0"));
    assert!(crate::testing::ip_fails(&namespace, "route get 203.0.113.9"));
    let rest = ip(&namespace, "route show table all") + &ip(&namespace, "-6 route show table all");
    assert!(!rest.contains("unreachable"), "{rest}");
}

#[test]
fn a_second_standalone_interface_is_refused_unharmed() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create().unwrap();
    let _first = plumb_standalone(&namespace, &standalone()).unwrap();
    let before = snapshot(&namespace);
    let error = plumb_standalone(&namespace, &standalone()).unwrap_err();
    assert!(matches!(error, SteeringError::Tun(TunError::Exists { .. })), "{error}");
    assert_eq!(snapshot(&namespace), before);
}

#[test]
fn two_standalone_interfaces_each_send_from_their_own_address() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create().unwrap();
    let first = standalone();
    let mut second = standalone();
    second.owner.ifname = "net1".into();
    second.addresses = vec!["10.67.0.7/24".parse().unwrap()];
    plumb_standalone(&namespace, &first).unwrap();
    let one = snapshot(&namespace);
    plumb_standalone(&namespace, &second).unwrap();
    for (words, device) in [("203.0.113.9", "dev eth0"), ("203.0.113.9 from 10.67.0.7", "dev net1")] {
        let text = ip(&namespace, &format!("route get {words}"));
        assert!(text.contains(device), "{text}");
    }
    unplumb(&namespace, &second.owner).unwrap();
    assert_eq!(snapshot(&namespace), one);
}
