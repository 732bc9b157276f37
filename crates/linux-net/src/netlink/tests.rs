use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use proptest::prelude::*;

use super::error::{HEADER, NLMSGERR_ATTR_MSG, extended_text};
use super::*;
use crate::netns::NetNs;
use crate::testing::{ip_json, is_root};

fn fresh() -> (NetNs, Netlink) {
    let namespace = NetNs::create().unwrap();
    let netlink = Netlink::open_in(&namespace).unwrap().unwrap();
    (namespace, netlink)
}

#[test]
fn a_refusal_carries_the_kernels_words() {
    if !is_root() {
        return;
    }
    let (_namespace, mut netlink) = fresh();
    let route = Route {
        family: Family::V4,
        table: 7,
        destination: Some("10.0.0.0/8".parse().unwrap()),
        kind: RouteKind::Device(4711),
        source: None,
        metric: 0,
    };
    let error = netlink.add_route(&route).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENODEV));
    assert!(error.to_string().contains("10.0.0.0/8"), "{error}");
    let unusable = Route { family: Family::V4, kind: RouteKind::Device(1), ..route };
    let error = netlink.add_route(&unusable).unwrap_err();
    assert!(error.to_string().contains("(kernel: "), "{error}");
}

#[test]
fn rules_read_back_as_written() {
    if !is_root() {
        return;
    }
    let (namespace, mut netlink) = fresh();
    for family in Family::ALL {
        let network = |v4: &str, v6: &str| {
            Some(if family == Family::V4 { v4.parse().unwrap() } else { v6.parse().unwrap() })
        };
        let plain = Rule::new(family, 300, RuleTarget::Table(74_000));
        let rules = [
            plain,
            Rule { priority: 301, mark: Some(0xab), ..plain },
            Rule { priority: 302, mark: Some(0xab), invert: true, ..plain },
            Rule { priority: 303, port: Some((Transport::Udp, 53)), ..plain },
            Rule { priority: 304, destination: network("10.96.0.0/12", "fd00::/8"), ..plain },
            Rule { priority: 305, source: network("10.1.2.3/32", "fd00::3/128"), ..plain },
            Rule { priority: 306, target: RuleTarget::Goto(310), ..plain },
            Rule {
                priority: 310,
                target: RuleTarget::Table(MAIN_TABLE),
                suppress_prefix_length: Some(0),
                suppress_group: Some(74),
                ..plain
            },
        ];
        for rule in &rules {
            netlink.add_rule(rule).unwrap();
            netlink.add_rule(rule).unwrap();
        }
        assert_eq!(netlink.rules(family).unwrap(), rules);
        let flag = if family == Family::V4 { "-4" } else { "-6" };
        let seen = ip_json(&namespace, &format!("{flag} -d rule show"));
        let ours = seen.as_array().unwrap().iter().filter(|rule| rule["protocol"] == "116").count();
        assert_eq!(ours, rules.len(), "{seen:#}");
        for rule in &rules {
            netlink.delete_rule(rule).unwrap();
            netlink.delete_rule(rule).unwrap();
        }
        assert_eq!(netlink.rules(family).unwrap(), []);
    }
}

#[test]
fn rules_of_others_are_not_seen() {
    if !is_root() {
        return;
    }
    let (namespace, mut netlink) = fresh();
    crate::testing::ip(&namespace, "rule add priority 200 lookup 74000");
    assert_eq!(netlink.rules(Family::V4).unwrap(), []);
}

#[test]
fn links_and_addresses_agree_with_ip() {
    if !is_root() {
        return;
    }
    let (namespace, mut netlink) = fresh();
    crate::testing::ip(&namespace, "link add dummy7 mtu 1400 type veth peer name peer7");
    let link = netlink.link("dummy7").unwrap().unwrap();
    assert_eq!((link.mtu, link.up, link.kind.as_deref()), (1400, false, Some("veth")));
    netlink.set_link_group(&link, 74).unwrap();
    netlink.set_link_alias(&link, "tunproxy:eth0:c1").unwrap();
    netlink.disable_address_generation(&link).unwrap();
    for address in ["10.9.8.7/24", "fd09::7/64"] {
        netlink.add_address(&link, address.parse().unwrap()).unwrap();
        netlink.add_address(&link, address.parse().unwrap()).unwrap();
    }
    netlink.set_link_up(&link).unwrap();
    let shown = &ip_json(&namespace, "-d addr show dev dummy7")[0];
    assert_eq!((&shown["group"], &shown["ifalias"]), (&"74".into(), &"tunproxy:eth0:c1".into()));
    let link_shown = &ip_json(&namespace, "-d link show dev dummy7")[0];
    assert_eq!(link_shown["inet6_addr_gen_mode"], "none");
    let addresses: Vec<&str> =
        shown["addr_info"].as_array().unwrap().iter().map(|a| a["local"].as_str().unwrap()).collect();
    assert_eq!(addresses, ["10.9.8.7", "fd09::7"]);
    assert_eq!(netlink.addresses_of(&link).unwrap().len(), 2);
    netlink.delete_link(&link).unwrap();
    netlink.delete_link(&link).unwrap();
    assert_eq!(netlink.link("dummy7").unwrap(), None);
}

