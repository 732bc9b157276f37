//! The order and the meaning of policies, case by case.

mod common;

use common::*;
use tunproxy_policy::model::{ClusterAction, ClusterTier, EgressPolicy, KnownUpstreams, Policies, Subject};
use tunproxy_policy::selector::{Operator, Requirement};
use tunproxy_policy::{
    DenyReason, FlowQuery, LabelSelector, NodeDefault, PolicySet, Protocol, Workload, WorkloadPolicy,
};

const WEB: &str = "93.184.216.34";

#[track_caller]
fn expect(policy: &WorkloadPolicy, destination: &str, port: u16, known_as: &[&str], expected: &str) {
    let answer = told(&ask(policy, destination, port, known_as));
    assert_eq!(answer, expected, "{destination}:{port} as {known_as:?}");
}

#[test]
fn a_pod_without_a_policy_gets_the_nodes_default() {
    expect(
        &compiled(&Policies::default(), NodeDefault::Allow),
        WEB,
        80,
        &["a.example"],
        "allowed node default via node-upstream as a.example",
    );
    let deny = compiled(&Policies::default(), NodeDefault::Deny);
    expect(&deny, WEB, 80, &[], "denied node default node-default");
}

#[test]
fn a_selected_pod_is_denied_what_no_rule_allows() {
    let policy = compiled(
        &only(vec![egress("web", 10, vec![allow("x", &[domains(&["x.example"])])])]),
        NodeDefault::Allow,
    );
    expect(
        &policy,
        WEB,
        443,
        &["x.example"],
        "allowed EgressPolicy/shop/web x via node-upstream as x.example",
    );
    expect(
        &policy,
        WEB,
        443,
        &["y.example"],
        "denied EgressPolicy/shop/web default no-rule-matched as y.example",
    );
    expect(&policy, WEB, 443, &[], "denied EgressPolicy/shop/web default no-rule-matched");
}

#[test]
fn a_policy_without_rules_denies_everything() {
    let policy = compiled(&only(vec![egress("none", 10, vec![])]), NodeDefault::Allow);
    expect(
        &policy,
        WEB,
        443,
        &["x.example"],
        "denied EgressPolicy/shop/none default no-rule-matched as x.example",
    );
}

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
fn the_nodes_resolvers_are_open_where_only_a_default_refuses() {
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
    expect(&open, "10.96.0.10", 53, &[], "allowed node default via node-upstream");
}

#[test]
fn a_rule_about_the_resolver_wins_over_the_nodes() {
    let rules = vec![deny("no-dns", &[networks(&["10.96.0.0/16"], &[])])];
    let policy = compiled(&only(vec![egress("p", 0, rules)]), NodeDefault::Allow);
    expect(&policy, "10.96.0.10", 53, &[], "denied EgressPolicy/shop/p no-dns rule");
}

#[test]
fn an_auditing_policy_refuses_nothing_and_records() {
    let trial = audit(egress(
        "trial",
        0,
        vec![allow("x", &[domains(&["x.example"])]), deny("y", &[domains(&["y.example"])])],
    ));
    let policy = compiled(&only(vec![trial]), NodeDefault::Allow);
    expect(
        &policy,
        WEB,
        1,
        &["x.example"],
        "allowed EgressPolicy/shop/trial x via node-upstream as x.example",
    );
    expect(
        &policy,
        WEB,
        1,
        &["y.example"],
        "audited EgressPolicy/shop/trial y via node-upstream as y.example",
    );
    expect(
        &policy,
        WEB,
        1,
        &["z.example"],
        "audited EgressPolicy/shop/trial default via node-upstream as z.example",
    );
}

#[test]
fn an_auditing_policy_opens_nothing() {
    let trial = audit(egress("trial", 0, vec![allow("all", &[])]));
    let enforcing = egress(
        "real",
        500,
        vec![allow("x", &[domains(&["x.example"])]), deny("y", &[domains(&["y.example"])])],
    );
    let policy = compiled(&only(vec![trial.clone(), enforcing]), NodeDefault::Allow);
    expect(&policy, WEB, 1, &["y.example"], "denied EgressPolicy/shop/real y rule as y.example");
    expect(
        &policy,
        WEB,
        1,
        &["z.example"],
        "denied EgressPolicy/shop/real default no-rule-matched as z.example",
    );
    let alone = compiled(&only(vec![trial]), NodeDefault::Deny);
    expect(&alone, WEB, 1, &[], "denied node default node-default");
}

