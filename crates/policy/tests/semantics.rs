//! The order and the meaning of policies, case by case.

mod common;

use common::*;
use tunproxy_policy::model::{ClusterAction, ClusterTier, KnownUpstreams, Policies};
use tunproxy_policy::{FlowQuery, NodeDefault, Protocol};

#[test]
fn an_empty_destination_is_any_and_empty_ports_are_all() {
    let policy = compiled(&only(vec![egress("web", 10, vec![allow("all", &[])])]), NodeDefault::Deny);
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
        let query = FlowQuery { protocol, destination: ip("2001:db8::1"), port: 0, names: &[] };
        assert_eq!(told(&policy.decide(&query)), "allowed EgressPolicy/shop/web all via node-upstream");
    }
}

#[test]
fn the_first_of_the_order_decides() {
    let x = [domains(&["x.example"])];
    for (first, second, expected) in [
        // Priority before everything.
        (egress("z", 1, vec![allow("r", &x)]), egress("a", 2, vec![deny("r", &x)]), "z"),
        (egress("z", 1, vec![deny("r", &x)]), egress("a", 2, vec![allow("r", &x)]), "z"),
        // Then Deny before Allow.
        (egress("a", 5, vec![allow("r", &x)]), egress("z", 5, vec![deny("r", &x)]), "z"),
        // Then the name.
        (egress("b", 5, vec![allow("r", &x)]), egress("a", 5, vec![allow("r", &x)]), "a"),
        (egress("b", 5, vec![deny("r", &x)]), egress("a", 5, vec![deny("r", &x)]), "a"),
    ] {
        let orders = [vec![first.clone(), second.clone()], vec![second, first]];
        for policies in orders {
            let decision = ask(&compiled(&only(policies), NodeDefault::Allow), WEB, 443, &["x.example"]);
            assert!(told(&decision).contains(&format!("EgressPolicy/shop/{expected} r")), "{decision:?}");
        }
    }
}

#[test]
fn inside_a_policy_deny_comes_before_allow_and_then_the_index() {
    let rules = vec![
        allow("wide", &[domains(&["*.example"])]),
        allow("narrow", &[domains(&["x.example"])]),
        deny("secret", &[domains(&["s.example"])]),
    ];
    let policy = compiled(&only(vec![egress("p", 0, rules)]), NodeDefault::Allow);
    expect(
        &policy,
        WEB,
        1,
        &["x.example"],
        "allowed EgressPolicy/shop/p wide via node-upstream as x.example",
    );
    expect(&policy, WEB, 1, &["s.example"], "denied EgressPolicy/shop/p secret rule as s.example");
}

fn tiers(admin: ClusterAction, namespace_rule: bool, baseline: ClusterAction) -> Policies {
    let x = [domains(&["x.example"])];
    let rules = if namespace_rule { vec![egress("p", 0, vec![allow("r", &x)])] } else { vec![] };
    Policies {
        egress: rules,
        cluster: vec![
            cluster(ClusterTier::Baseline, "base", 0, vec![cluster_rule("r", baseline, &x)]),
            cluster(ClusterTier::Admin, "admin", 1000, vec![cluster_rule("r", admin, &x)]),
        ],
        ..Policies::default()
    }
}

#[test]
fn tiers_decide_in_their_order() {
    use ClusterAction::{Accept, Deny, Pass};
    for (admin, namespace_rule, baseline, expected) in [
        (Deny, true, Accept, "denied ClusterEgressPolicy/admin r rule as x.example"),
        (Accept, true, Deny, "allowed ClusterEgressPolicy/admin r via node-upstream as x.example"),
        (Pass, true, Deny, "allowed EgressPolicy/shop/p r via node-upstream as x.example"),
        (Pass, false, Deny, "denied ClusterEgressPolicy/base r rule as x.example"),
        (Pass, false, Accept, "allowed ClusterEgressPolicy/base r via node-upstream as x.example"),
        (Pass, false, Pass, "denied node default node-default as x.example"),
    ] {
        let policy = compiled(&tiers(admin, namespace_rule, baseline), NodeDefault::Deny);
        expect(&policy, WEB, 443, &["x.example"], expected);
    }
}

#[test]
fn a_selected_pod_never_reaches_the_baseline() {
    let policy = compiled(&tiers(ClusterAction::Pass, true, ClusterAction::Accept), NodeDefault::Allow);
    expect(
        &policy,
        WEB,
        443,
        &["y.example"],
        "denied EgressPolicy/shop/p default no-rule-matched as y.example",
    );
}

#[test]
fn the_rules_of_a_cluster_policy_keep_their_order() {
    let accept = cluster_rule("known", ClusterAction::Accept, &[domains(&["x.example"])]);
    let rest = cluster_rule("rest", ClusterAction::Deny, &[]);
    let policies =
        |rules| Policies { cluster: vec![cluster(ClusterTier::Admin, "p", 0, rules)], ..Policies::default() };
    let policy = compiled(&policies(vec![accept.clone(), rest.clone()]), NodeDefault::Allow);
    expect(
        &policy,
        WEB,
        1,
        &["x.example"],
        "allowed ClusterEgressPolicy/p known via node-upstream as x.example",
    );
    expect(&policy, WEB, 1, &[], "denied ClusterEgressPolicy/p rest rule");
    let swapped = compiled(&policies(vec![rest, accept]), NodeDefault::Allow);
    expect(&swapped, WEB, 1, &["x.example"], "denied ClusterEgressPolicy/p rest rule as x.example");
}

