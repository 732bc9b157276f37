//! What can be told only when all documents are read: duplicates, the upstreams that rules name, the secrets that upstreams
//! name.

use std::collections::HashMap;

use tunproxy_policy::UpstreamRef;
use tunproxy_policy::model::{ClusterEgressPolicy, EgressPolicy, KnownUpstreams, Policies};

use crate::yaml::Mistake;

use super::Documents;
use super::header::{Identity, Kind, Place};
use super::secret::SecretDocument;
use super::upstream::{Login, SecretRef, UpstreamDocument, UpstreamKind, UpstreamSpec};

/// The documents read so far.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub egress: Vec<EgressPolicy>,
    pub cluster: Vec<ClusterEgressPolicy>,
    pub upstreams: Vec<UpstreamDocument>,
    pub secrets: Vec<SecretDocument>,
    /// Every `via` of every rule.
    pub vias: Vec<Via>,
    /// All documents with a name, sound or not.
    declared: Vec<Identity>,
}

#[derive(Debug)]
pub(super) struct Via {
    /// Of the policy.
    pub namespace: Option<String>,
    pub upstream: String,
    pub key: String,
    pub place: Place,
}

pub(super) struct Resolved {
    pub documents: Documents,
    pub mistakes: Vec<Mistake>,
    /// Two documents have one name, and nobody can tell which is meant.
    pub contradictory: bool,
}

impl Read {
    pub fn declare(&mut self, identity: Identity) {
        self.declared.push(identity);
    }

    pub fn resolve(self) -> Resolved {
        let mut mistakes = duplicates(&self.declared);
        let contradictory = !mistakes.is_empty();
        let declared = known(self.declared.iter());
        mistakes.extend(self.vias.iter().filter_map(|via| via.mistake(&declared)));
        let mut upstreams = Vec::new();
        let mut sound = KnownUpstreams::default();
        for document in self.upstreams {
            match login(&document, &self.secrets) {
                Ok(login) => {
                    add(&mut sound, &document.identity);
                    upstreams.push(document.with_login(login));
                }
                // Left out, so that the rules that name it refuse what they match.
                Err(mistake) => mistakes.push(mistake),
            }
        }
        let policies = Policies { egress: self.egress, cluster: self.cluster, upstreams: sound };
        Resolved { documents: Documents { policies, upstreams }, mistakes, contradictory }
    }
}

fn duplicates(declared: &[Identity]) -> Vec<Mistake> {
    let mut first_places = HashMap::new();
    let mut mistakes = Vec::new();
    for identity in declared {
        let Identity { kind, namespace, name, place } = identity;
        let first = *first_places.entry((*kind, namespace, name)).or_insert(place);
        if !std::ptr::eq(first, place) {
            let what = identity.describe();
            let message = format!(
                "{what} is there twice (first in {}:{}); remove or rename one",
                first.file.display(),
                first.line
            );
            mistakes.push(place.mistake("metadata.name", message));
        }
    }
    mistakes
}

fn known<'a>(identities: impl Iterator<Item = &'a Identity>) -> KnownUpstreams {
    let mut known = KnownUpstreams::default();
    identities.for_each(|identity| add(&mut known, identity));
    known
}

fn add(known: &mut KnownUpstreams, identity: &Identity) {
    match (identity.kind, &identity.namespace) {
        (Kind::Upstream, Some(namespace)) => known.add_namespaced(namespace, &identity.name),
        (Kind::ClusterUpstream, None) => known.add_cluster(&identity.name),
        _ => {}
    }
}

impl Via {
    fn mistake(&self, known: &KnownUpstreams) -> Option<Mistake> {
        let namespace = self.namespace.as_deref();
        if known.resolve(namespace, &self.upstream).is_some() {
            return None;
        }
        let mut names = known.visible_from(namespace);
        names.push("direct");
        let kinds = match namespace {
            Some(namespace) => format!("Upstream of namespace {namespace} and no ClusterUpstream"),
            None => "ClusterUpstream".to_owned(),
        };
        let message = format!("no {kinds} is named {:?} (known are {})", self.upstream, names.join(", "));
        Some(self.place.mistake(&self.key, message))
    }
}

impl Place {
    fn mistake(&self, key: &str, message: String) -> Mistake {
        Mistake { file: self.file.clone(), line: self.line, key: key.to_owned(), message }
    }
}

fn login(upstream: &UpstreamDocument, secrets: &[SecretDocument]) -> Result<Option<Login>, Mistake> {
    let Some(reference) = &upstream.secret else { return Ok(None) };
    let namespace = upstream.identity.namespace.as_deref();
    let found = secret(reference, namespace, secrets).and_then(|secret| {
        let value = |key: &str| {
            secret
                .values
                .get(key)
                .ok_or_else(|| format!("Secret {} has no key `{key}`; add it", reference.name))
        };
        Login::checked(value("username")?.expose(), value("password")?)
    });
    found.map(Some).map_err(|message| reference.place.mistake(&reference.key, message))
}

/// An Upstream's secret is in its namespace; a ClusterUpstream's may be in any, if there is one of that name.
fn secret<'a>(
    reference: &SecretRef,
    namespace: Option<&str>,
    secrets: &'a [SecretDocument],
) -> Result<&'a SecretDocument, String> {
    let name = &reference.name;
    let mut candidates = secrets.iter().filter(|secret| {
        secret.name == *name && (namespace.is_none() || secret.namespace.as_deref() == namespace)
    });
    match (candidates.next(), candidates.next(), namespace) {
        (Some(secret), None, _) | (Some(secret), Some(_), Some(_)) => Ok(secret),
        (Some(_), Some(_), None) => Err(format!(
            "more than one namespace has a Secret {name:?}; give this upstream's a name of its own"
        )),
        (None, _, Some(namespace)) => Err(format!(
            "there is no Secret {name:?} in namespace {namespace}; add the document to these files"
        )),
        (None, _, None) => Err(format!("there is no Secret {name:?}; add the document to these files")),
    }
}

impl UpstreamDocument {
    fn with_login(self, found: Option<Login>) -> UpstreamSpec {
        let Identity { namespace, name, .. } = self.identity;
        let reference = match namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name,
        };
        let kind = match self.kind {
            UpstreamKind::Socks5 { address, login: _ } => UpstreamKind::Socks5 { address, login: found },
            kind @ (UpstreamKind::Direct | UpstreamKind::Reject) => kind,
        };
        UpstreamSpec { reference: UpstreamRef(reference.into()), kind, connect_timeout: self.connect_timeout }
    }
}