#[test]
fn other_policies_stay_enforced_beside_an_auditing_one() {
    let mut upstreams = KnownUpstreams::default();
    upstreams.add_cluster("proxy");
    let trial = audit(egress("trial", 0, vec![deny("x", &[domains(&["x.example"])])]));
    let enforcing = egress("real", 500, vec![via("proxy", allow("x", &[domains(&["x.example"])]))]);
    let policies = Policies { egress: vec![enforcing, trial], upstreams, ..Policies::default() };
    let policy = compiled(&policies, NodeDefault::Allow);
    expect(&policy, WEB, 1, &["x.example"], "audited EgressPolicy/shop/trial x via proxy as x.example");
    expect(
        &policy,
        WEB,
        1,
        &["y.example"],
        "denied EgressPolicy/shop/real default no-rule-matched as y.example",
    );
}

#[test]
fn names_that_agree_give_the_latest() {
    let policy = compiled(
        &only(vec![egress("p", 0, vec![allow("e", &[domains(&["*.example"])])])]),
        NodeDefault::Deny,
    );
    expect(
        &policy,
        WEB,
        1,
        &["a.example", "b.example"],
        "allowed EgressPolicy/shop/p e via node-upstream as b.example",
    );
    expect(
        &policy,
        WEB,
        1,
        &["a.test", "b.test"],
        "denied EgressPolicy/shop/p default no-rule-matched as b.test",
    );
}

#[test]
fn names_that_disagree_are_decided_by_name() {
    let rules = vec![allow("a", &[domains(&["a.example"])]), deny("d", &[domains(&["d.example"])])];
    let policy = compiled(&only(vec![egress("p", 0, rules)]), NodeDefault::Deny);
    let by_name = "by name: allowed EgressPolicy/shop/p a via node-upstream as a.example \
                   else denied EgressPolicy/shop/p d rule as d.example";
    expect(&policy, WEB, 1, &["a.example", "d.example"], by_name);
    expect(&policy, WEB, 1, &["d.example", "a.example"], by_name);
    // A deliberate refusal is stricter than a default, whichever was learnt last.
    expect(
        &policy,
        WEB,
        1,
        &["d.example", "other.example"],
        "denied EgressPolicy/shop/p d rule as d.example",
    );
}

#[test]
fn names_that_differ_in_their_upstream_alone_are_decided_by_name() {
    let mut upstreams = KnownUpstreams::default();
    upstreams.add_cluster("proxy");
    let rules =
        vec![via("proxy", allow("a", &[domains(&["a.example"])])), allow("b", &[domains(&["b.example"])])];
    let policy = compiled(
        &Policies { egress: vec![egress("p", 0, rules)], upstreams, ..Policies::default() },
        NodeDefault::Deny,
    );
    expect(
        &policy,
        WEB,
        1,
        &["a.example", "b.example"],
        "by name: allowed EgressPolicy/shop/p b via node-upstream as b.example \
         else allowed EgressPolicy/shop/p a via proxy as a.example",
    );
}

#[test]
fn what_selects_a_pod() {
    let requires = |key: &str, operator| LabelSelector {
        match_expressions: vec![Requirement { key: key.to_owned(), operator }],
        ..LabelSelector::default()
    };
    let matching =
        |pairs: &[(&str, &str)]| LabelSelector { match_labels: labels(pairs), ..LabelSelector::default() };
    let base = || egress("p", 0, vec![]);
    for (policy, selects) in [
        (base(), true),
        (EgressPolicy { namespace: "other".to_owned(), ..base() }, false),
        (EgressPolicy { pod_selector: matching(&[("app", "web")]), ..base() }, true),
        (EgressPolicy { pod_selector: matching(&[("app", "db")]), ..base() }, false),
        (EgressPolicy { pod_selector: requires("app", Operator::DoesNotExist), ..base() }, false),
        (EgressPolicy { service_accounts: vec!["web".to_owned()], ..base() }, true),
        (EgressPolicy { service_accounts: vec!["db".to_owned()], ..base() }, false),
    ] {
        let decision = told(&ask(&compiled(&only(vec![policy.clone()]), NodeDefault::Allow), WEB, 1, &[]));
        assert_eq!(decision.starts_with("denied"), selects, "{policy:?}: {decision}");
    }
}

