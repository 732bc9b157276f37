//! Deciding a flow.

use std::net::IpAddr;
use std::sync::Arc;

use crate::compile::{Compiled, Node, NodeDefault, Tier, Tiers};
use crate::decision::{
    Decision, DenyReason, FlowQuery, Permit, Protocol, Refusal, RuleId, UpstreamRef, Verdict,
};
use crate::model::UdpFiltering;
use crate::names::DomainName;
use crate::networks;
use crate::ports::Ordinal;
use crate::rule::Effect;

const DNS_PORT: u16 = 53;

/// Decides the flows of the pods it was compiled for. Cloning shares; [`PolicySet`](crate::PolicySet) makes one.
#[derive(Clone, Debug)]
pub struct WorkloadPolicy(Source);

#[derive(Clone, Debug)]
enum Source {
    Compiled(Arc<Compiled>),
    /// Refuses everything: there is nothing to decide by.
    DenyAll(DenyReason),
}

impl WorkloadPolicy {
    pub(crate) fn new(compiled: Arc<Compiled>) -> Self {
        Self(Source::Compiled(compiled))
    }

    /// Refuses every flow, for pods whose policy is not there.
    pub fn deny_all(reason: DenyReason) -> Self {
        Self(Source::DenyAll(reason))
    }

    /// From whom the pod's open UDP ports take datagrams.
    pub fn udp_filtering(&self) -> UdpFiltering {
        match &self.0 {
            Source::Compiled(compiled) => compiled.udp_filtering,
            Source::DenyAll(_) => UdpFiltering::AddressAndPortDependent,
        }
    }

    pub fn decide(&self, query: &FlowQuery<'_>) -> Decision {
        match &self.0 {
            Source::Compiled(compiled) => decide(compiled, query),
            Source::DenyAll(reason) => Decision::Deny(Refusal {
                rule: RuleId { policy: "node".into(), rule: reason.label().into() },
                reason: *reason,
                name: query.names.last().cloned(),
            }),
        }
    }

    /// Whether both are one compiled policy: pods that the same documents select.
    pub fn shares_with(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Source::Compiled(one), Source::Compiled(two)) => Arc::ptr_eq(one, two),
            (Source::DenyAll(one), Source::DenyAll(two)) => one == two,
            (Source::Compiled(_), Source::DenyAll(_)) | (Source::DenyAll(_), Source::Compiled(_)) => false,
        }
    }

    pub(crate) fn compiled(&self) -> Option<&Compiled> {
        match &self.0 {
            Source::Compiled(compiled) => Some(compiled),
            Source::DenyAll(_) => None,
        }
    }
}

/// What one name (or none) comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outcome<'a> {
    rule: &'a RuleId,
    fate: Fate<'a>,
    rank: Rank,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate<'a> {
    Allowed { upstream: &'a UpstreamRef, verdict: Verdict },
    Refused(DenyReason),
}

/// Where in the order an outcome was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Rule { tier: u8, ordinal: Ordinal },
    Node,
}

fn decide(compiled: &Compiled, query: &FlowQuery<'_>) -> Decision {
    let asked = Asked::new(compiled, query);
    let Some((latest, earlier)) = query.names.split_last() else {
        return asked.outcome(None).into_decision(None);
    };
    let outcome = asked.outcome(Some(latest));
    if earlier.iter().all(|name| asked.outcome(Some(name)).is_like(&outcome)) {
        return outcome.into_decision(Some(latest));
    }
    let outcomes: Vec<_> = earlier.iter().map(|name| (name, asked.outcome(Some(name)))).collect();
    decide_among((latest, outcome), &outcomes)
}

