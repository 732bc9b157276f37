mod against_nft;
mod kernel;
mod pure;

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use super::*;
use crate::netns::NetNs;
use crate::testing::{ip, is_root};

/// Runs `nft` in a namespace with a script on its standard input.
fn nft_output(namespace: &NetNs, words: &[&str], script: &str) -> Output {
    let run = || {
        let mut child = Command::new("nft")
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().expect("piped");
        // A program that ends before it has read all is judged by its status.
        let _ = input.write_all(script.as_bytes());
        drop(input);
        child.wait_with_output()
    };
    namespace.run(run).unwrap().expect("nft is installed")
}

/// What `nft` prints; it must succeed.
fn nft(namespace: &NetNs, words: &[&str], script: &str) -> String {
    let output = nft_output(namespace, words, script);
    assert!(output.status.success(), "nft {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn fresh() -> (NetNs, Nft) {
    let namespace = NetNs::create().unwrap();
    ip(&namespace, "link set lo up");
    let nft = Nft::open_in(&namespace).unwrap().unwrap();
    (namespace, nft)
}

fn table(family: Family, sets: Vec<Set>, chains: Vec<Chain>) -> Table {
    Table { family, name: "t".into(), owned: false, sets, chains }
}

fn chain(name: &str, point: HookPoint, priority: i32, drop: bool, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), hook: Some(Hook { point, priority, drop }), rules }
}

const FLOW: [KeyType; 4] = [KeyType::Ipv4Address, KeyType::TransportProtocol, KeyType::Port, KeyType::Port];

const TCP: u64 = 6;

/// A table of each family with everything that can be in one, and the same as a script for `nft`.
fn everything() -> [(Table, &'static str); 2] {
    [(everything_inet(), INET), (everything_netdev(), NETDEV)]
}

const INET: &str = r#"
table inet t {
    set nets4 { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.4.0/22, 240.0.0.0/4 }; }
    set nets6 { type ipv6_addr; flags interval; elements = { ::/8, fd00::/8 }; }
    set pods4 { type ipv4_addr; elements = { 10.1.2.3, 10.1.2.4 }; }
    set pods6 { type ipv6_addr; elements = { fd00::3 }; }
    chain at_pre {
        type filter hook prerouting priority -150; policy accept;
        iifname "eth0" ct state new ct mark set 0x74
    }
    chain at_in {
        type filter hook input priority 0; policy accept;
    }
    chain at_fwd {
        type filter hook forward priority -5; policy accept;
        meta nfproto ipv4 ip saddr @pods4 ip daddr != @nets4 ct direction != reply counter drop comment "to the world"
        meta nfproto ipv6 ip6 saddr @pods6 ip6 daddr != @nets6 ct direction original drop
        ct status dnat ct original ip daddr 10.96.0.1 accept
        ct original ip6 daddr fd00::1 accept
    }
    chain at_out {
        type filter hook output priority 10; policy drop;
        oifname != "eth0" accept
        meta mark 0x74 accept
        ct state established,related accept
        meta l4proto tcp reject with tcp reset
        reject with icmpx type admin-prohibited
    }
    chain at_mark {
        type route hook output priority -150; policy accept;
        meta mark set ct mark
        meta mark set 0x1234
        jump more
        goto more
        return
    }
    chain at_post {
        type filter hook postrouting priority 100; policy accept;
    }
    chain more {
    }
}
"#;

fn everything_inet() -> Table {
    let network = |text: &str| text.parse().unwrap();
    let sets = vec![
        Set::networks("nets4", false, &["10.0.0.0/8", "192.168.4.0/22", "240.0.0.0/4"].map(network)),
        Set::networks("nets6", true, &["::/8", "fd00::/8"].map(network)),
        Set::addresses("pods4", false, &["10.1.2.3", "10.1.2.4"].map(|ip| ip.parse().unwrap())),
        Set::addresses("pods6", true, &["fd00::3".parse().unwrap()]),
    ];
    let pre = vec![
        Rule::new()
            .is_name(Field::INPUT_NAME, "eth0")
            .any_of(Field::CT_STATE, ct_state::NEW.into())
            .set_ct_mark(0x74),
    ];
    let forward = vec![
        Rule::new()
            .is(Field::NETWORK_PROTOCOL, libc::NFPROTO_IPV4 as u64)
            .in_set(&[Field::IPV4_SOURCE], "pods4")
            .not_in_set(&[Field::IPV4_DESTINATION], "nets4")
            .is_not(Field::CT_DIRECTION, 1)
            .counter()
            .drop()
            .comment("to the world"),
        Rule::new()
            .is(Field::NETWORK_PROTOCOL, libc::NFPROTO_IPV6 as u64)
            .in_set(&[Field::IPV6_SOURCE], "pods6")
            .not_in_set(&[Field::IPV6_DESTINATION], "nets6")
            .is(Field::CT_DIRECTION, 0)
            .drop(),
        Rule::new()
            .any_of(Field::CT_STATUS, ct_status::DESTINATION_NAT.into())
            .is_address(Field::CT_ORIGINAL_IPV4_DESTINATION, "10.96.0.1".parse().unwrap())
            .accept(),
        Rule::new().is_address(Field::CT_ORIGINAL_IPV6_DESTINATION, "fd00::1".parse().unwrap()).accept(),
    ];
    let out = vec![
        Rule::new().is_not_name(Field::OUTPUT_NAME, "eth0").accept(),
        Rule::new().is(Field::MARK, 0x74).accept(),
        Rule::new().any_of(Field::CT_STATE, (ct_state::ESTABLISHED | ct_state::RELATED).into()).accept(),
        Rule::new().is(Field::TRANSPORT_PROTOCOL, TCP).reject(Reject::TcpReset),
        Rule::new().reject(Reject::AdminProhibited),
    ];
    let mark = vec![
        Rule::new().set_mark_from_ct(),
        Rule::new().set_mark(0x1234),
        Rule::new().verdict(Verdict::Jump("more".into())),
        Rule::new().verdict(Verdict::Goto("more".into())),
        Rule::new().verdict(Verdict::Return),
    ];
    let chains = vec![
        chain("at_pre", HookPoint::Prerouting, -150, false, pre),
        chain("at_in", HookPoint::Input, 0, false, Vec::new()),
        chain("at_fwd", HookPoint::Forward, -5, false, forward),
        chain("at_out", HookPoint::Output, 10, true, out),
        chain("at_mark", HookPoint::Reroute, -150, false, mark),
        chain("at_post", HookPoint::Postrouting, 100, false, Vec::new()),
        Chain { name: "more".into(), hook: None, rules: Vec::new() },
    ];
    table(Family::Inet, sets, chains)
}

