//! The compiled policy against a reader of the documents that knows no index: every rule, in order, for every question.

mod common;

use common::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use tunproxy_policy::explain::TierResult;
use tunproxy_policy::model::{
    ClusterAction, ClusterEgressPolicy, ClusterTier, Destination, EgressAction, EgressPolicy, Enforcement,
    Policies, PortMatch, Rule,
};
use tunproxy_policy::{
    Decision, DenyReason, DomainName, FlowQuery, NodeDefault, NodeSettings, Permit, PolicySet, Protocol,
    Verdict,
};

/// A rule of any kind, with what its policy brings.
#[derive(Clone)]
struct Line<'a> {
    identity: String,
    rule: String,
    namespace: Option<&'a str>,
    audit: bool,
    action: Action,
    to: &'a [Destination],
    ports: &'a [PortMatch],
    via: Option<&'a str>,
}

#[derive(Clone, Copy, PartialEq)]
enum Action {
    Allow,
    Deny,
    Pass,
}

#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Allowed { rule: String, upstream: String, verdict: Verdict, by_node: bool },
    Refused { rule: String, reason: DenyReason },
}

struct Reference<'a> {
    policies: &'a Policies,
    settings: &'a NodeSettings,
}

fn line<'a, A>(
    identity: &str,
    namespace: Option<&'a str>,
    audit: bool,
    index: usize,
    rule: &'a Rule<A>,
    action: Action,
) -> Line<'a> {
    Line {
        identity: identity.to_owned(),
        rule: rule.name.clone().unwrap_or(format!("rules[{index}]")),
        namespace,
        audit,
        action,
        to: &rule.to,
        ports: &rule.ports,
        via: rule.via.as_deref(),
    }
}

fn egress_lines(policy: &EgressPolicy) -> Vec<Line<'_>> {
    let identity = format!("EgressPolicy/{}/{}", policy.namespace, policy.name);
    let audit = policy.enforcement == Enforcement::Audit;
    let action = |action| if action == EgressAction::Allow { Action::Allow } else { Action::Deny };
    let rules = policy.rules.iter().enumerate();
    rules
        .map(|(index, rule)| {
            line(&identity, Some(&policy.namespace), audit, index, rule, action(rule.action))
        })
        .collect()
}

fn cluster_lines(policy: &ClusterEgressPolicy) -> Vec<Line<'_>> {
    let identity = format!("ClusterEgressPolicy/{}", policy.name);
    let action = |action| match action {
        ClusterAction::Accept => Action::Allow,
        ClusterAction::Deny => Action::Deny,
        ClusterAction::Pass => Action::Pass,
    };
    let rules = policy.rules.iter().enumerate();
    rules.map(|(index, rule)| line(&identity, None, false, index, rule, action(rule.action))).collect()
}

