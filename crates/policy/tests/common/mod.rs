//! Short ways to write documents and questions.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use tunproxy_policy::model::{
    ClusterAction, ClusterEgressPolicy, ClusterTier, Destination, DnsMode, EgressAction, EgressPolicy,
    Enforcement, Limits, Policies, PortMatch, PortRange, Priority, Rule, Subject, UdpFiltering,
};
use tunproxy_policy::{
    Decision, DomainName, DomainPattern, FlowQuery, LabelSelector, NodeDefault, NodeSettings, PolicySet,
    Protocol, UpstreamRef, Workload, WorkloadPolicy,
};

pub fn name(text: &str) -> DomainName {
    DomainName::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

pub fn names(texts: &[&str]) -> Vec<DomainName> {
    texts.iter().map(|text| name(text)).collect()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

pub fn domains(patterns: &[&str]) -> Destination {
    let parse = |text: &&str| DomainPattern::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    Destination::Domains(patterns.iter().map(parse).collect())
}

pub fn networks(networks: &[&str], except: &[&str]) -> Destination {
    let parse = |texts: &[&str]| {
        texts.iter().map(|text| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))).collect()
    };
    Destination::Networks { networks: parse(networks), except: parse(except) }
}

pub fn tcp(first: u16, last: u16) -> PortMatch {
    PortMatch { protocol: Protocol::Tcp, range: PortRange::new(first, last) }
}

pub fn every(protocol: Protocol) -> PortMatch {
    PortMatch { protocol, range: None }
}

pub fn priority(value: u16) -> Priority {
    Priority::new(value).unwrap_or_else(|| panic!("{value} is no priority"))
}

/// Any destination, every port, the default upstream.
pub fn rule<Action>(name: &str, action: Action) -> Rule<Action> {
    Rule {
        name: Some(name.to_owned()),
        action,
        to: vec![],
        ports: vec![],
        via: None,
        limits: Limits::default(),
    }
}

pub fn allow(name: &str, to: &[Destination]) -> Rule<EgressAction> {
    Rule { to: to.to_vec(), ..rule(name, EgressAction::Allow) }
}

pub fn deny(name: &str, to: &[Destination]) -> Rule<EgressAction> {
    Rule { to: to.to_vec(), ..rule(name, EgressAction::Deny) }
}

pub fn via<Action>(upstream: &str, rule: Rule<Action>) -> Rule<Action> {
    Rule { via: Some(upstream.to_owned()), ..rule }
}

pub fn on<Action>(ports: &[PortMatch], rule: Rule<Action>) -> Rule<Action> {
    Rule { ports: ports.to_vec(), ..rule }
}

pub fn cluster_rule(name: &str, action: ClusterAction, to: &[Destination]) -> Rule<ClusterAction> {
    Rule { to: to.to_vec(), ..rule(name, action) }
}

/// Of namespace `shop`, for all its pods.
pub fn egress(name: &str, level: u16, rules: Vec<Rule<EgressAction>>) -> EgressPolicy {
    EgressPolicy {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        pod_selector: LabelSelector::default(),
        service_accounts: vec![],
        priority: priority(level),
        enforcement: Enforcement::Enforce,
        dns: DnsMode::Observe,
        udp_filtering: UdpFiltering::default(),
        rules,
    }
}

pub fn audit(policy: EgressPolicy) -> EgressPolicy {
    EgressPolicy { enforcement: Enforcement::Audit, ..policy }
}

/// For all pods.
pub fn cluster(
    tier: ClusterTier,
    name: &str,
    level: u16,
    rules: Vec<Rule<ClusterAction>>,
) -> ClusterEgressPolicy {
    ClusterEgressPolicy {
        name: name.to_owned(),
        subject: Subject::Namespaces(LabelSelector::default()),
        tier,
        priority: priority(level),
        rules,
    }
}

pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub fn pod() -> Workload {
    Workload {
        namespace: "shop".to_owned(),
        name: "web-1".to_owned(),
        labels: labels(&[("app", "web")]),
        service_account: Some("web".to_owned()),
        ..Workload::default()
    }
}

pub fn settings(default: NodeDefault) -> NodeSettings {
    let resolvers = vec![ip("10.96.0.10"), ip("169.254.20.10")];
    NodeSettings { default, upstream: UpstreamRef("node-upstream".into()), resolvers }
}

pub fn only(egress: Vec<EgressPolicy>) -> Policies {
    Policies { egress, ..Policies::default() }
}

pub fn compiled(policies: &Policies, default: NodeDefault) -> WorkloadPolicy {
    PolicySet::compile(policies, settings(default)).for_workload(&pod())
}

pub fn ask(policy: &WorkloadPolicy, destination: &str, port: u16, known_as: &[&str]) -> Decision {
    let names = names(known_as);
    policy.decide(&FlowQuery { protocol: Protocol::Tcp, destination: ip(destination), port, names: &names })
}

/// `allowed RULE via UPSTREAM [as NAME]`, `audited ...`, `denied RULE REASON [as NAME]`, `by name: PROVISIONAL else FALLBACK`.
pub fn told(decision: &Decision) -> String {
    use tunproxy_policy::{Permit, Verdict};
    let known_as = |name: Option<&DomainName>| name.map_or(String::new(), |name| format!(" as {name}"));
    let permit = |permit: &Permit| {
        let verdict = match permit.verdict() {
            Verdict::Allowed => "allowed",
            Verdict::Audited => "audited",
        };
        format!("{verdict} {} via {}{}", permit.rule(), permit.upstream(), known_as(permit.name()))
    };
    match decision {
        Decision::Allow(allowed) => permit(allowed),
        Decision::Deny(refusal) => {
            format!("denied {} {}{}", refusal.rule, refusal.reason.label(), known_as(refusal.name.as_ref()))
        }
        Decision::ByName { provisional, fallback } => {
            format!("by name: {} else {}", permit(provisional), told(fallback))
        }
    }
}

/// A web server somewhere.
pub const WEB: &str = "93.184.216.34";

#[track_caller]
pub fn expect(policy: &WorkloadPolicy, destination: &str, port: u16, known_as: &[&str], expected: &str) {
    let answer = told(&ask(policy, destination, port, known_as));
    assert_eq!(answer, expected, "{destination}:{port} as {known_as:?}");
}
