//! Values that are never printed, and the v1 Secret documents they come in.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::yaml::Cursor;

use super::header::Identity;

/// A text that neither logs nor errors show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself; named so that each use stands out.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[derive(Debug)]
pub(super) struct SecretDocument {
    pub namespace: Option<String>,
    pub name: String,
    pub values: BTreeMap<String, Secret>,
}

pub(super) fn read(document: &Cursor<'_>, identity: &Identity) -> SecretDocument {
    let mut values = BTreeMap::new();
    // Keys are known and unique already; the header has checked them.
    let Some(fields) = document.quiet_mapping() else { return SecretDocument::new(identity, values) };
    if let Some(type_) = fields.get("type") {
        type_.text();
    }
    // As the API server does it: stringData is written over data.
    for (key, decode) in [("data", decoded as fn(&Cursor<'_>) -> Option<Secret>), ("stringData", plain)] {
        let Some(entries) = fields.get(key).and_then(|place| place.any_mapping()) else { continue };
        for (name, place) in entries.each() {
            values.extend(decode(&place).map(|value| (name.to_owned(), value)));
        }
    }
    SecretDocument::new(identity, values)
}

impl SecretDocument {
    fn new(identity: &Identity, values: BTreeMap<String, Secret>) -> Self {
        Self { namespace: identity.namespace.clone(), name: identity.name.clone(), values }
    }
}

fn plain(place: &Cursor<'_>) -> Option<Secret> {
    place.text().map(Secret::new)
}

/// Mistakes say what is wrong and never the value.
fn decoded(place: &Cursor<'_>) -> Option<Secret> {
    let text: String = place.text()?.split_ascii_whitespace().collect();
    let Ok(bytes) = STANDARD.decode(text) else {
        place.wrong("is not base64; encode the value, or put it as it is under `stringData`");
        return None;
    };
    let Ok(text) = String::from_utf8(bytes) else {
        place.wrong("decodes to something that is not UTF-8 text; encode the text itself");
        return None;
    };
    if text.ends_with('\n') {
        place
            .wrong("ends in a line break, which `echo` adds; encode it with `printf %s` or use `stringData`");
        return None;
    }
    Some(Secret(text))
}
