//! What the rules of both kinds of policy share.

use std::collections::HashMap;

use tunproxy_policy::model::{Limits, Priority, Rule};

use crate::yaml::{Cursor, Fields};

use super::header::{Identity, Place};
use super::resolve::{Read, Via};
use super::{destinations, syntax};

const KEYS: [&str; 6] = ["name", "action", "to", "ports", "via", "limits"];
const DEFAULT_PRIORITY: u16 = 100;

pub(super) fn priority(fields: &Fields<'_>) -> Option<Priority> {
    let given =
        fields.optional("priority", |place| place.integer(0..=u64::from(Priority::MAX), "a priority"));
    let value = given.ok()?.map_or(Some(DEFAULT_PRIORITY), |value| u16::try_from(value).ok())?;
    Priority::new(value)
}

/// `carries` tells the actions that let a flow through, which alone can have an upstream.
pub(super) fn read<A: Copy>(
    spec: &Fields<'_>,
    actions: &[(&str, A)],
    carries: fn(A) -> bool,
    identity: &Identity,
    read: &mut Read,
) -> Option<Vec<Rule<A>>> {
    let places = spec.require("rules", "write `rules: []` for a policy without rules")?.sequence()?;
    let mut names = HashMap::new();
    let reader = RuleReader { actions, carries, identity };
    let rules = places.iter().map(|place| {
        let rule = reader.rule(place, read)?;
        if let Some(name) = &rule.name
            && let Some(first) = names.insert(name.clone(), place.line())
        {
            place.wrong(format!("a rule is named {name:?} already (line {first}); rename one"));
        }
        Some(rule)
    });
    // Not the fallible collect: it would stop at the first mistake.
    let rules: Vec<_> = rules.collect();
    rules.into_iter().collect()
}

struct RuleReader<'a, A> {
    actions: &'a [(&'a str, A)],
    carries: fn(A) -> bool,
    identity: &'a Identity,
}

impl<A: Copy> RuleReader<'_, A> {
    fn rule(&self, place: &Cursor<'_>, read: &mut Read) -> Option<Rule<A>> {
        let fields = place.mapping(&KEYS)?;
        let name = fields.optional("name", syntax::rule_name);
        let words: Vec<_> = self.actions.iter().map(|(word, _)| *word).collect();
        let action = fields
            .require("action", &format!("write {}", words.join(" or ")))
            .and_then(|place| place.one_of(self.actions));
        let to = fields.optional("to", destinations::to);
        let ports = fields.optional("ports", destinations::ports);
        let via = fields.optional("via", |place| self.via(place, read));
        // A bound that is not kept is worse than none.
        if let Some(place) = fields.get("limits") {
            place.wrong("limits have no effect in this version; remove them");
        }
        let action = action?;
        if !(self.carries)(action)
            && let Some(place) = fields.get("via")
        {
            place.wrong("only a rule that allows has `via`; remove it");
        }
        Some(Rule {
            name: name.ok()?,
            action,
            to: to.ok()?.unwrap_or_default(),
            ports: ports.ok()?.unwrap_or_default(),
            via: via.ok()?,
            limits: Limits::default(),
        })
    }

    /// The upstream's name; whether it is known can be told only when all documents are read.
    fn via(&self, place: &Cursor<'_>, read: &mut Read) -> Option<String> {
        let fields = place.mapping(&["upstream"])?;
        let place = fields.require("upstream", "name an Upstream or ClusterUpstream")?;
        let name = place.text()?.to_owned();
        read.vias.push(Via {
            namespace: self.identity.namespace.clone(),
            upstream: name.clone(),
            key: place.key().to_owned(),
            place: Place { file: place.sink().file().to_owned(), line: place.line() },
        });
        Some(name)
    }
}