#[test]
fn a_thousand_routes_come_back_complete() {
    if !is_root() {
        return;
    }
    let (_namespace, mut netlink) = fresh();
    let routes: Vec<Route> = (0..1000).map(unreachable).collect();
    for route in &routes {
        netlink.add_route(route).unwrap();
    }
    assert_eq!(netlink.routes(Family::V4, 74_000).unwrap(), routes);
}

fn unreachable(n: u32) -> Route {
    Route {
        family: Family::V4,
        table: 74_000,
        destination: Some(format!("10.{}.{}.0/24", n / 250, n % 250).parse().unwrap()),
        kind: RouteKind::Unreachable,
        source: None,
        metric: 1,
    }
}

#[test]
fn a_dump_taken_while_routes_change_is_complete_or_says_so() {
    if !is_root() {
        return;
    }
    let (namespace, mut netlink) = fresh();
    let stable: Vec<Route> = (0..1000).map(unreachable).collect();
    for route in &stable {
        netlink.add_route(route).unwrap();
    }
    let mut other = Netlink::open_in(&namespace).unwrap().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                other.add_route(&unreachable(2000)).unwrap();
                other.delete_route(&unreachable(2000)).unwrap();
            }
        });
        for _ in 0..50 {
            match netlink.routes(Family::V4, 74_000) {
                Ok(found) => assert!(stable.iter().all(|route| found.contains(route))),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::Interrupted, "{error}"),
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(netlink.routes(Family::V4, 74_000).unwrap(), stable);
}

#[test]
fn a_dump_that_fails_carries_the_kernels_words() {
    if !is_root() {
        return;
    }
    let (_namespace, netlink) = fresh();
    let mut message = RouteMessage::default();
    message.header.address_family = Family::V4.to_netlink();
    message.attributes.push(RouteAttribute::Table(4711));
    let result = netlink.dump(&RouteNetlinkMessage::GetRoute(message), || "list table 4711".into());
    let error = result.unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOENT));
    assert!(error.to_string().contains("(kernel: ipv4: FIB table does not exist)"), "{error}");
}

#[test]
fn a_handle_serves_callers_inside_any_runtime() {
    use tokio::runtime::Builder;
    for runtime in [Builder::new_current_thread().build(), Builder::new_multi_thread().build()] {
        let loopback = runtime.unwrap().block_on(async {
            let namespace = NetNs::current().unwrap();
            // Both: opened where the thread is in no runtime, and opened and dropped here.
            let mut elsewhere = Netlink::open_in(&namespace).unwrap().unwrap();
            assert!(elsewhere.link("lo").unwrap().is_some());
            Netlink::open().unwrap().link("lo").unwrap()
        });
        assert!(loopback.unwrap().loopback);
    }
}

#[test]
fn a_connection_that_ends_is_an_error_for_changes_and_queries() {
    if !is_root() {
        return;
    }
    let (_namespace, mut netlink) = fresh();
    let absent = Link { index: i32::MAX as u32, name: "absent".into(), ..Link::default() };
    netlink.delete_link(&absent).unwrap();
    netlink.driver.abort();
    let errors = [
        netlink.delete_link(&absent).unwrap_err(),
        netlink.links().unwrap_err(),
        netlink.link("lo").unwrap_err(),
        netlink.delete_link(&absent).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{error}");
    }
}

#[test]
fn a_request_without_an_answer_ends() {
    let netlink = Netlink::open().unwrap();
    let silence = std::future::pending::<()>();
    let error = netlink.driver.wait(Duration::from_millis(20), silence).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(error.to_string().contains("20ms"), "{error}");
}

#[test]
fn a_link_is_deleted_promptly() {
    if !is_root() {
        return;
    }
    let (namespace, mut netlink) = fresh();
    crate::testing::ip(&namespace, "link add gone type veth peer name peer");
    crate::testing::ip(&namespace, "link add kept type veth peer name other");
    let link = netlink.link("gone").unwrap().unwrap();
    // The second time no notice comes: it ends all the same, and without an error.
    for _ in 0..2 {
        delete_promptly(&namespace, &link).unwrap().unwrap();
        let left = ip_json(&namespace, "link show");
        let mut names: Vec<_> =
            left.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, ["kept", "lo", "other"]);
    }
}

/// An attribute of an extended acknowledgement, padded as the kernel pads.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

proptest! {
    #[test]
    fn the_text_of_an_error_is_found_behind_other_attributes(
        others in prop::collection::vec((2u16..20, prop::collection::vec(any::<u8>(), 0..20)), 0..4),
        text in "[ -~]{0,60}",
    ) {
        let mut payload = vec![0; HEADER];
        for (kind, value) in &others {
            payload.extend(attribute(*kind, value));
        }
        payload.extend(attribute(NLMSGERR_ATTR_MSG, format!("{text}\0").as_bytes()));
        prop_assert_eq!(extended_text(&payload), Some(text));
    }

    #[test]
    fn no_payload_of_an_error_panics(payload in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = extended_text(&payload);
    }
}