/// The names of one address do not come to the same: what they come to, in the order learnt.
fn decide_among<'a>(
    latest: (&'a DomainName, Outcome<'a>),
    earlier: &[(&'a DomainName, Outcome<'a>)],
) -> Decision {
    let (name, strictest) = earlier.iter().rev().fold(latest, |strictest, other| {
        if other.1.strictness() < strictest.1.strictness() { *other } else { strictest }
    });
    let fallback = strictest.into_decision(Some(name));
    // The latest answer is the likeliest reason for this flow.
    let mut latest_first = std::iter::once(&latest).chain(earlier.iter().rev());
    match latest_first.find_map(|(name, outcome)| outcome.into_permit(Some(name))) {
        Some(provisional) => Decision::ByName { provisional, fallback: Box::new(fallback) },
        None => fallback,
    }
}

impl Outcome<'_> {
    fn is_like(&self, other: &Self) -> bool {
        self.fate == other.fate && self.rule == other.rule
    }

    /// Lower is stricter: refusals by how deliberate they are, then what is only allowed because its policy audits, then
    /// what is allowed; the earlier in the order first.
    fn strictness(&self) -> (u8, Rank) {
        let degree = match self.fate {
            Fate::Refused(DenyReason::Rule) => 0,
            Fate::Refused(DenyReason::BrokenRule) => 1,
            Fate::Refused(DenyReason::ReservedDestination) => 2,
            Fate::Refused(DenyReason::NoPolicy) => 3,
            Fate::Refused(DenyReason::NoRuleMatched) => 4,
            Fate::Refused(DenyReason::NodeDefault) => 5,
            Fate::Allowed { verdict: Verdict::Audited, upstream: _ } => 6,
            Fate::Allowed { verdict: Verdict::Allowed, upstream: _ } => 7,
        };
        (degree, self.rank)
    }

    fn into_permit(self, name: Option<&DomainName>) -> Option<Permit> {
        match self.fate {
            Fate::Allowed { upstream, verdict } => {
                Some(Permit::new(self.rule.clone(), upstream.clone(), name.cloned(), verdict))
            }
            Fate::Refused(_) => None,
        }
    }

    fn into_decision(self, name: Option<&DomainName>) -> Decision {
        match self.fate {
            Fate::Allowed { upstream, verdict } => {
                Decision::Allow(Permit::new(self.rule.clone(), upstream.clone(), name.cloned(), verdict))
            }
            Fate::Refused(reason) => {
                Decision::Deny(Refusal { rule: self.rule.clone(), reason, name: name.cloned() })
            }
        }
    }
}

/// A query against one compiled policy. What does not depend on the name is looked up once.
struct Asked<'a> {
    node: &'a Node,
    flow: Flow,
    enforced: Walk<'a>,
    trial: Option<Walk<'a>>,
}

#[derive(Clone, Copy)]
struct Flow {
    protocol: Protocol,
    destination: IpAddr,
    port: u16,
    reserved: bool,
}

struct Walk<'a> {
    tiers: &'a Tiers,
    by_address: [Option<Ordinal>; 3],
}

impl<'a> Asked<'a> {
    fn new(compiled: &'a Compiled, query: &FlowQuery<'_>) -> Self {
        let destination = query.destination.to_canonical();
        let reserved = networks::is_reserved(destination);
        let flow = Flow { protocol: query.protocol, destination, port: query.port, reserved };
        Self {
            node: &compiled.node,
            flow,
            enforced: Walk::new(&compiled.enforced, flow),
            trial: compiled.trial.as_ref().map(|tiers| Walk::new(tiers, flow)),
        }
    }

    /// An auditing policy neither refuses nor opens anything: the enforcing ones alone decide the fate, and where they
    /// allow, the trial of all tells whether to record a refusal and, if only a default allowed, which rule and upstream
    /// the flow would have had.
    fn outcome(&self, name: Option<&DomainName>) -> Outcome<'a> {
        let enforced = self.enforced.outcome(self.node, self.flow, name);
        let (Some(trial), Fate::Allowed { upstream, .. }) = (&self.trial, enforced.fate) else {
            return enforced;
        };
        let trial = trial.outcome(self.node, self.flow, name);
        match trial.fate {
            Fate::Refused(_) => {
                Outcome { fate: Fate::Allowed { upstream, verdict: Verdict::Audited }, ..trial }
            }
            Fate::Allowed { .. } if enforced.rank == Rank::Node => trial,
            Fate::Allowed { .. } => enforced,
        }
    }
}