#[test]
fn between_cluster_policies_of_equal_priority_deny_comes_first() {
    let x = [domains(&["x.example"])];
    let cluster = vec![
        cluster(ClusterTier::Admin, "a", 7, vec![cluster_rule("r", ClusterAction::Accept, &x)]),
        cluster(ClusterTier::Admin, "b", 7, vec![cluster_rule("r", ClusterAction::Deny, &x)]),
    ];
    let policy = compiled(&Policies { cluster, ..Policies::default() }, NodeDefault::Allow);
    expect(&policy, WEB, 1, &["x.example"], "denied ClusterEgressPolicy/b r rule as x.example");
}

#[test]
fn wildcards_are_one_or_more_labels() {
    let rules = vec![allow("below", &[domains(&["*.x.example"])]), allow("any", &[domains(&["*"])])];
    let policy = compiled(&only(vec![egress("p", 0, rules)]), NodeDefault::Deny);
    let decided = |known_as: &[&str]| told(&ask(&policy, WEB, 1, known_as));
    assert!(decided(&["a.x.example"]).contains("below"));
    assert!(decided(&["c.b.a.x.example"]).contains("below"));
    assert!(decided(&["x.example"]).contains(" any "));
    assert!(decided(&["ax.example"]).contains(" any "));
    assert!(decided(&[]).contains("no-rule-matched"), "a bare * needs a name");
}

#[test]
fn networks_with_except_and_mapped_addresses() {
    let rules = vec![allow(
        "net",
        &[networks(&["10.0.0.0/8", "2001:db8::/32"], &["10.1.0.0/16", "2001:db8:1::/48"])],
    )];
    let policy = compiled(&only(vec![egress("p", 0, rules)]), NodeDefault::Deny);
    for (destination, allowed) in [
        ("10.0.255.255", true),
        ("10.1.0.0", false),
        ("10.1.255.255", false),
        ("10.2.0.0", true),
        ("11.0.0.0", false),
        ("::ffff:10.2.0.1", true),
        ("::ffff:10.1.0.1", false),
        ("2001:db8::1", true),
        ("2001:db8:1::1", false),
    ] {
        let answer = told(&ask(&policy, destination, 80, &[]));
        assert_eq!(answer.starts_with("allowed"), allowed, "{destination}: {answer}");
    }
}

#[test]
fn an_except_belongs_to_its_own_entry() {
    let to = [networks(&["10.0.0.0/8"], &["10.1.0.0/16"]), networks(&["10.1.1.0/24"], &[])];
    let policy = compiled(&only(vec![egress("p", 0, vec![allow("net", &to)])]), NodeDefault::Deny);
    expect(&policy, "10.1.1.9", 1, &[], "allowed EgressPolicy/shop/p net via node-upstream");
    expect(&policy, "10.1.2.9", 1, &[], "denied EgressPolicy/shop/p default no-rule-matched");
}

#[test]
fn ports_and_protocols() {
    let ports = [tcp(443, 443), tcp(8000, 8100), every(Protocol::Icmp)];
    let policy = compiled(&only(vec![egress("p", 0, vec![on(&ports, allow("r", &[]))])]), NodeDefault::Deny);
    for (protocol, port, allowed) in [
        (Protocol::Tcp, 443, true),
        (Protocol::Tcp, 442, false),
        (Protocol::Tcp, 444, false),
        (Protocol::Tcp, 8000, true),
        (Protocol::Tcp, 8100, true),
        (Protocol::Tcp, 8101, false),
        (Protocol::Udp, 443, false),
        (Protocol::Icmp, 0, true),
    ] {
        let query = FlowQuery { protocol, destination: ip(WEB), port, names: &[] };
        let answer = told(&policy.decide(&query));
        assert_eq!(answer.starts_with("allowed"), allowed, "{protocol} {port}: {answer}");
    }
}

#[test]
fn via_names_an_upstream_or_the_rule_refuses_what_it_matches() {
    let mut upstreams = KnownUpstreams::default();
    upstreams.add_namespaced("shop", "proxy");
    let rules = vec![
        via("proxy", allow("good", &[domains(&["g.example"])])),
        via("gone", allow("broken", &[domains(&["b.example"])])),
        allow("rest", &[]),
    ];
    let policy = compiled(
        &Policies { egress: vec![egress("p", 0, rules)], upstreams, ..Policies::default() },
        NodeDefault::Allow,
    );
    expect(&policy, WEB, 1, &["g.example"], "allowed EgressPolicy/shop/p good via shop/proxy as g.example");
    expect(&policy, WEB, 1, &["b.example"], "denied EgressPolicy/shop/p broken broken-rule as b.example");
    expect(
        &policy,
        WEB,
        1,
        &["c.example"],
        "allowed EgressPolicy/shop/p rest via node-upstream as c.example",
    );
}

