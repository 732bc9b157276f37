//! The question policy is asked and the answer it gives.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::names::DomainName;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// The names a pod was given for the destination address by a trusted resolver, in the order learnt (latest last).
/// Empty: no trusted resolver named this address; domain rules then match nothing.
pub type Names<'a> = &'a [DomainName];

/// One flow, as the pod asked for it.
#[derive(Clone, Copy, Debug)]
pub struct FlowQuery<'a> {
    pub protocol: Protocol,
    pub destination: IpAddr,
    /// 0 for ICMP.
    pub port: u16,
    pub names: Names<'a>,
}

/// The rule that decided, as logs and people name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RuleId {
    /// `EgressPolicy/namespace/name`, `ClusterEgressPolicy/name`, or `node` for what the node itself decides.
    pub policy: Arc<str>,
    /// The rule's name, else `rules[i]`; `default` and `dns` for the node's own.
    pub rule: Arc<str>,
}

/// Which upstream carries the flow: `direct`, or the identity of an Upstream document (`namespace/name`), or the URL of
/// the command line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamRef(pub Arc<str>);

impl UpstreamRef {
    pub fn direct() -> Self {
        Self(Arc::from("direct"))
    }

    pub fn is_direct(&self) -> bool {
        &*self.0 == "direct"
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Allowed,
    /// Allowed because the policy that would have refused it only audits.
    Audited,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenyReason {
    /// A Deny rule matched.
    Rule,
    /// The pod is selected by an enforcing policy and no rule matched.
    NoRuleMatched,
    /// The node's default for pods that no policy selects.
    NodeDefault,
    /// Loopback, link-local, multicast or unspecified, and no rule names that network.
    ReservedDestination,
    /// The rule that matches cannot be compiled (an unknown upstream, say); it refuses what it would match.
    BrokenRule,
    /// No policy is resident for this pod yet.
    NoPolicy,
}

impl DenyReason {
    /// The fixed label of logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::NoRuleMatched => "no-rule-matched",
            Self::NodeDefault => "node-default",
            Self::ReservedDestination => "reserved-destination",
            Self::BrokenRule => "broken-rule",
            Self::NoPolicy => "no-policy",
        }
    }
}

/// The right to connect, and the record of who gave it. Only policy makes one: connecting without a decision does
/// not compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    rule: RuleId,
    upstream: UpstreamRef,
    name: Option<DomainName>,
    verdict: Verdict,
}

impl Permit {
    pub(crate) fn new(
        rule: RuleId,
        upstream: UpstreamRef,
        name: Option<DomainName>,
        verdict: Verdict,
    ) -> Self {
        Self { rule, upstream, name, verdict }
    }

    pub fn rule(&self) -> &RuleId {
        &self.rule
    }

    pub fn upstream(&self) -> &UpstreamRef {
        &self.upstream
    }

    /// The name the flow is known by; an upstream that can dial names is given this one.
    pub fn name(&self) -> Option<&DomainName> {
        self.name.as_ref()
    }

    pub fn verdict(&self) -> Verdict {
        self.verdict
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub rule: RuleId,
    pub reason: DenyReason,
    pub name: Option<DomainName>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(Permit),
    Deny(Refusal),
    /// The address carries several leased names and policy does not treat them alike (verdict, rule or upstream). At
    /// least one of them is allowed. Connect with `provisional`, then ask again with the one name that TLS SNI or HTTP
    /// Host shows (if it is among the leased), before a byte passes; if none is shown, `fallback` (the strictest of the
    /// candidates' outcomes) holds.
    ByName {
        provisional: Permit,
        fallback: Box<Decision>,
    },
}

impl fmt::Display for UpstreamRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(permit) => permit.fmt(f),
            Self::Deny(refusal) => refusal.fmt(f),
            Self::ByName { provisional: _, fallback } => {
                write!(f, "by name: TLS SNI or HTTP Host decides; without one: {fallback}")
            }
        }
    }
}

impl fmt::Display for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verdict {
            Verdict::Allowed => write!(f, "allowed by {} via {}", self.rule, self.upstream),
            Verdict::Audited => {
                write!(f, "allowed via {}; {} would refuse it, and only audits", self.upstream, self.rule)
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "denied by {} ({})", self.rule, self.reason.label())
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.policy, self.rule)
    }
}
