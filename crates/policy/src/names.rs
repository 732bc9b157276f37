//! Domain names and the patterns that rules hold.

use std::borrow::Borrow;
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
    #[error("a label of it is empty (a dot at the beginning, or two in a row)")]
    EmptyLabel,
    #[error("its label {0:?} is longer than 63 octets")]
    LongLabel(String),
    #[error("its label {0:?} holds a character that names do not have")]
    BadLabel(String),
    #[error("a `*` stands alone or as the whole first label, as in *.example.com")]
    Wildcard,
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
        ascii.split('.').try_for_each(check_label)?;
        Ok(Self(ascii.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_label(label: &str) -> Result<(), NameError> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    match label.len() {
        0 => Err(NameError::EmptyLabel),
        1..=63 if label.bytes().all(known) => Ok(()),
        1..=63 => Err(NameError::BadLabel(label.to_owned())),
        _ => Err(NameError::LongLabel(label.to_owned())),
    }
}

/// Lets indexes keyed by name be asked with a suffix of another name; `Hash` and `Eq` are those of the text.
impl Borrow<str> for DomainName {
    fn borrow(&self) -> &str {
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

impl DomainPattern {
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let (below, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if rest.contains('*') {
            return Err(NameError::Wildcard);
        }
        let name = DomainName::parse(rest)?;
        Ok(if below { Self::Below(name) } else { Self::Exact(name) })
    }

    pub fn matches(&self, name: &DomainName) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact == name,
            Self::Below(parent) => {
                name.as_str().strip_suffix(parent.as_str()).is_some_and(|labels| labels.ends_with('.'))
            }
        }
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(name) => write!(f, "{name}"),
            Self::Below(parent) => write!(f, "*.{parent}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> DomainName {
        DomainName::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn spellings_of_one_name_are_equal() {
        assert_eq!(name("API.GitHub.com."), name("api.github.com"));
        assert_eq!(name("B\u{fc}cher.example"), name("xn--bcher-kva.example"));
        assert_eq!(name("_dmarc.example.com").as_str(), "_dmarc.example.com");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long_label = "a".repeat(64);
        let long_name = vec!["a".repeat(63); 4].join(".");
        for (text, expected) in [
            ("", NameError::Empty),
            (".", NameError::Empty),
            ("a..b", NameError::EmptyLabel),
            ("a b.com", NameError::BadLabel("a b".to_owned())),
            (&long_label, NameError::LongLabel(long_label.clone())),
            (&long_name, NameError::TooLong),
        ] {
            assert_eq!(DomainName::parse(text), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn a_wildcard_is_one_or_more_labels() {
        let pattern = DomainPattern::parse("*.Example.com").expect("a pattern");
        assert!(pattern.matches(&name("a.example.com")));
        assert!(pattern.matches(&name("b.a.example.com")));
        assert!(!pattern.matches(&name("example.com")));
        assert!(!pattern.matches(&name("badexample.com")));
        assert!(!pattern.matches(&name("a.example.com.evil.net")));
    }

    #[test]
    fn a_wildcard_inside_a_pattern_is_refused() {
        for text in ["a.*.com", "*a.com", "*.*.com", "**"] {
            assert_eq!(DomainPattern::parse(text), Err(NameError::Wildcard), "{text}");
        }
        assert_eq!(DomainPattern::parse("*"), Ok(DomainPattern::Any));
        assert_eq!(DomainPattern::parse("*."), Err(NameError::Empty));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_idempotent(text in "\\PC{0,300}") {
            if let Ok(parsed) = DomainName::parse(&text) {
                prop_assert_eq!(DomainName::parse(parsed.as_str()), Ok(parsed.clone()));
                prop_assert!(parsed.as_str().len() <= 253 && !parsed.as_str().ends_with('.'));
            }
        }

        #[test]
        fn a_pattern_prints_as_it_parses(text in "(\\*|(\\*\\.)?[a-z0-9_-]{1,8}(\\.[a-z0-9]{1,8}){0,3})") {
            let pattern = DomainPattern::parse(&text);
            prop_assert_eq!(pattern.map(|pattern| pattern.to_string()), Ok(text));
        }
    }
}
