//! Upstream and ClusterUpstream.

use std::time::Duration;

use tunproxy_policy::UpstreamRef;

use crate::yaml::{Cursor, Fields};

use super::address::Endpoint;
use super::header::{Identity, Place};
use super::secret::Secret;
use super::{quantity, syntax};

/// What a rule's `via` leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSpec {
    pub reference: UpstreamRef,
    pub kind: UpstreamKind,
    /// From the first packet until the upstream (and, through a proxy, the target) answered.
    pub connect_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamKind {
    Direct,
    Reject,
    Socks5 { address: Endpoint, login: Option<Login> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub username: String,
    pub password: Secret,
}

pub(super) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Login {
    /// RFC 1929 has one octet for each length.
    const LONGEST: usize = 255;

    pub(super) fn checked(username: &str, password: &Secret) -> Result<Self, String> {
        for (what, value) in [("username", username), ("password", password.expose())] {
            if !(1..=Self::LONGEST).contains(&value.len()) {
                let length = value.len();
                return Err(format!("the {what} has {length} bytes; SOCKS5 carries 1-{}", Self::LONGEST));
            }
        }
        Ok(Self { username: username.to_owned(), password: password.clone() })
    }
}

/// An upstream whose credentials are not looked up yet.
#[derive(Debug)]
pub(super) struct UpstreamDocument {
    pub identity: Identity,
    pub kind: UpstreamKind,
    pub connect_timeout: Duration,
    pub secret: Option<SecretRef>,
}

#[derive(Debug)]
pub(super) struct SecretRef {
    pub name: String,
    pub key: String,
    pub place: Place,
}

const KEYS: [&str; 12] = [
    "type",
    "address",
    "auth",
    "tls",
    "via",
    "method",
    "hostKeys",
    "udp",
    "identity",
    "connectTimeout",
    "healthCheck",
    "group",
];

#[derive(Clone, Copy)]
enum Type {
    Direct,
    Reject,
    Socks5,
    /// Of the schema, and not of this version.
    Later,
}

const TYPES: [(&str, Type); 9] = [
    ("Direct", Type::Direct),
    ("Reject", Type::Reject),
    ("SOCKS5", Type::Socks5),
    ("SOCKS4", Type::Later),
    ("HTTP", Type::Later),
    ("Shadowsocks", Type::Later),
    ("Relay", Type::Later),
    ("SSH", Type::Later),
    ("Group", Type::Later),
];

impl Type {
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Direct => &["type", "connectTimeout"],
            Self::Reject => &["type"],
            Self::Socks5 => &["type", "address", "auth", "connectTimeout"],
            Self::Later => &KEYS,
        }
    }
}

pub(super) fn read(spec: &Cursor<'_>, identity: &Identity) -> Option<UpstreamDocument> {
    let fields = spec.mapping(&KEYS)?;
    let place = fields.require("type", "write Direct, Reject or SOCKS5")?;
    let type_ = place.one_of(&TYPES)?;
    let label = place.text()?;
    for (key, place) in fields.each() {
        if KEYS.contains(&key) && !type_.keys().contains(&key) {
            place.wrong(format!("type {label} has no `{key}` in this version; remove it"));
        }
    }
    let connect_timeout = fields.optional("connectTimeout", quantity::duration);
    let (kind, secret) = match type_ {
        Type::Direct => (UpstreamKind::Direct, None),
        Type::Reject => (UpstreamKind::Reject, None),
        Type::Socks5 => {
            let address = address(&fields);
            let secret = fields.optional("auth", secret_ref);
            (UpstreamKind::Socks5 { address: address?, login: None }, secret.ok()?)
        }
        Type::Later => {
            place
                .wrong(format!("type {label} is not supported by this version (Direct, Reject, SOCKS5 are)"));
            return None;
        }
    };
    let connect_timeout = connect_timeout.ok()?.unwrap_or(DEFAULT_CONNECT_TIMEOUT);
    Some(UpstreamDocument { identity: identity.clone(), kind, connect_timeout, secret })
}

fn address(fields: &Fields<'_>) -> Option<Endpoint> {
    let place = fields.require("address", "write host:port, [v6]:port or unix:/path")?;
    let text = place.text()?;
    if text.contains('@') {
        // Without showing it: this is where a password lands.
        place.wrong("holds a user; put user and password into a Secret and name it under `auth`");
        return None;
    }
    match Endpoint::parse(text) {
        Ok(endpoint) => Some(endpoint),
        Err(error) => {
            place.wrong(format!("{text:?} {error}"));
            None
        }
    }
}

fn secret_ref(place: &Cursor<'_>) -> Option<SecretRef> {
    let fields = place.mapping(&["secretRef"])?;
    let fields =
        fields.require("secretRef", "name a Secret with username and password")?.mapping(&["name"])?;
    let place = fields.require("name", "name a Secret")?;
    let name = syntax::object_name(&place)?;
    let file = place.sink().file().to_owned();
    Some(SecretRef { name, key: place.key().to_owned(), place: Place { file, line: place.line() } })
}
