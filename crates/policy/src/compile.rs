//! From documents to what one pod's flows are decided by.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::decision::{RuleId, UpstreamRef};
use crate::evaluate::WorkloadPolicy;
use crate::index::DestinationIndex;
use crate::model::{
    ClusterAction, ClusterEgressPolicy, ClusterTier, EgressAction, EgressPolicy, Enforcement, KnownUpstreams,
    Policies, Priority, Rule, Subject, UdpFiltering,
};
use crate::ports::PortSet;
use crate::rule::{CompiledRule, Effect, Scope, canonical_destinations};
use crate::selector::LabelSelector;
use crate::workload::Workload;

/// What the node itself brings to decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// For pods that no enforcing policy selects.
    pub default: NodeDefault,
    /// Carries what is allowed by a rule without `via`.
    pub upstream: UpstreamRef,
    /// The trusted resolvers; port 53 of these is open unless a rule refuses it.
    pub resolvers: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeDefault {
    Allow,
    Deny,
}

/// All policies of a node, compiled once; [`Self::for_workload`] narrows them to a pod.
#[derive(Debug)]
pub struct PolicySet {
    node: Arc<Node>,
    policies: Vec<CompiledPolicy>,
    /// Pods selected by the same policies share what is compiled for them.
    shared: Mutex<HashMap<Selection, Weak<Compiled>>>,
}

/// The selected policies, as ascending indices.
type Selection = Box<[u32]>;

/// The node's settings and the rules it decides by itself.
#[derive(Debug)]
pub(crate) struct Node {
    pub settings: NodeSettings,
    pub direct: UpstreamRef,
    pub default_rule: RuleId,
    pub dns_rule: RuleId,
    pub reserved_rule: RuleId,
}

/// What decides the flows of the pods that one selection of policies is about.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub node: Arc<Node>,
    /// The enforcing policies.
    pub enforced: Tiers,
    /// All policies as if they were enforcing; absent when none of them only audits.
    pub trial: Option<Tiers>,
    /// The widest that an enforcing policy asks for.
    pub udp_filtering: UdpFiltering,
}

/// The tiers in the order they decide.
#[derive(Debug)]
pub(crate) struct Tiers {
    pub admin: Tier,
    pub egress: Tier,
    /// Refuses what the egress tier does not match: present when one of its policies selects the pod.
    pub egress_default: Option<RuleId>,
    pub baseline: Tier,
}

#[derive(Debug)]
pub(crate) struct Tier {
    pub rules: Box<[Arc<CompiledRule>]>,
    pub ordinary: DestinationIndex,
    pub reserved: DestinationIndex,
}

#[derive(Debug)]
struct CompiledPolicy {
    identity: Arc<str>,
    priority: Priority,
    kind: Kind,
    rules: Vec<Arc<CompiledRule>>,
}

#[derive(Debug)]
enum Kind {
    Egress {
        namespace: String,
        pods: LabelSelector,
        service_accounts: Vec<String>,
        audit: bool,
        udp_filtering: UdpFiltering,
    },
    Cluster {
        subject: Subject,
        tier: ClusterTier,
    },
}

impl PolicySet {
    /// Never fails: a rule that cannot be carried out refuses what it would match.
    pub fn compile(policies: &Policies, settings: NodeSettings) -> Self {
        let node = Arc::new(Node::new(settings));
        let compiler = Compiler { node: &node, upstreams: &policies.upstreams };
        let egress = policies.egress.iter().map(|policy| compiler.egress(policy));
        let cluster = policies.cluster.iter().map(|policy| compiler.cluster(policy));
        let mut compiled: Vec<_> = egress.chain(cluster).collect();
        // Identities sort as names do: policies that meet in one tier share everything before the name.
        compiled.sort_by(|one, other| (one.priority, &one.identity).cmp(&(other.priority, &other.identity)));
        Self { node, policies: compiled, shared: Mutex::default() }
    }

    /// What decides the flows of `workload`. Cheap when another pod is selected by the same policies.
    pub fn for_workload(&self, workload: &Workload) -> WorkloadPolicy {
        let selected = self.policies.iter().enumerate().filter(|(_, policy)| policy.kind.selects(workload));
        let selection: Selection = selected.map(|(index, _)| index as u32).collect();
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = shared.get(&selection).and_then(Weak::upgrade) {
            return WorkloadPolicy::new(compiled);
        }
        let policies: Vec<_> = selection.iter().map(|index| &self.policies[*index as usize]).collect();
        let compiled = Arc::new(Compiled::new(&self.node, &policies));
        // Selections that no pod uses any more go, so the table is bounded by the pods.
        shared.retain(|_, compiled| compiled.strong_count() > 0);
        shared.insert(selection, Arc::downgrade(&compiled));
        WorkloadPolicy::new(compiled)
    }
}