#[test]
fn what_a_cluster_policy_is_about() {
    let matching =
        |pairs: &[(&str, &str)]| LabelSelector { match_labels: labels(pairs), ..LabelSelector::default() };
    let everything = LabelSelector::default;
    let pods = |namespace_selector, pod_selector| Subject::Pods { namespace_selector, pod_selector };
    for (subject, selects) in [
        (Subject::Namespaces(everything()), true),
        (Subject::Namespaces(matching(&[("kubernetes.io/metadata.name", "shop")])), true),
        (Subject::Namespaces(matching(&[("kubernetes.io/metadata.name", "other")])), false),
        (Subject::Namespaces(matching(&[("team", "red")])), false),
        (pods(everything(), matching(&[("app", "web")])), true),
        (pods(matching(&[("team", "red")]), matching(&[("app", "web")])), false),
        (pods(everything(), matching(&[("app", "db")])), false),
    ] {
        let mut policy =
            cluster(ClusterTier::Admin, "p", 0, vec![cluster_rule("no", ClusterAction::Deny, &[])]);
        policy.subject = subject;
        let policies = Policies { cluster: vec![policy.clone()], ..Policies::default() };
        let decision = told(&ask(&compiled(&policies, NodeDefault::Allow), WEB, 1, &[]));
        assert_eq!(decision.starts_with("denied"), selects, "{:?}: {decision}", policy.subject);
    }
}

#[test]
fn a_pod_whose_policy_is_not_there_reaches_nothing() {
    let policy = WorkloadPolicy::deny_all(DenyReason::NoPolicy);
    expect(&policy, "10.96.0.10", 53, &["x.example"], "denied node no-policy no-policy as x.example");
}

#[test]
fn rules_without_a_name_are_known_by_their_place() {
    let mut second = deny("", &[]);
    second.name = None;
    let rules = vec![allow("first", &[domains(&["x.example"])]), second];
    let policy = compiled(&only(vec![egress("p", 0, rules)]), NodeDefault::Deny);
    expect(&policy, WEB, 1, &[], "denied EgressPolicy/shop/p rules[1] rule");
}

#[test]
fn pods_selected_alike_share_what_is_compiled() {
    let set = PolicySet::compile(&only(vec![egress("p", 0, vec![])]), settings(NodeDefault::Deny));
    let other = Workload { name: "web-2".to_owned(), ..pod() };
    let elsewhere = Workload { namespace: "other".to_owned(), ..pod() };
    let held = set.for_workload(&pod());
    assert!(held.shares_with(&set.for_workload(&other)));
    assert!(!held.shares_with(&set.for_workload(&elsewhere)));
}

#[test]
fn an_explanation_shows_the_way() {
    let mut upstreams = KnownUpstreams::default();
    upstreams.add_cluster("proxy");
    let rules = vec![
        allow("other", &[domains(&["other.example"])]),
        on(&[tcp(80, 80)], allow("plain", &[domains(&["api.example"])])),
        via("proxy", on(&[tcp(443, 443)], allow("api", &[domains(&["*.example"])]))),
    ];
    let cluster = vec![cluster(
        ClusterTier::Admin,
        "guard",
        0,
        vec![cluster_rule("leave", ClusterAction::Pass, &[networks(&["0.0.0.0/0"], &[])])],
    )];
    let policies = Policies { egress: vec![egress("web", 0, rules)], cluster, upstreams };
    let policy = compiled(&policies, NodeDefault::Deny);
    let known_as = names(&["api.example"]);
    let query = FlowQuery { protocol: Protocol::Tcp, destination: ip(WEB), port: 443, names: &known_as };
    let expected = "\
tcp to 93.184.216.34 port 443
as api.example:
  admin: ClusterEgressPolicy/guard leave passes to the next tier
    * ClusterEgressPolicy/guard leave (pass): matches by 0.0.0.0/0
  egress: EgressPolicy/shop/web api decides
    - EgressPolicy/shop/web other (allow via node-upstream): other destinations
    - EgressPolicy/shop/web plain (allow via node-upstream): this destination, but only 80/tcp
    * EgressPolicy/shop/web api (allow via proxy): matches by *.example
allowed by EgressPolicy/shop/web api via proxy";
    assert_eq!(policy.explain(&query).to_string(), expected);
}
