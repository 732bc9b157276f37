//! Label selectors, with the meaning Kubernetes gives them.

use std::collections::BTreeMap;

/// Selects what satisfies every entry of both lists; an empty selector selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    pub match_labels: BTreeMap<String, String>,
    pub match_expressions: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_by(|key| labels.get(key).map(String::as_str))
    }

    /// As [`Self::matches`], for labels that are not (all) in a map.
    pub fn matches_by<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.match_labels.iter().all(|(key, value)| lookup(key) == Some(value.as_str()))
            && self.match_expressions.iter().all(|requirement| requirement.holds(lookup(&requirement.key)))
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.iter().any(|one| one == value)),
            // Kubernetes: an object without the label satisfies NotIn.
            Operator::NotIn(values) => value.is_none_or(|value| values.iter().all(|one| one != value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn requires(operator: Operator) -> LabelSelector {
        let match_expressions = vec![Requirement { key: "app".to_owned(), operator }];
        LabelSelector { match_labels: BTreeMap::new(), match_expressions }
    }

    #[test]
    fn an_empty_selector_selects_everything() {
        assert!(LabelSelector::default().matches(&labels(&[])));
        assert!(LabelSelector::default().matches(&labels(&[("app", "web")])));
    }

    #[test]
    fn all_labels_and_all_expressions_must_hold() {
        let mut selector = requires(Operator::Exists);
        selector.match_labels = labels(&[("tier", "front")]);
        assert!(selector.matches(&labels(&[("app", "web"), ("tier", "front")])));
        assert!(!selector.matches(&labels(&[("app", "web")])));
        assert!(!selector.matches(&labels(&[("tier", "front")])));
        assert!(!selector.matches(&labels(&[("app", "web"), ("tier", "back")])));
    }

    #[test]
    fn each_operator_on_present_other_and_absent() {
        let values = || vec!["web".to_owned(), "api".to_owned()];
        let cases = [
            (Operator::In(values()), [true, false, false]),
            (Operator::NotIn(values()), [false, true, true]),
            (Operator::Exists, [true, true, false]),
            (Operator::DoesNotExist, [false, false, true]),
        ];
        for (operator, expected) in cases {
            let selector = requires(operator.clone());
            let answers = [
                selector.matches(&labels(&[("app", "web")])),
                selector.matches(&labels(&[("app", "db")])),
                selector.matches(&labels(&[("other", "web")])),
            ];
            assert_eq!(answers, expected, "{operator:?}");
        }
    }
}