impl Node {
    fn new(mut settings: NodeSettings) -> Self {
        for resolver in &mut settings.resolvers {
            *resolver = resolver.to_canonical();
        }
        let rule = |name: &str| RuleId { policy: "node".into(), rule: name.into() };
        Self {
            settings,
            direct: UpstreamRef::direct(),
            default_rule: rule("default"),
            dns_rule: rule("dns"),
            reserved_rule: rule("reserved"),
        }
    }
}

impl Kind {
    fn selects(&self, workload: &Workload) -> bool {
        match self {
            Self::Egress { namespace, pods, service_accounts, audit: _, udp_filtering: _ } => {
                let account = workload.service_account.as_ref();
                *namespace == workload.namespace
                    && pods.matches(&workload.labels)
                    && (service_accounts.is_empty()
                        || account.is_some_and(|one| service_accounts.contains(one)))
            }
            Self::Cluster { subject: Subject::Namespaces(selector), tier: _ } => {
                selects_namespace(selector, workload)
            }
            Self::Cluster { subject: Subject::Pods { namespace_selector, pod_selector }, tier: _ } => {
                selects_namespace(namespace_selector, workload) && pod_selector.matches(&workload.labels)
            }
        }
    }
}

/// Every namespace of a cluster carries its name as a label; without a cluster the name stands for it.
fn selects_namespace(selector: &LabelSelector, workload: &Workload) -> bool {
    selector.matches_by(|key| match workload.namespace_labels.get(key) {
        None if key == "kubernetes.io/metadata.name" => Some(workload.namespace.as_str()),
        label => label.map(String::as_str),
    })
}

impl Compiled {
    /// `policies` by priority, then name.
    fn new(node: &Arc<Node>, policies: &[&CompiledPolicy]) -> Self {
        let is_audit = |policy: &CompiledPolicy| matches!(policy.kind, Kind::Egress { audit: true, .. });
        let enforcing: Vec<_> = policies.iter().copied().filter(|policy| !is_audit(policy)).collect();
        let trial = (enforcing.len() < policies.len()).then(|| Tiers::new(policies));
        let is_open = |policy: &&CompiledPolicy| {
            let open = UdpFiltering::EndpointIndependent;
            matches!(policy.kind, Kind::Egress { udp_filtering, .. } if udp_filtering == open)
        };
        let udp_filtering = if enforcing.iter().any(is_open) {
            UdpFiltering::EndpointIndependent
        } else {
            UdpFiltering::AddressAndPortDependent
        };
        Self { node: node.clone(), enforced: Tiers::new(&enforcing), trial, udp_filtering }
    }
}

impl Tiers {
    fn new(policies: &[&CompiledPolicy]) -> Self {
        let cluster = |wanted: ClusterTier| {
            let of_tier = policies.iter().copied().filter(
                |policy| matches!(&policy.kind, Kind::Cluster { tier, subject: _ } if *tier == wanted),
            );
            Tier::new(cluster_order(&of_tier.collect::<Vec<_>>()))
        };
        let is_egress = |policy: &CompiledPolicy| matches!(policy.kind, Kind::Egress { .. });
        let egress: Vec<_> = policies.iter().copied().filter(|policy| is_egress(policy)).collect();
        let egress_default =
            egress.first().map(|policy| RuleId { policy: policy.identity.clone(), rule: "default".into() });
        Self {
            admin: cluster(ClusterTier::Admin),
            egress: Tier::new(egress_order(&egress)),
            egress_default,
            baseline: cluster(ClusterTier::Baseline),
        }
    }
}

impl Tier {
    fn new(rules: Vec<Arc<CompiledRule>>) -> Self {
        let ordinary = DestinationIndex::build(&rules, Scope::Ordinary);
        let reserved = DestinationIndex::build(&rules, Scope::Reserved);
        Self { rules: rules.into(), ordinary, reserved }
    }
}

