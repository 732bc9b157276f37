//! The answer as JSON: the fields of the flow log where they mean the same.

use serde_json::{Value, json};
use tunproxy_policy::explain::{Action, Match, TierResult, TierTrace, Walk};
use tunproxy_policy::{Decision, DomainName, Explanation, NodeDefault, Permit, Refusal, Verdict};

use super::ExplainArgs;
use crate::commands::target::Host;

pub(super) fn render(args: &ExplainArgs, explanation: &Explanation) -> Value {
    let mut answer = decision_json(&explanation.decision);
    answer["protocol"] = json!(explanation.protocol.to_string());
    answer["destination"] = json!(explanation.destination.to_string());
    answer["destinationKnown"] = json!(args.address.is_some() || matches!(args.to.host, Host::Address(_)));
    answer["port"] = json!(explanation.port);
    answer["namespace"] = json!(args.namespace);
    answer["walks"] = explanation.walks.iter().map(walk_json).collect();
    answer
}

fn decision_json(decision: &Decision) -> Value {
    match decision {
        Decision::Allow(permit) => permit_json(permit),
        Decision::Deny(refusal) => refusal_json(refusal),
        Decision::ByName { provisional, fallback } => {
            json!({"verdict": "by-name", "provisional": permit_json(provisional), "fallback": decision_json(fallback)})
        }
    }
}

fn permit_json(permit: &Permit) -> Value {
    let verdict = match permit.verdict() {
        Verdict::Allowed => "allowed",
        Verdict::Audited => "audited",
    };
    json!({
        "verdict": verdict,
        "policy": &*permit.rule().policy,
        "rule": &*permit.rule().rule,
        "upstream": permit.upstream().to_string(),
        "name": permit.name().map(DomainName::as_str),
    })
}

fn refusal_json(refusal: &Refusal) -> Value {
    json!({
        "verdict": "denied",
        "policy": &*refusal.rule.policy,
        "rule": &*refusal.rule.rule,
        "reason": refusal.reason.label(),
        "name": refusal.name.as_ref().map(DomainName::as_str),
    })
}

fn walk_json(walk: &Walk) -> Value {
    let default = walk.node.map(|default| match default {
        NodeDefault::Allow => "Allow",
        NodeDefault::Deny => "Deny",
    });
    json!({
        "name": walk.name.as_ref().map(DomainName::as_str),
        "tiers": walk.tiers.iter().map(tier_json).collect::<Value>(),
        "nodeDefault": default,
    })
}

fn tier_json(trace: &TierTrace) -> Value {
    let (result, rule) = match &trace.result {
        TierResult::Decided(rule) => ("decided", Some(rule)),
        TierResult::Passed(rule) => ("passed", Some(rule)),
        TierResult::DefaultDeny(rule) => ("default-deny", Some(rule)),
        TierResult::NoMatch => ("no-match", None),
    };
    let rules = trace.rules.iter().map(|rule| {
        let via = match &rule.action {
            Action::Allow { via } => Some(via),
            Action::Broken { unknown_upstream } => Some(unknown_upstream),
            Action::Deny | Action::Pass => None,
        };
        json!({
            "policy": &*rule.rule.policy,
            "rule": &*rule.rule.rule,
            "action": rule.action.label(),
            "via": via,
            "audit": rule.audit,
            "matched": matches!(rule.outcome, Match::Matched { .. }),
            "why": rule.outcome.to_string(),
        })
    });
    json!({
        "tier": trace.tier.label(),
        "result": result,
        "policy": rule.map(|rule| &*rule.policy),
        "rule": rule.map(|rule| &*rule.rule),
        "omitted": trace.omitted,
        "rules": rules.collect::<Value>(),
    })
}