impl Reference<'_> {
    fn egress_order(&self) -> Vec<Line<'_>> {
        let policies = self.policies.egress.iter().filter(|policy| policy.namespace == "shop");
        let mut lines: Vec<_> = policies
            .flat_map(|policy| {
                let lines = egress_lines(policy).into_iter().enumerate();
                lines.map(|(index, line)| {
                    ((policy.priority, line.action != Action::Deny, policy.name.clone(), index), line)
                })
            })
            .collect();
        lines.sort_by(|one, other| one.0.cmp(&other.0));
        lines.into_iter().map(|(_, line)| line).collect()
    }

    fn cluster_order(&self, tier: ClusterTier) -> Vec<Line<'_>> {
        let of_tier = self.policies.cluster.iter().filter(|policy| policy.tier == tier);
        let mut queues: Vec<_> =
            of_tier.map(|policy| (policy.priority, policy.name.clone(), cluster_lines(policy))).collect();
        let mut order = Vec::new();
        while let Some(next) = queues
            .iter_mut()
            .filter(|queue| !queue.2.is_empty())
            .min_by_key(|queue| (queue.0, queue.2[0].action != Action::Deny, queue.1.clone()))
        {
            order.push(next.2.remove(0));
        }
        order
    }

    fn matches(line: &Line<'_>, query: &FlowQuery<'_>, name: Option<&DomainName>) -> bool {
        let reserved = is_reserved(query);
        let narrow = reserved && line.action == Action::Allow;
        let mapped = |network: &ipnet::IpNet| -> ipnet::IpNet {
            match network.to_string().strip_prefix("::ffff:") {
                Some(rest) => {
                    let (address, prefix) = rest.split_once('/').expect("a network");
                    let prefix: u8 = prefix.parse().expect("a prefix");
                    format!("{address}/{}", prefix - 96).parse().expect("an IPv4 network")
                }
                None => *network,
            }
        };
        let address = query.destination.to_canonical();
        let to = (line.to.is_empty() && !narrow)
            || line.to.iter().any(|destination| match destination {
                Destination::Domains(patterns) => {
                    !narrow && name.is_some_and(|name| patterns.iter().any(|pattern| pattern.matches(name)))
                }
                Destination::Networks { networks, except } => {
                    networks.iter().map(mapped).any(|network| {
                        // In this universe every network of 8 bits or more around a reserved address is within its range.
                        network.contains(&address) && (!narrow || network.prefix_len() >= 8)
                    }) && !except.iter().map(mapped).any(|hole| hole.contains(&address))
                }
            });
        let port = line.ports.is_empty()
            || line.ports.iter().any(|port| {
                port.protocol == query.protocol
                    && (query.protocol == Protocol::Icmp
                        || port.range.is_none_or(|range| range.contains(query.port)))
            });
        to && port
    }

    /// One name's fate with or without the policies that only audit.
    fn walk(&self, query: &FlowQuery<'_>, name: Option<&DomainName>, trial: bool) -> Answer {
        let tiers = [
            self.cluster_order(ClusterTier::Admin),
            self.egress_order(),
            self.cluster_order(ClusterTier::Baseline),
        ];
        for (position, lines) in tiers.iter().enumerate() {
            let counts = |line: &&Line<'_>| (trial || !line.audit) && Self::matches(line, query, name);
            if let Some(line) = lines.iter().find(counts) {
                match line.action {
                    Action::Pass => continue,
                    Action::Deny => return refused(line, DenyReason::Rule),
                    Action::Allow => return self.allowed(line),
                }
            }
            let selecting = self
                .policies
                .egress
                .iter()
                .filter(|policy| {
                    policy.namespace == "shop" && (trial || policy.enforcement == Enforcement::Enforce)
                })
                .min_by_key(|policy| (policy.priority, &policy.name));
            if position == 1
                && let Some(policy) = selecting
            {
                let rule = format!("EgressPolicy/shop/{} default", policy.name);
                return self.default(query, Answer::Refused { rule, reason: DenyReason::NoRuleMatched });
            }
        }
        let rule = "node default".to_owned();
        let answer = match self.settings.default {
            NodeDefault::Allow => {
                let upstream = self.settings.upstream.to_string();
                Answer::Allowed { rule, upstream, verdict: Verdict::Allowed, by_node: true }
            }
            NodeDefault::Deny => Answer::Refused { rule, reason: DenyReason::NodeDefault },
        };
        self.default(query, answer)
    }

    fn allowed(&self, line: &Line<'_>) -> Answer {
        let upstream = match line.via {
            None => Some(self.settings.upstream.clone()),
            Some(via) => self.policies.upstreams.resolve(line.namespace, via),
        };
        match upstream {
            None => refused(line, DenyReason::BrokenRule),
            Some(upstream) => Answer::Allowed {
                rule: format!("{} {}", line.identity, line.rule),
                upstream: upstream.to_string(),
                verdict: Verdict::Allowed,
                by_node: false,
            },
        }
    }

    fn default(&self, query: &FlowQuery<'_>, answer: Answer) -> Answer {
        let reserved = is_reserved(query);
        let to_resolver = self.settings.resolvers.contains(&query.destination.to_canonical());
        if to_resolver && query.port == 53 && query.protocol != Protocol::Icmp {
            let (rule, upstream) = ("node dns".to_owned(), "direct".to_owned());
            return Answer::Allowed { rule, upstream, verdict: Verdict::Allowed, by_node: true };
        }
        if reserved {
            return Answer::Refused {
                rule: "node reserved".to_owned(),
                reason: DenyReason::ReservedDestination,
            };
        }
        answer
    }

    fn answer(&self, query: &FlowQuery<'_>, name: Option<&DomainName>) -> Answer {
        let enforced = self.walk(query, name, false);
        let Answer::Allowed { upstream, by_node, .. } = &enforced else { return enforced };
        match self.walk(query, name, true) {
            Answer::Refused { rule, .. } => {
                let (upstream, by_node) = (upstream.clone(), *by_node);
                Answer::Allowed { rule, upstream, verdict: Verdict::Audited, by_node }
            }
            trial if *by_node => trial,
            Answer::Allowed { .. } => enforced,
        }
    }
}

fn refused(line: &Line<'_>, reason: DenyReason) -> Answer {
    Answer::Refused { rule: format!("{} {}", line.identity, line.rule), reason }
}