const NETDEV: &str = r#"
table netdev t {
    set flows4 {
        type ipv4_addr . inet_proto . inet_service . inet_service
        flags dynamic,timeout
        size 8192
        timeout 2m
        gc-interval 10s
    }
    set flows6 {
        type ipv6_addr . inet_proto . inet_service . inet_service
        flags dynamic,timeout
        size 4096
        timeout 30s
        gc-interval 10s
    }
    set remotes4 { type ipv4_addr; flags dynamic,timeout; size 1024; timeout 1m; gc-interval 10s; }
    chain to_pod {
        type filter hook egress device "lo" priority 0; policy accept;
        ip saddr 10.0.0.0/8 accept
        ip saddr 192.168.4.0/22 accept
        tcp flags & (syn|ack) == syn accept
        meta protocol ip update @flows4 { ip saddr . meta l4proto . th sport . th dport timeout 30s }
        meta protocol ip6 update @flows6 { ip6 saddr . meta l4proto . th sport . th dport timeout 1h }
        meta protocol ip update @remotes4 { ip saddr timeout 10s }
        meta protocol ip add @remotes4 { ip saddr timeout 20s }
    }
    chain from_pod {
        type filter hook ingress device "lo" priority -500; policy drop;
        ip saddr != 10.1.2.3 drop
        ip6 daddr fe80::/10 accept
        ip frag-off & 0x3fff != 0 drop
        ip protocol icmp icmp type echo-request icmp id 0x1234 accept
        meta l4proto tcp th dport 53 drop
        ip6 hoplimit 255 accept
        ip6 nexthdr icmpv6 accept
        meta protocol ip ip saddr . meta l4proto . th dport . th sport @flows4 accept
    }
}
"#;

fn everything_netdev() -> Table {
    let ip = || Rule::new().is(Field::PROTOCOL, libc::ETH_P_IP as u64);
    let ip6 = || Rule::new().is(Field::PROTOCOL, libc::ETH_P_IPV6 as u64);
    let icmp = libc::IPPROTO_ICMP as u64;
    let sent = |address| [address, Field::TRANSPORT_PROTOCOL, Field::SOURCE_PORT, Field::DESTINATION_PORT];
    let received =
        |address| [address, Field::TRANSPORT_PROTOCOL, Field::DESTINATION_PORT, Field::SOURCE_PORT];
    let flow6 = [&[KeyType::Ipv6Address], &FLOW[1..]].concat();
    let sets = vec![
        Set::flows("flows4", &FLOW, 8_192, Duration::from_mins(2)),
        Set::flows("flows6", &flow6, 4_096, Duration::from_secs(30)),
        Set::flows("remotes4", &[KeyType::Ipv4Address], 1_024, Duration::from_mins(1)),
    ];
    let to_pod = vec![
        ip().in_network(Field::IPV4_SOURCE, "10.0.0.0/8".parse().unwrap()).accept(),
        ip().in_network(Field::IPV4_SOURCE, "192.168.4.0/22".parse().unwrap()).accept(),
        Rule::new().is(Field::TRANSPORT_PROTOCOL, TCP).masked(Field::TCP_FLAGS, 0x12, 0x02).accept(),
        ip().update(&sent(Field::IPV4_SOURCE), "flows4", Duration::from_secs(30)),
        ip6().update(&sent(Field::IPV6_SOURCE), "flows6", Duration::from_hours(1)),
        ip().update(&[Field::IPV4_SOURCE], "remotes4", Duration::from_secs(10)),
        ip().add(&[Field::IPV4_SOURCE], "remotes4", Duration::from_secs(20)),
    ];
    let from_pod = vec![
        ip().is_not_address(Field::IPV4_SOURCE, "10.1.2.3".parse().unwrap()).drop(),
        ip6().in_network(Field::IPV6_DESTINATION, "fe80::/10".parse().unwrap()).accept(),
        ip().any_of(Field::IPV4_FRAGMENT, 0x3fff).drop(),
        ip().is(Field::IPV4_PROTOCOL, icmp)
            .is(Field::ICMP_TYPE, 8)
            .is(Field::ICMP_IDENTIFIER, 0x1234)
            .accept(),
        Rule::new().is(Field::TRANSPORT_PROTOCOL, TCP).is(Field::DESTINATION_PORT, 53).drop(),
        ip6().is(Field::IPV6_HOP_LIMIT, 255).accept(),
        ip6().is(Field::IPV6_NEXT_HEADER, 58).accept(),
        ip().in_set(&received(Field::IPV4_SOURCE), "flows4").accept(),
    ];
    let chains = vec![
        chain("to_pod", HookPoint::Egress("lo".into()), 0, false, to_pod),
        chain("from_pod", HookPoint::Ingress("lo".into()), -500, true, from_pod),
    ];
    table(Family::Netdev, sets, chains)
}
