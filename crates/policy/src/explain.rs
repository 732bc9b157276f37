//! Why a flow is decided as it is: a plain walk over every rule, independent of the indexes that decide.

use std::fmt;
use std::net::IpAddr;

use crate::compile::{NodeDefault, Tier, Tiers};
use crate::decision::{Decision, FlowQuery, Protocol, RuleId};
use crate::evaluate::WorkloadPolicy;
use crate::model::Destination;
use crate::names::DomainName;
use crate::networks;
use crate::rule::{CompiledRule, Effect, Scope};

/// Rules shown per tier: those next to the one that decides say more than those far above it.
const SHOWN: usize = 12;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub protocol: Protocol,
    /// Canonical: a v4-mapped destination is shown as the IPv4 address it means.
    pub destination: IpAddr,
    pub port: u16,
    /// One for each name of the query, or one without a name.
    pub walks: Vec<Walk>,
    pub decision: Decision,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    pub name: Option<DomainName>,
    /// Up to the tier that decides.
    pub tiers: Vec<TierTrace>,
    /// No tier decided: what the node's settings say.
    pub node: Option<NodeDefault>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TierName {
    Admin,
    Egress,
    Baseline,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierTrace {
    pub tier: TierName,
    /// Rules before `rules` that do not match and are left out.
    pub omitted: usize,
    /// The last rules looked at, in their order.
    pub rules: Vec<RuleTrace>,
    pub result: TierResult,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TierResult {
    Decided(RuleId),
    /// A Pass rule matched: the tiers below decide.
    Passed(RuleId),
    /// Nothing matched, and the policy named here refuses what no rule allows.
    DefaultDeny(RuleId),
    NoMatch,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleTrace {
    pub rule: RuleId,
    pub action: Action,
    /// The rule's policy only audits: it is recorded and never decides.
    pub audit: bool,
    pub outcome: Match,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Allow {
        via: String,
    },
    Deny,
    Pass,
    /// Refuses what it matches, as the upstream it names is not known.
    Broken {
        unknown_upstream: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// By what: `any destination`, a domain pattern or a network.
    Matched {
        by: String,
    },
    Destination(Mismatch),
    /// The destination matches; the ports it is open on are these.
    Port {
        covers: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// None of the rule's domains and networks.
    Elsewhere,
    /// The rule knows only domains, and no trusted resolver named this address.
    NoName,
    /// One of its networks holds the address and its `except` takes it out.
    Excepted,
    /// The destination is reserved, and the rule names no network inside the reserved range.
    Reserved,
}

impl WorkloadPolicy {
    /// Answers as [`Self::decide`] and shows the way there.
    pub fn explain(&self, query: &FlowQuery<'_>) -> Explanation {
        let destination = query.destination.to_canonical();
        let walks = match self.compiled() {
            None => Vec::new(),
            Some(compiled) => {
                let tiers = compiled.trial.as_ref().unwrap_or(&compiled.enforced);
                let enforcing_default = compiled.enforced.egress_default.as_ref();
                let explainer = Explainer {
                    tiers,
                    enforcing_default,
                    default: compiled.node.settings.default,
                    query: FlowQuery { destination, ..*query },
                    scope: Scope::of(destination),
                };
                let names = query.names.iter().map(Some).chain(query.names.is_empty().then_some(None));
                names.map(|name| explainer.walk(name)).collect()
            }
        };
        let decision = self.decide(query);
        Explanation { protocol: query.protocol, destination, port: query.port, walks, decision }
    }
}

struct Explainer<'a> {
    tiers: &'a Tiers,
    enforcing_default: Option<&'a RuleId>,
    default: NodeDefault,
    query: FlowQuery<'a>,
    scope: Scope,
}

impl Explainer<'_> {
    fn walk(&self, name: Option<&DomainName>) -> Walk {
        let mut traces = Vec::new();
        for (tier, rules) in
            [TierName::Admin, TierName::Egress, TierName::Baseline].into_iter().zip(self.tiers.each())
        {
            let trace = self.tier(tier, rules, name);
            let decided = matches!(trace.result, TierResult::Decided(_) | TierResult::DefaultDeny(_));
            traces.push(trace);
            if decided {
                return Walk { name: name.cloned(), tiers: traces, node: None };
            }
        }
        Walk { name: name.cloned(), tiers: traces, node: Some(self.default) }
    }

    fn tier(&self, name: TierName, tier: &Tier, domain: Option<&DomainName>) -> TierTrace {
        let mut rules = Vec::new();
        let mut result = None;
        for rule in &tier.rules {
            let outcome = self.check(rule, domain);
            let matched = matches!(outcome, Match::Matched { .. });
            rules.push((rule, outcome));
            if matched && !rule.audit {
                result = Some(match rule.effect {
                    Effect::Pass => TierResult::Passed(rule.id.clone()),
                    Effect::Allow(_) | Effect::Deny | Effect::Broken { .. } => {
                        TierResult::Decided(rule.id.clone())
                    }
                });
                break;
            }
        }
        let default = (name == TierName::Egress).then_some(self.enforcing_default).flatten();
        let unmatched = || default.cloned().map_or(TierResult::NoMatch, TierResult::DefaultDeny);
        let (omitted, rules) = nearest(&rules);
        TierTrace { tier: name, omitted, rules, result: result.unwrap_or_else(unmatched) }
    }

    fn check(&self, rule: &CompiledRule, name: Option<&DomainName>) -> Match {
        let by = match rule.destination(self.query.destination, name, self.scope) {
            Ok(by) => by,
            Err(mismatch) => return Match::Destination(mismatch),
        };
        if rule.ports.contains(self.query.protocol, self.query.port) {
            return Match::Matched { by };
        }
        let covers: Vec<_> = rule.port_list.iter().map(ToString::to_string).collect();
        Match::Port { covers: covers.join(", ") }
    }
}

/// The last rules, and any rule further up that matched (an auditing one) or missed by its port alone.
fn nearest(rules: &[(&std::sync::Arc<CompiledRule>, Match)]) -> (usize, Vec<RuleTrace>) {
    let near = rules.len().saturating_sub(SHOWN);
    let (far, near) = rules.split_at(near);
    let telling: Vec<_> =
        far.iter().filter(|(_, outcome)| !matches!(outcome, Match::Destination(_))).collect();
    let telling = &telling[telling.len().saturating_sub(SHOWN)..];
    let shown = telling.iter().copied().chain(near);
    let traces = shown.map(|(rule, outcome)| RuleTrace {
        rule: rule.id.clone(),
        action: Action::of(&rule.effect),
        audit: rule.audit,
        outcome: outcome.clone(),
    });
    (far.len() - telling.len(), traces.collect())
}

impl CompiledRule {
    /// What makes the rule match this destination, by name or by address.
    fn destination(
        &self,
        address: IpAddr,
        name: Option<&DomainName>,
        scope: Scope,
    ) -> Result<String, Mismatch> {
        let matches_all = self.effect.matches_all(scope);
        if self.to.is_empty() && matches_all {
            return Ok("any destination".to_owned());
        }
        let mut mismatch = if matches_all { Mismatch::NoName } else { Mismatch::Reserved };
        for destination in &self.to {
            match destination {
                Destination::Domains(patterns) => {
                    let named = name.and_then(|name| patterns.iter().find(|pattern| pattern.matches(name)));
                    match named {
                        Some(pattern) if matches_all => return Ok(pattern.to_string()),
                        Some(_) | None => {}
                    }
                    if name.is_some() && mismatch == Mismatch::NoName {
                        mismatch = Mismatch::Elsewhere;
                    }
                }
                Destination::Networks { networks, except } => {
                    let around = |network: &&ipnet::IpNet| {
                        network.contains(&address) && self.effect.matches_through(network, scope)
                    };
                    match networks.iter().find(around) {
                        Some(network) if !except.iter().any(|hole| hole.contains(&address)) => {
                            return Ok(network.to_string());
                        }
                        Some(_) => mismatch = Mismatch::Excepted,
                        None if mismatch == Mismatch::NoName => mismatch = Mismatch::Elsewhere,
                        None => {}
                    }
                }
            }
        }
        Err(mismatch)
    }
}

impl Scope {
    fn of(destination: IpAddr) -> Self {
        if networks::is_reserved(destination) { Self::Reserved } else { Self::Ordinary }
    }
}

impl Action {
    fn of(effect: &Effect) -> Self {
        match effect {
            Effect::Allow(upstream) => Self::Allow { via: upstream.to_string() },
            Effect::Deny => Self::Deny,
            Effect::Pass => Self::Pass,
            Effect::Broken { upstream } => Self::Broken { unknown_upstream: upstream.clone() },
        }
    }

    pub fn label(&self) -> &'static str {
        match self {
            Self::Allow { .. } => "allow",
            Self::Deny => "deny",
            Self::Pass => "pass",
            Self::Broken { .. } => "broken",
        }
    }
}

impl TierName {
    pub fn label(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Egress => "egress",
            Self::Baseline => "baseline",
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, destination, port, walks, decision } = self;
        match protocol {
            Protocol::Tcp | Protocol::Udp => writeln!(f, "{protocol} to {destination} port {port}")?,
            Protocol::Icmp => writeln!(f, "{protocol} to {destination}")?,
        }
        for walk in walks {
            write!(f, "{walk}")?;
        }
        write!(f, "{decision}")
    }
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => writeln!(f, "as {name}:")?,
            None => writeln!(f, "by address alone (no trusted resolver named it):")?,
        }
        for tier in &self.tiers {
            write!(f, "{tier}")?;
        }
        match self.node {
            Some(NodeDefault::Allow) => writeln!(f, "  node: no tier decides; the node's default is Allow"),
            Some(NodeDefault::Deny) => writeln!(f, "  node: no tier decides; the node's default is Deny"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for TierTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tier = self.tier.label();
        match &self.result {
            TierResult::Decided(rule) => writeln!(f, "  {tier}: {rule} decides")?,
            TierResult::Passed(rule) => writeln!(f, "  {tier}: {rule} passes to the next tier")?,
            TierResult::DefaultDeny(rule) => {
                writeln!(
                    f,
                    "  {tier}: no rule matches; {} selects this pod and refuses the rest",
                    rule.policy
                )?;
            }
            TierResult::NoMatch if self.rules.is_empty() => writeln!(f, "  {tier}: no rules for this pod")?,
            TierResult::NoMatch => writeln!(f, "  {tier}: no rule matches")?,
        }
        if self.omitted > 0 {
            writeln!(f, "    ... {} rules before these do not match", self.omitted)?;
        }
        self.rules.iter().try_for_each(|rule| writeln!(f, "    {rule}"))
    }
}

impl fmt::Display for RuleTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if matches!(self.outcome, Match::Matched { .. }) { '*' } else { '-' };
        let audit = if self.audit { ", audit only" } else { "" };
        write!(f, "{mark} {} ({}{audit}): {}", self.rule, self.action, self.outcome)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow { via } => write!(f, "allow via {via}"),
            Self::Deny => f.write_str("deny"),
            Self::Pass => f.write_str("pass"),
            Self::Broken { unknown_upstream } => {
                write!(f, "allow, refusing as no upstream is named {unknown_upstream:?}")
            }
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matched { by } => write!(f, "matches by {by}"),
            Self::Destination(Mismatch::Elsewhere) => f.write_str("other destinations"),
            Self::Destination(Mismatch::NoName) => f.write_str("knows only names, and this address has none"),
            Self::Destination(Mismatch::Excepted) => f.write_str("the address is in its `except`"),
            Self::Destination(Mismatch::Reserved) => f.write_str(
                "the address is reserved, and no network of the rule lies inside the reserved range",
            ),
            Self::Port { covers } => write!(f, "this destination, but only {covers}"),
        }
    }
}
