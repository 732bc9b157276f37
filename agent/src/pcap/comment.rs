//! What a packet's comment says, in the words of the flow log: `verdict=allowed policy=... rule=...`.

use std::fmt::Write;

use tunproxy_datapath::record::Outcome;
use tunproxy_datapath::{DropReason, FlowRecord, LiveFlow};
use tunproxy_policy::{Decision, Permit, Refusal};

use crate::flowlog::verdict_label;

/// Pairs of a word and its value, behind one another; a value of several words is in quotes.
#[derive(Debug, Default)]
pub struct Comment(String);

impl Comment {
    /// A live flow's decision.
    pub fn of_flow(live: &LiveFlow<'_>) -> Self {
        let mut comment = Self::default();
        comment.permit(live.permit);
        if let Some(source) = live.name_source {
            comment.pair("nameSource", source.label());
        }
        if live.name_open {
            comment.pair("nameOpen", "true");
        }
        comment
    }

    /// What policy says where there is no flow.
    pub fn of_decision(decision: &Decision) -> Self {
        let mut comment = Self::default();
        match decision {
            Decision::Allow(permit) | Decision::ByName { provisional: permit, .. } => comment.permit(permit),
            Decision::Deny(refusal) => comment.refusal(refusal),
        }
        comment
    }

    /// Why a flow ended.
    pub fn of_end(record: &FlowRecord) -> Self {
        let mut comment = Self::default();
        match record.outcome {
            Outcome::Allowed(verdict) => comment.pair("verdict", verdict_label(verdict)),
            Outcome::Denied(_) => comment.pair("verdict", "denied"),
        }
        comment.pair("policy", &record.rule.policy);
        comment.pair("rule", &record.rule.rule);
        if let Outcome::Denied(reason) = record.outcome {
            comment.pair("reason", reason.label());
        }
        if let Some(upstream) = &record.upstream {
            comment.pair("upstream", &upstream.0);
        }
        if let Some(name) = &record.name {
            comment.pair("name", name.as_str());
        }
        if let Some(source) = record.name_source {
            comment.pair("nameSource", source.label());
        }
        comment.pair("close", record.close.label());
        if let Some(detail) = &record.detail {
            comment.pair("reason", detail);
        }
        comment
    }

    fn permit(&mut self, permit: &Permit) {
        self.pair("verdict", verdict_label(permit.verdict()));
        self.pair("policy", &permit.rule().policy);
        self.pair("rule", &permit.rule().rule);
        self.pair("upstream", &permit.upstream().0);
        if let Some(name) = permit.name() {
            self.pair("name", name.as_str());
        }
    }

    fn refusal(&mut self, refusal: &Refusal) {
        self.pair("verdict", "denied");
        self.pair("policy", &refusal.rule.policy);
        self.pair("rule", &refusal.rule.rule);
        self.pair("reason", refusal.reason.label());
        if let Some(name) = &refusal.name {
            self.pair("name", name.as_str());
        }
    }

    /// The packet was not acted upon.
    pub fn dropped(&mut self, reason: DropReason) {
        self.pair("drop", reason.label());
    }

    fn pair(&mut self, word: &str, value: &str) {
        let space = if self.0.is_empty() { "" } else { " " };
        let plain = !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || "\"=".contains(c));
        let _ = if plain {
            write!(self.0, "{space}{word}={value}")
        } else {
            write!(self.0, "{space}{word}={value:?}")
        };
    }

    /// `None`: there is nothing to say.
    pub fn into_text(self) -> Option<String> {
        (!self.0.is_empty()).then_some(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_several_words_are_in_quotes() {
        let mut comment = Comment::default();
        comment.pair("rule", "rules[0]");
        comment.pair("reason", "the proxy said \"no\"");
        comment.pair("name", "");
        assert_eq!(comment.into_text().unwrap(), r#"rule=rules[0] reason="the proxy said \"no\"" name="""#);
        assert_eq!(Comment::default().into_text(), None);
    }
}
