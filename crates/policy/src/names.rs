//! Domain names and the patterns that rules hold.

use std::fmt;
use std::sync::Arc;

/// A domain name in its canonical form: ASCII (A-labels), lower case, no trailing dot, 1-253 octets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainName(Arc<str>);

/// Why a text is not a domain name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the name is empty")]
    Empty,
    #[error("the name is longer than 253 octets")]
    TooLong,
    #[error("label {0:?} is empty, longer than 63 octets or holds a character that names do not have")]
    BadLabel(String),
}

impl DomainName {
    /// Canonicalises `text`: IDNA to A-labels, lower case, one trailing dot removed.
    /// Underscores are accepted (service names use them).
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let ascii = if text.is_ascii() {
            text.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii(text).map_err(|_| NameError::BadLabel(text.to_owned()))?
        };
        if ascii.len() > 253 {
            return Err(NameError::TooLong);
        }
        for label in ascii.split('.') {
            let valid = (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
            if !valid {
                return Err(NameError::BadLabel(label.to_owned()));
            }
        }
        Ok(Self(ascii.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a rule's `domains` entry matches. `*.x` is one or more labels below `x` (NPEP-133); a bare `*` is any name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DomainPattern {
    Any,
    Exact(DomainName),
    Below(DomainName),
}