#[test]
fn reserved_destinations_have_to_be_named_by_network() {
    let rules = vec![
        allow("wide", &[networks(&["0.0.0.0/0", "::/0"], &[])]),
        allow("names", &[domains(&["*"])]),
        allow("metadata", &[networks(&["169.254.169.254/32"], &[])]),
    ];
    let policy = compiled(&only(vec![egress("p", 0, rules)]), NodeDefault::Allow);
    for destination in [
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.251",
        "255.255.255.255",
        "0.0.0.0",
        "::1",
        "fe80::1",
        "ff02::fb",
        "::",
        "::ffff:127.0.0.1",
    ] {
        let known_as = "rebound.example";
        expect(
            &policy,
            destination,
            80,
            &[known_as],
            "denied node reserved reserved-destination as rebound.example",
        );
    }
    // The wide rule comes first and does not count; the one that names the network does.
    expect(&policy, "169.254.169.254", 80, &[], "allowed EgressPolicy/shop/p metadata via node-upstream");
}

#[test]
fn reserved_destinations_and_the_other_verdicts() {
    let unselected = compiled(&Policies::default(), NodeDefault::Allow);
    expect(&unselected, "127.0.0.1", 80, &[], "denied node reserved reserved-destination");
    let rules = vec![deny("no", &[networks(&["0.0.0.0/0"], &[])])];
    let refused = compiled(&only(vec![egress("p", 0, rules)]), NodeDefault::Allow);
    expect(&refused, "127.0.0.1", 80, &[], "denied EgressPolicy/shop/p no rule");
    let rules = vec![allow("loop", &[networks(&["127.0.0.0/8"], &["127.0.0.0/16"])])];
    let holed = compiled(&only(vec![egress("p", 0, rules)]), NodeDefault::Allow);
    expect(&holed, "127.1.0.1", 80, &[], "allowed EgressPolicy/shop/p loop via node-upstream");
    expect(&holed, "127.0.0.1", 80, &[], "denied node reserved reserved-destination");
}

#[test]
fn a_wide_deny_or_pass_reaches_reserved_destinations() {
    let rules =
        vec![cluster_rule("skip", ClusterAction::Pass, &[]), cluster_rule("no", ClusterAction::Deny, &[])];
    let admin = cluster(ClusterTier::Admin, "a", 0, rules);
    let named = egress("p", 0, vec![allow("link", &[networks(&["169.254.0.0/16"], &[])])]);
    let policies = Policies { egress: vec![named], cluster: vec![admin], ..Policies::default() };
    let policy = compiled(&policies, NodeDefault::Deny);
    expect(&policy, "169.254.7.7", 80, &[], "allowed EgressPolicy/shop/p link via node-upstream");
}

#[test]
fn the_nodes_resolvers_are_open_and_direct_where_only_a_default_decides() {
    let selected = compiled(
        &only(vec![egress("p", 0, vec![allow("x", &[domains(&["x.example"])])])]),
        NodeDefault::Allow,
    );
    expect(&selected, "10.96.0.10", 53, &[], "allowed node dns via direct");
    expect(&selected, "169.254.20.10", 53, &[], "allowed node dns via direct");
    expect(&selected, "10.96.0.10", 443, &[], "denied EgressPolicy/shop/p default no-rule-matched");
    expect(&selected, "10.96.0.11", 53, &[], "denied EgressPolicy/shop/p default no-rule-matched");
    let icmp = FlowQuery { protocol: Protocol::Icmp, destination: ip("10.96.0.10"), port: 53, names: &[] };
    assert!(told(&selected.decide(&icmp)).starts_with("denied"));
    let node = compiled(&Policies::default(), NodeDefault::Deny);
    expect(&node, "10.96.0.10", 53, &[], "allowed node dns via direct");
    expect(&node, "::ffff:10.96.0.10", 53, &[], "allowed node dns via direct");
    let open = compiled(&Policies::default(), NodeDefault::Allow);
    expect(&open, "10.96.0.10", 53, &[], "allowed node dns via direct");
    expect(&open, "10.96.0.11", 53, &[], "allowed node default via node-upstream");
}

#[test]
fn a_rule_about_the_resolver_wins_over_the_nodes() {
    let rules = vec![deny("no-dns", &[networks(&["10.96.0.0/16"], &[])])];
    let policy = compiled(&only(vec![egress("p", 0, rules)]), NodeDefault::Allow);
    expect(&policy, "10.96.0.10", 53, &[], "denied EgressPolicy/shop/p no-dns rule");
}

#[test]
fn rules_without_a_name_are_known_by_their_place() {
    let mut second = deny("", &[]);
    second.name = None;
    let rules = vec![allow("first", &[domains(&["x.example"])]), second];
    let policy = compiled(&only(vec![egress("p", 0, rules)]), NodeDefault::Deny);
    expect(&policy, WEB, 1, &[], "denied EgressPolicy/shop/p rules[1] rule");
}