/// Priority, then Deny before Allow, then policy name, then rule index. `policies` by priority, then name.
fn egress_order(policies: &[&CompiledPolicy]) -> Vec<Arc<CompiledRule>> {
    let mut rules: Vec<_> =
        policies.iter().flat_map(|policy| policy.rules.iter().map(|rule| (policy.priority, rule))).collect();
    rules.sort_by_key(|(priority, rule)| (*priority, Reverse(rule.effect == Effect::Deny)));
    rules.into_iter().map(|(_, rule)| rule.clone()).collect()
}

/// The rules of one cluster policy keep their order, as network-policy-api demands ("accept these, deny the rest").
/// Between policies of equal priority, a Deny that is next in its policy comes first, then the policy's name.
fn cluster_order(policies: &[&CompiledPolicy]) -> Vec<Arc<CompiledRule>> {
    let mut ordered = Vec::new();
    for equals in policies.chunk_by(|one, other| one.priority == other.priority) {
        let mut remaining: Vec<&[Arc<CompiledRule>]> = equals.iter().map(|policy| &*policy.rules).collect();
        loop {
            remaining.retain(|rules| !rules.is_empty());
            let is_deny = |rules: &&[Arc<CompiledRule>]| rules[0].effect == Effect::Deny;
            let next = remaining.iter().position(is_deny).unwrap_or(0);
            let Some(rules) = remaining.get_mut(next) else { break };
            ordered.push(rules[0].clone());
            *rules = &rules[1..];
        }
    }
    ordered
}

struct Compiler<'a> {
    node: &'a Node,
    upstreams: &'a KnownUpstreams,
}

/// What the rules of one policy share.
struct Owner<'a> {
    identity: Arc<str>,
    namespace: Option<&'a str>,
    audit: bool,
}

impl Compiler<'_> {
    fn egress(&self, policy: &EgressPolicy) -> CompiledPolicy {
        let audit = policy.enforcement == Enforcement::Audit;
        let identity: Arc<str> = format!("EgressPolicy/{}/{}", policy.namespace, policy.name).into();
        let owner = Owner { identity: identity.clone(), namespace: Some(&policy.namespace), audit };
        let rules = policy.rules.iter().enumerate().map(|(index, rule)| {
            let effect = match rule.action {
                EgressAction::Allow => self.allow(rule.via.as_deref(), owner.namespace),
                EgressAction::Deny => Effect::Deny,
            };
            compile_rule(&owner, index, rule, effect)
        });
        CompiledPolicy {
            identity,
            priority: policy.priority,
            rules: rules.collect(),
            kind: Kind::Egress {
                namespace: policy.namespace.clone(),
                pods: policy.pod_selector.clone(),
                service_accounts: policy.service_accounts.clone(),
                audit,
                udp_filtering: policy.udp_filtering,
            },
        }
    }

    fn cluster(&self, policy: &ClusterEgressPolicy) -> CompiledPolicy {
        let identity: Arc<str> = format!("ClusterEgressPolicy/{}", policy.name).into();
        let owner = Owner { identity: identity.clone(), namespace: None, audit: false };
        let rules = policy.rules.iter().enumerate().map(|(index, rule)| {
            let effect = match rule.action {
                ClusterAction::Accept => self.allow(rule.via.as_deref(), owner.namespace),
                ClusterAction::Deny => Effect::Deny,
                ClusterAction::Pass => Effect::Pass,
            };
            compile_rule(&owner, index, rule, effect)
        });
        CompiledPolicy {
            identity,
            priority: policy.priority,
            rules: rules.collect(),
            kind: Kind::Cluster { subject: policy.subject.clone(), tier: policy.tier },
        }
    }

    fn allow(&self, via: Option<&str>, namespace: Option<&str>) -> Effect {
        let Some(name) = via else { return Effect::Allow(self.node.settings.upstream.clone()) };
        match self.upstreams.resolve(namespace, name) {
            Some(upstream) => Effect::Allow(upstream),
            None => Effect::Broken { upstream: name.to_owned() },
        }
    }
}

fn compile_rule<Action>(
    owner: &Owner<'_>,
    index: usize,
    rule: &Rule<Action>,
    effect: Effect,
) -> Arc<CompiledRule> {
    let name = rule.name.as_deref().map_or_else(|| format!("rules[{index}]").into(), Arc::from);
    Arc::new(CompiledRule {
        id: RuleId { policy: owner.identity.clone(), rule: name },
        effect,
        audit: owner.audit,
        to: canonical_destinations(&rule.to),
        ports: PortSet::new(&rule.ports),
        port_list: rule.ports.clone(),
    })
}
