//! Names and labels as Kubernetes allows them.

use crate::yaml::Cursor;

const LONGEST: usize = 63;
/// DNS subdomain of a label key's prefix.
const LONGEST_PREFIX: usize = 253;

/// A document's name: lower case, digits, `-` and `.`.
pub(super) fn object_name(place: &Cursor<'_>) -> Option<String> {
    name(place, |byte| byte == b'-' || byte == b'.', "lower case letters, digits, - and .")
}

/// A namespace's or service account's name: lower case, digits and `-`.
pub(super) fn label_name(place: &Cursor<'_>) -> Option<String> {
    name(place, |byte| byte == b'-', "lower case letters, digits and -")
}

fn name(place: &Cursor<'_>, inner: fn(u8) -> bool, allowed: &str) -> Option<String> {
    let text = place.text()?;
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if text.len() > LONGEST {
        place
            .wrong(format!("a name has at most {LONGEST} characters, and this one {}", text.chars().count()));
        return None;
    }
    let bytes = text.as_bytes();
    let valid = bytes.iter().all(|byte| edge(byte) || inner(*byte))
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge);
    if !valid {
        place.wrong(format!("{text:?} is not a name ({allowed}, a letter or digit first and last)"));
        return None;
    }
    Some(text.to_owned())
}

/// A rule's name: what label values allow.
pub(super) fn rule_name(place: &Cursor<'_>) -> Option<String> {
    let text = place.text()?;
    if !text.is_empty() && is_label_value(text) {
        return Some(text.to_owned());
    }
    place.wrong(format!("{text:?} is not a rule's name ({LABEL_VALUE})"));
    None
}

pub(super) const LABEL_VALUE: &str = "up to 63 letters, digits, -, _ and ., a letter or digit first and last";

pub(super) fn is_label_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    bytes.len() <= LONGEST
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && edge(bytes.first())
        && edge(bytes.last())
}

pub(super) fn is_label_key(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let label = |label: &str| {
        let edge =
            |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let bytes = label.as_bytes();
        bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
            && edge(bytes.first())
            && edge(bytes.last())
    };
    let subdomain = |prefix: &str| prefix.len() <= LONGEST_PREFIX && prefix.split('.').all(label);
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(subdomain)
}