fn is_reserved(query: &FlowQuery<'_>) -> bool {
    ["169.254.169.254", "169.254.20.10", "::1"].map(ip).contains(&query.destination.to_canonical())
}

fn permit_is(permit: &Permit, expected: &Answer) -> bool {
    match expected {
        Answer::Allowed { rule, upstream, verdict, by_node: _ } => {
            permit.rule().to_string() == *rule
                && permit.upstream().to_string() == *upstream
                && permit.verdict() == *verdict
        }
        Answer::Refused { .. } => false,
    }
}

fn is(decision: &Decision, expected: &Answer) -> bool {
    match decision {
        Decision::Allow(permit) => permit_is(permit, expected),
        Decision::Deny(refusal) => {
            *expected == Answer::Refused { rule: refusal.rule.to_string(), reason: refusal.reason }
        }
        Decision::ByName { .. } => false,
    }
}

fn any_destination() -> impl Strategy<Value = Destination> {
    let pattern = select(vec!["*", "*.x", "*.a.x", "x", "a.x", "b.a.x", "y"]);
    let network = || {
        select(vec![
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.1.1/32",
            "::ffff:10.0.0.0/104",
            "169.254.0.0/16",
            "169.254.169.254/32",
            "10.96.0.0/12",
            "::/0",
            "fd00::/8",
            "fd00::1/128",
            "::1/128",
        ])
    };
    prop_oneof![
        vec(pattern, 1..3).prop_map(|patterns| domains(&patterns)),
        (vec(network(), 1..3), vec(network(), 0..3)).prop_map(|(within, except)| networks(&within, &except)),
    ]
}

fn any_rule<A: std::fmt::Debug + Clone>(action: impl Strategy<Value = A>) -> impl Strategy<Value = Rule<A>> {
    let port = select(vec![
        tcp(443, 443),
        tcp(53, 100),
        tcp(80, 443),
        every(Protocol::Tcp),
        every(Protocol::Udp),
        every(Protocol::Icmp),
    ]);
    let via = option::weighted(0.3, select(vec!["near", "far", "gone"]));
    let name = option::of(select(vec!["r", "s"]));
    (name, action, vec(any_destination(), 0..3), vec(port, 0..3), via).prop_map(
        |(name, action, to, ports, via)| Rule {
            name: name.map(str::to_owned),
            action,
            to,
            ports,
            via: via.map(str::to_owned),
            limits: Default::default(),
        },
    )
}

fn any_egress() -> impl Strategy<Value = Vec<EgressPolicy>> {
    let action = select(vec![EgressAction::Allow, EgressAction::Deny]);
    let one = (0u16..3, vec(any_rule(action), 0..4), any::<bool>(), prop::bool::weighted(0.2));
    vec(one, 0..4).prop_map(|policies| {
        let numbered = policies.into_iter().zip(["b", "a", "d", "c"]);
        numbered
            .map(|((level, rules, only_audits, elsewhere), name)| {
                let mut policy = egress(name, level, rules);
                if elsewhere {
                    policy.namespace = String::from("other");
                }
                if only_audits { audit(policy) } else { policy }
            })
            .collect()
    })
}

fn any_cluster() -> impl Strategy<Value = Vec<ClusterEgressPolicy>> {
    let action = select(vec![ClusterAction::Accept, ClusterAction::Deny, ClusterAction::Pass]);
    let one = (select(vec![ClusterTier::Admin, ClusterTier::Baseline]), 0u16..2, vec(any_rule(action), 0..3));
    vec(one, 0..4).prop_map(|policies| {
        let numbered = policies.into_iter().zip(["q", "p", "s", "r"]);
        numbered.map(|((tier, level, rules), name)| cluster(tier, name, level, rules)).collect()
    })
}

fn any_policies() -> impl Strategy<Value = Policies> {
    (any_egress(), any_cluster()).prop_map(|(egress, cluster)| {
        let mut policies = Policies { egress, cluster, ..Policies::default() };
        policies.upstreams.add_namespaced("shop", "near");
        policies.upstreams.add_cluster("far");
        policies
    })
}

#[derive(Clone, Debug)]
struct Question {
    protocol: Protocol,
    destination: &'static str,
    port: u16,
    names: Vec<DomainName>,
}

impl Question {
    fn query(&self) -> FlowQuery<'_> {
        let Self { protocol, destination, port, names } = self;
        FlowQuery { protocol: *protocol, destination: ip(destination), port: *port, names }
    }
}

