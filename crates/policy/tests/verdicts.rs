//! Audited flows, several names on one address, and explanations.

mod common;

use common::*;
use tunproxy_policy::model::{ClusterAction, ClusterTier, KnownUpstreams, Policies};
use tunproxy_policy::{FlowQuery, NodeDefault, Protocol};

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
