//! Which policies are about which pods.

mod common;

use common::*;
use tunproxy_policy::model::{ClusterAction, ClusterTier, EgressPolicy, Policies, Subject, UdpFiltering};
use tunproxy_policy::selector::{Operator, Requirement};
use tunproxy_policy::{DenyReason, LabelSelector, NodeDefault, PolicySet, Workload, WorkloadPolicy};

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
fn one_enforcing_policy_that_selects_the_pod_opens_its_udp_ports() {
    let open = UdpFiltering::EndpointIndependent;
    let wide = |name: &str| EgressPolicy { udp_filtering: open, ..egress(name, 10, vec![]) };
    let closed = UdpFiltering::AddressAndPortDependent;
    for (policies, expected) in [
        (vec![], closed),
        (vec![egress("a", 10, vec![])], closed),
        (vec![egress("a", 10, vec![]), wide("b")], open),
        // An audit opens nothing.
        (vec![audit(wide("a"))], closed),
        (vec![EgressPolicy { namespace: "other".to_owned(), ..wide("a") }], closed),
    ] {
        let policy = compiled(&only(policies), NodeDefault::Allow);
        assert_eq!(policy.udp_filtering(), expected);
    }
    assert_eq!(WorkloadPolicy::deny_all(DenyReason::NoPolicy).udp_filtering(), closed);
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
fn pods_selected_alike_share_what_is_compiled() {
    let set = PolicySet::compile(&only(vec![egress("p", 0, vec![])]), settings(NodeDefault::Deny));
    let other = Workload { name: "web-2".to_owned(), ..pod() };
    let elsewhere = Workload { namespace: "other".to_owned(), ..pod() };
    let held = set.for_workload(&pod());
    assert!(held.shares_with(&set.for_workload(&other)));
    assert!(!held.shares_with(&set.for_workload(&elsewhere)));
}
