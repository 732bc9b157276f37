//! Validated documents: what the agent's readers (files, the cluster) hand over, and [`crate::PolicySet`] compiles.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;

use crate::decision::{Protocol, UpstreamRef};
use crate::names::DomainPattern;
use crate::selector::LabelSelector;

/// All documents in force on a node, in any order: order never changes a decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    pub egress: Vec<EgressPolicy>,
    pub cluster: Vec<ClusterEgressPolicy>,
    pub upstreams: KnownUpstreams,
}

/// The upstreams that `via` can name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownUpstreams(BTreeSet<String>);

/// 0-1000, lower first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u16);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressPolicy {
    pub namespace: String,
    pub name: String,
    pub pod_selector: LabelSelector,
    /// Empty: whatever the pod's service account.
    pub service_accounts: Vec<String>,
    pub priority: Priority,
    pub enforcement: Enforcement,
    pub dns: DnsMode,
    pub udp_filtering: UdpFiltering,
    pub rules: Vec<Rule<EgressAction>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterEgressPolicy {
    pub name: String,
    pub subject: Subject,
    pub tier: ClusterTier,
    pub priority: Priority,
    pub rules: Vec<Rule<ClusterAction>>,
}

/// The pods a cluster policy is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Namespaces(LabelSelector),
    Pods { namespace_selector: LabelSelector, pod_selector: LabelSelector },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforcement {
    #[default]
    Enforce,
    /// Refuses nothing and opens nothing: what it would have refused is recorded.
    Audit,
}

/// From whom a pod's open UDP port takes datagrams (RFC 4787 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UdpFiltering {
    /// From where it has sent one.
    #[default]
    AddressAndPortDependent,
    /// From everybody whom policy lets it send to directly.
    EndpointIndependent,
}

/// How names are learnt for the pods of a policy; carried here, enforced by the DNS interception.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsMode {
    #[default]
    Observe,
    FakeIp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClusterTier {
    Admin,
    Baseline,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressAction {
    Allow,
    Deny,
}

/// The vocabulary of network-policy-api's ClusterNetworkPolicy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterAction {
    Accept,
    Deny,
    /// Leaves the flow to the tiers below.
    Pass,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule<Action> {
    pub name: Option<String>,
    pub action: Action,
    /// Empty: any destination.
    pub to: Vec<Destination>,
    /// Empty: every port of every protocol.
    pub ports: Vec<PortMatch>,
    /// The name of an upstream, resolved by [`KnownUpstreams::resolve`]; `None`: the node's default.
    pub via: Option<String>,
    pub limits: Limits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Domains(Vec<DomainPattern>),
    Networks { networks: Vec<IpNet>, except: Vec<IpNet> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortMatch {
    pub protocol: Protocol,
    /// `None`: every port. ICMP has none.
    pub range: Option<PortRange>,
}

/// An inclusive range of ports, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Carried here, enforced by the datapath.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub connections: Option<u32>,
    pub bytes_per_second: Option<u64>,
}

impl Priority {
    pub const MAX: u16 = 1000;

    pub fn new(value: u16) -> Option<Self> {
        (value <= Self::MAX).then_some(Self(value))
    }

    pub fn get(self) -> u16 {
        self.0
    }
}

impl PortRange {
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    pub fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    pub fn first(self) -> u16 {
        self.first
    }

    pub fn last(self) -> u16 {
        self.last
    }

    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl KnownUpstreams {
    /// A namespaced Upstream; policies of its namespace can name it.
    pub fn add_namespaced(&mut self, namespace: &str, name: &str) {
        self.0.insert(format!("{namespace}/{name}"));
    }

    /// A ClusterUpstream; every policy can name it.
    pub fn add_cluster(&mut self, name: &str) {
        self.0.insert(name.to_owned());
    }

    /// The upstream that `name` means in a policy: the policy's namespace first, then the cluster's. `direct` is
    /// always known.
    pub fn resolve(&self, namespace: Option<&str>, name: &str) -> Option<UpstreamRef> {
        let namespaced = namespace.map(|namespace| format!("{namespace}/{name}"));
        if let Some(identity) = namespaced.and_then(|identity| self.0.get(&identity)) {
            return Some(UpstreamRef(identity.as_str().into()));
        }
        // A slash would let a policy reach into another namespace.
        let known = name == "direct" || (!name.contains('/') && self.0.contains(name));
        known.then(|| UpstreamRef(name.into()))
    }

    /// The names a policy of `namespace` can use, for error messages.
    pub fn visible_from(&self, namespace: Option<&str>) -> Vec<&str> {
        let visible = self.0.iter().filter_map(|identity| match identity.split_once('/') {
            None => Some(identity.as_str()),
            Some((owner, name)) => (namespace == Some(owner)).then_some(name),
        });
        let mut names: Vec<_> = visible.collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.range {
            Some(range) => write!(f, "{range}/{}", self.protocol),
            None => write!(f, "any/{}", self.protocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn via_prefers_the_policys_namespace() {
        let mut known = KnownUpstreams::default();
        known.add_namespaced("shop", "proxy");
        known.add_cluster("proxy");
        let resolve = |namespace, name| known.resolve(namespace, name).map(|found| found.0.to_string());
        assert_eq!(resolve(Some("shop"), "proxy").as_deref(), Some("shop/proxy"));
        assert_eq!(resolve(Some("other"), "proxy").as_deref(), Some("proxy"));
        assert_eq!(resolve(None, "proxy").as_deref(), Some("proxy"));
        assert_eq!(resolve(None, "direct").as_deref(), Some("direct"));
        assert_eq!(
            resolve(Some("other"), "shop/proxy"),
            None,
            "another namespace's upstream is out of reach"
        );
        assert_eq!(resolve(Some("shop"), "absent"), None);
    }
}