fn any_question() -> impl Strategy<Value = Question> {
    let destination = select(vec![
        "10.1.1.1",
        "10.1.2.3",
        "10.2.0.1",
        "::ffff:10.1.1.1",
        "169.254.169.254",
        "169.254.20.10",
        "10.96.0.10",
        "192.0.2.1",
        "fd00::1",
        "fd00::2",
        "2001:db8::1",
        "::1",
    ]);
    let protocol = prop_oneof![3 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp), 1 => Just(Protocol::Icmp)];
    let known_as = subsequence(names(&["x", "a.x", "b.a.x", "c.x", "y", "z"]), 0..4).prop_shuffle();
    (protocol, destination, select(vec![443u16, 53, 80, 8080]), known_as).prop_map(
        |(protocol, destination, port, names)| {
            let port = if protocol == Protocol::Icmp { 0 } else { port };
            Question { protocol, destination, port, names }
        },
    )
}

fn any_default() -> impl Strategy<Value = NodeDefault> {
    select(vec![NodeDefault::Allow, NodeDefault::Deny])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn one_name_or_none_is_decided_as_the_reference_reads_it(
        policies in any_policies(), default in any_default(), questions in vec(any_question(), 8),
    ) {
        let settings = settings(default);
        let reference = Reference { policies: &policies, settings: &settings };
        let policy = PolicySet::compile(&policies, settings.clone()).for_workload(&pod());
        for mut question in questions {
            question.names.truncate(1);
            let query = question.query();
            let (decision, expected) = (policy.decide(&query), reference.answer(&query, question.names.first()));
            prop_assert!(is(&decision, &expected), "{question:?}: {decision:?}, the reference {expected:?}");
        }
    }

    #[test]
    fn several_names_come_to_one_answer_or_to_the_strictest(
        policies in any_policies(), default in any_default(), questions in vec(any_question(), 8),
    ) {
        let policy = PolicySet::compile(&policies, settings(default)).for_workload(&pod());
        for question in questions.iter().filter(|question| question.names.len() > 1) {
            let alone: Vec<_> = question
                .names
                .iter()
                .map(|name| policy.decide(&FlowQuery { names: std::slice::from_ref(name), ..question.query() }))
                .collect();
            match policy.decide(&question.query()) {
                Decision::ByName { provisional, fallback } => {
                    prop_assert!(alone.contains(&Decision::Allow(provisional)), "{question:?}");
                    let all_allowed = alone.iter().all(|one| matches!(one, Decision::Allow(_)));
                    prop_assert_eq!(matches!(*fallback, Decision::Allow(_)), all_allowed);
                    prop_assert!(alone.contains(&fallback), "{question:?}");
                }
                one @ Decision::Allow(_) => {
                    prop_assert_eq!(alone.last(), Some(&one));
                    prop_assert!(alone.iter().all(|other| matches!(other, Decision::Allow(_))));
                }
                one @ Decision::Deny(_) => {
                    prop_assert!(alone.contains(&one), "{question:?}");
                    prop_assert!(alone.iter().all(|other| matches!(other, Decision::Deny(_))));
                }
            }
        }
    }

    #[test]
    fn the_order_of_the_documents_changes_nothing(
        policies in any_policies(), default in any_default(), questions in vec(any_question(), 4),
    ) {
        let mut reversed = policies.clone();
        reversed.egress.reverse();
        reversed.cluster.reverse();
        let one = PolicySet::compile(&policies, settings(default)).for_workload(&pod());
        let other = PolicySet::compile(&reversed, settings(default)).for_workload(&pod());
        for question in questions {
            prop_assert_eq!(one.decide(&question.query()), other.decide(&question.query()), "{:?}", question);
        }
    }

    #[test]
    fn an_explanation_ends_where_the_decision_comes_from(
        mut policies in any_policies(), default in any_default(), question in any_question(),
    ) {
        policies.egress.retain(|policy| policy.enforcement == Enforcement::Enforce);
        let mut question = question;
        question.names.truncate(1);
        let policy = PolicySet::compile(&policies, settings(default)).for_workload(&pod());
        let explanation = policy.explain(&question.query());
        let rule = match &explanation.decision {
            Decision::Allow(permit) => permit.rule(),
            Decision::Deny(refusal) => &refusal.rule,
            Decision::ByName { .. } => panic!("one name is never decided by name"),
        };
        let walk = explanation.walks.last().expect("a walk");
        let last = walk.tiers.last().map(|tier| &tier.result);
        match last {
            Some(TierResult::Decided(decided)) => prop_assert_eq!(decided, rule),
            Some(TierResult::DefaultDeny(default)) => prop_assert!(rule == default || &*rule.policy == "node"),
            _ => {
                prop_assert_eq!(walk.node, Some(default));
                prop_assert_eq!(&*rule.policy, "node");
            }
        }
    }
}
