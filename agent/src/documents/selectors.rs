//! Label selectors.

use tunproxy_policy::LabelSelector;
use tunproxy_policy::selector::{Operator, Requirement};

use crate::yaml::{Cursor, Fields};

use super::syntax::{LABEL_VALUE, is_label_key, is_label_value};

pub(super) fn read(place: &Cursor<'_>) -> Option<LabelSelector> {
    let fields = place.mapping(&["matchLabels", "matchExpressions"])?;
    let mut selector = LabelSelector::default();
    if let Some(labels) = fields.get("matchLabels").and_then(|labels| labels.any_mapping()) {
        for (key, place) in labels.each() {
            check_key(key, &place);
            if let Some(value) = label_value(&place) {
                selector.match_labels.insert(key.to_owned(), value);
            }
        }
    }
    if let Some(expressions) = fields.get("matchExpressions").and_then(|list| list.sequence()) {
        selector.match_expressions = expressions.iter().filter_map(requirement).collect();
    }
    Some(selector)
}

#[derive(Clone, Copy)]
enum Word {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

const OPERATORS: [(&str, Word); 4] = [
    ("In", Word::In),
    ("NotIn", Word::NotIn),
    ("Exists", Word::Exists),
    ("DoesNotExist", Word::DoesNotExist),
];

fn requirement(place: &Cursor<'_>) -> Option<Requirement> {
    let fields = place.mapping(&["key", "operator", "values"])?;
    let key = fields.require("key", "say which label").and_then(|place| {
        let key = place.text()?;
        check_key(key, &place).then(|| key.to_owned())
    });
    let word = fields.require("operator", "write In, NotIn, Exists or DoesNotExist")?.one_of(&OPERATORS)?;
    let operator = match word {
        Word::In => Operator::In(values(&fields)?),
        Word::NotIn => Operator::NotIn(values(&fields)?),
        Word::Exists => no_values(&fields, Operator::Exists)?,
        Word::DoesNotExist => no_values(&fields, Operator::DoesNotExist)?,
    };
    Some(Requirement { key: key?, operator })
}

fn values(fields: &Fields<'_>) -> Option<Vec<String>> {
    let place = fields.require("values", "list the label's values")?;
    let values = place.sequence()?;
    if values.is_empty() {
        place.wrong("is empty; list at least one value");
        return None;
    }
    Some(values.iter().filter_map(label_value).collect())
}

fn no_values(fields: &Fields<'_>, operator: Operator) -> Option<Operator> {
    let Some(place) = fields.get("values") else { return Some(operator) };
    place.wrong("Exists and DoesNotExist take no values; remove the key");
    None
}

fn check_key(key: &str, place: &Cursor<'_>) -> bool {
    let valid = is_label_key(key);
    if !valid {
        place.wrong(format!("{key:?} is not a label's key ([prefix/]name, the name {LABEL_VALUE})"));
    }
    valid
}

fn label_value(place: &Cursor<'_>) -> Option<String> {
    let value = place.text()?;
    if is_label_value(value) {
        return Some(value.to_owned());
    }
    place.wrong(format!("{value:?} is not a label's value ({LABEL_VALUE})"));
    None
}