impl<'a> Walk<'a> {
    fn new(tiers: &'a Tiers, flow: Flow) -> Self {
        let by_address =
            tiers.each().map(|tier| tier.index(flow).by_address(flow.protocol, flow.destination, flow.port));
        Self { tiers, by_address }
    }

    fn outcome(&self, node: &'a Node, flow: Flow, name: Option<&DomainName>) -> Outcome<'a> {
        for (position, tier) in self.tiers.each().into_iter().enumerate() {
            let by_name = name.and_then(|name| tier.index(flow).by_name(flow.protocol, name, flow.port));
            if let Some(ordinal) = self.by_address[position].into_iter().chain(by_name).min() {
                let rule = &tier.rules[ordinal as usize];
                let fate = match &rule.effect {
                    Effect::Pass => continue,
                    Effect::Allow(upstream) => Fate::Allowed { upstream, verdict: Verdict::Allowed },
                    Effect::Deny => Fate::Refused(DenyReason::Rule),
                    Effect::Broken { .. } => Fate::Refused(DenyReason::BrokenRule),
                };
                return Outcome { rule: &rule.id, fate, rank: Rank::Rule { tier: position as u8, ordinal } };
            }
            if position == Tiers::EGRESS
                && let Some(default) = &self.tiers.egress_default
            {
                return node.undecided(flow, default, Fate::Refused(DenyReason::NoRuleMatched));
            }
        }
        node.undecided(flow, &node.default_rule, node.default_fate())
    }
}

impl Node {
    /// No rule matched: the default holds, but a reserved destination is refused whatever the default, and the trusted
    /// resolvers are open and asked directly: names have to be known before an upstream can be given them, and many an
    /// upstream carries no UDP.
    fn undecided<'a>(&'a self, flow: Flow, rule: &'a RuleId, default: Fate<'a>) -> Outcome<'a> {
        let (rule, fate) = match default {
            _ if self.is_resolver(flow) => {
                (&self.dns_rule, Fate::Allowed { upstream: &self.direct, verdict: Verdict::Allowed })
            }
            _ if flow.reserved => (&self.reserved_rule, Fate::Refused(DenyReason::ReservedDestination)),
            Fate::Allowed { .. } | Fate::Refused(_) => (rule, default),
        };
        Outcome { rule, fate, rank: Rank::Node }
    }

    fn default_fate(&self) -> Fate<'_> {
        match self.settings.default {
            NodeDefault::Allow => {
                Fate::Allowed { upstream: &self.settings.upstream, verdict: Verdict::Allowed }
            }
            NodeDefault::Deny => Fate::Refused(DenyReason::NodeDefault),
        }
    }

    fn is_resolver(&self, flow: Flow) -> bool {
        let carries_dns = match flow.protocol {
            Protocol::Tcp | Protocol::Udp => flow.port == DNS_PORT,
            Protocol::Icmp => false,
        };
        carries_dns && self.settings.resolvers.contains(&flow.destination)
    }
}

impl Tiers {
    const EGRESS: usize = 1;

    pub(crate) fn each(&self) -> [&Tier; 3] {
        [&self.admin, &self.egress, &self.baseline]
    }
}

impl Tier {
    fn index(&self, flow: Flow) -> &crate::index::DestinationIndex {
        if flow.reserved { &self.reserved } else { &self.ordinary }
    }
}

#[allow(dead_code, reason = "a compile-time proof that workers can share one policy")]
fn assert_shareable(policy: WorkloadPolicy) -> impl Send + Sync {
    policy
}
