//! What every document begins with: apiVersion, kind and metadata.

use crate::yaml::{Cursor, Fields, Recorded, Value};

use super::syntax;

const OURS: &str = "tunproxy.io/v1alpha1";
const DEFAULT_NAMESPACE: &str = "default";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    EgressPolicy,
    ClusterEgressPolicy,
    Upstream,
    ClusterUpstream,
    Secret,
}

/// Which document, and where it is.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub kind: Kind,
    /// `None` for the kinds of the cluster.
    pub namespace: Option<String>,
    pub name: String,
    pub place: Place,
}

#[derive(Clone, Debug)]
pub(super) struct Place {
    pub file: std::path::PathBuf,
    pub line: usize,
}

pub(super) struct Header<'a> {
    pub kind: Kind,
    pub identity: Identity,
    /// The spec; of a Secret, the document itself.
    pub body: Option<Cursor<'a>>,
}

const KINDS: [(&str, Kind); 5] = [
    ("EgressPolicy", Kind::EgressPolicy),
    ("ClusterEgressPolicy", Kind::ClusterEgressPolicy),
    ("Upstream", Kind::Upstream),
    ("ClusterUpstream", Kind::ClusterUpstream),
    ("Secret", Kind::Secret),
];

impl Kind {
    pub fn label(self) -> &'static str {
        match self {
            Self::EgressPolicy => "EgressPolicy",
            Self::ClusterEgressPolicy => "ClusterEgressPolicy",
            Self::Upstream => "Upstream",
            Self::ClusterUpstream => "ClusterUpstream",
            Self::Secret => "Secret",
        }
    }

    fn is_namespaced(self) -> bool {
        match self {
            Self::EgressPolicy | Self::Upstream | Self::Secret => true,
            Self::ClusterEgressPolicy | Self::ClusterUpstream => false,
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::EgressPolicy | Self::ClusterEgressPolicy | Self::Upstream | Self::ClusterUpstream => OURS,
            Self::Secret => "v1",
        }
    }

    fn keys(self) -> &'static [&'static str] {
        match self {
            // `status` is what a cluster adds to a document that is copied from it.
            Self::EgressPolicy | Self::ClusterEgressPolicy | Self::Upstream | Self::ClusterUpstream => {
                &["apiVersion", "kind", "metadata", "spec", "status"]
            }
            Self::Secret => &["apiVersion", "kind", "metadata", "type", "data", "stringData", "immutable"],
        }
    }
}

pub(super) fn read<'a>(document: &Cursor<'a>) -> Option<Header<'a>> {
    if !matches!(document.value(), Value::Mapping(_)) {
        document.wrong("a document is a mapping that begins with apiVersion and kind");
        return None;
    }
    let fields = document.any_mapping()?;
    let kind = fields.require("kind", "write `kind: EgressPolicy`, for example")?.one_of(&KINDS)?;
    document.known_keys(kind.keys());
    api_version(&fields, kind);
    let identity = metadata(&fields, kind)?;
    let body = match kind {
        Kind::Secret => Some(document.clone()),
        Kind::EgressPolicy | Kind::ClusterEgressPolicy | Kind::Upstream | Kind::ClusterUpstream => {
            fields.require("spec", "what the document says goes there").map(Cursor::as_base)
        }
    };
    Some(Header { kind, identity, body })
}

fn api_version(fields: &Fields<'_>, kind: Kind) {
    let expected = kind.api_version();
    let Some(place) = fields.require("apiVersion", &format!("write `apiVersion: {expected}`")) else {
        return;
    };
    match place.text() {
        Some(version) if version != expected => {
            place.wrong(format!("{version:?} is no version of {}; write {expected}", kind.label()));
        }
        Some(_) | None => {}
    }
}

/// Keys beyond name and namespace are what a cluster adds, or notes for people.
const METADATA: [&str; 15] = [
    "name",
    "namespace",
    "labels",
    "annotations",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
    "managedFields",
    "ownerReferences",
    "selfLink",
    "generateName",
];

fn metadata(fields: &Fields<'_>, kind: Kind) -> Option<Identity> {
    let metadata = fields.require("metadata", "give the document a name there")?.mapping(&METADATA)?;
    let namespace = namespace(&metadata, kind);
    let place = metadata.require("name", "give the document a name")?;
    let name = syntax::object_name(&place)?;
    if kind == Kind::ClusterUpstream && name == "direct" {
        place.wrong("\"direct\" is built in; choose another name");
        return None;
    }
    let place = Place { file: place.sink().file().to_owned(), line: place.line() };
    Some(Identity { kind, namespace: namespace.ok()?, name, place })
}

fn namespace(metadata: &Fields<'_>, kind: Kind) -> Result<Option<String>, Recorded> {
    if kind.is_namespaced() {
        let given = metadata.optional("namespace", syntax::label_name)?;
        return Ok(Some(given.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())));
    }
    metadata.optional("namespace", |place| {
        place.wrong(format!("a {} belongs to no namespace; remove the key", kind.label()));
        None
    })
}

impl Identity {
    /// As people name it: `EgressPolicy shop/web`.
    pub fn describe(&self) -> String {
        let kind = self.kind.label();
        match &self.namespace {
            Some(namespace) => format!("{kind} {namespace}/{}", self.name),
            None => format!("{kind} {}", self.name),
        }
    }
}
