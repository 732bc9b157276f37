//! Policy documents from files: the CRD kinds of tunproxy.io/v1alpha1, and v1 Secrets for the upstreams' credentials.
//!
//! A file is read to its end whatever is wrong with it, so that one run tells every mistake. Nothing here decides what a
//! policy means; documents become [`tunproxy_policy::model`] values.

mod address;
mod cluster;
mod destinations;
mod egress;
mod files;
mod header;
mod quantity;
mod resolve;
mod rules;
mod secret;
mod selectors;
mod syntax;
mod upstream;
mod upstream_url;

use std::path::{Path, PathBuf};

use tunproxy_policy::model::{
    ClusterAction, ClusterEgressPolicy, ClusterTier, Limits, Policies, Priority, Rule, Subject,
};
use tunproxy_policy::{LabelSelector, UpstreamRef};

pub use address::Endpoint;
pub(crate) use files::{DEPTH, is_subfolder, subfolders};
pub use secret::Secret;
pub use upstream::{Login, UpstreamKind, UpstreamSpec};
pub use upstream_url::{UrlError, parse_upstream_url};

use crate::yaml::{self, Cursor, Mistake, Sink};
use header::Kind;
use resolve::Read;

/// What the documents of some files and folders say.
#[derive(Debug)]
pub struct LoadReport {
    /// Fails closed: when a mistake leaves open what a document was meant to say, these refuse everything.
    pub documents: Documents,
    /// Of all files, in their order and by line.
    pub mistakes: Vec<Mistake>,
    /// The files read, in their order.
    pub files: Vec<PathBuf>,
}

/// Sound documents.
#[derive(Debug, Default)]
pub struct Documents {
    pub policies: Policies,
    pub upstreams: Vec<UpstreamSpec>,
}

impl Documents {
    /// The policies to compile, and the upstreams that their rules name.
    pub fn compile_inputs(self) -> (Policies, Vec<UpstreamSpec>) {
        (self.policies, self.upstreams)
    }

    /// The upstream that a setting means: a URL, which joins the upstreams here, or a document: a ClusterUpstream's name or
    /// an Upstream's `namespace/name`.
    pub fn default_upstream(&mut self, setting: &str) -> Result<UpstreamRef, DefaultUpstreamError> {
        if setting == "direct" || setting.contains("://") || setting.contains('@') {
            let spec = parse_upstream_url(setting)?;
            let reference = spec.reference.clone();
            if !reference.is_direct() {
                self.upstreams.push(spec);
            }
            return Ok(reference);
        }
        let known = self.upstreams.iter().map(|upstream| &upstream.reference);
        known.clone().find(|reference| &*reference.0 == setting).cloned().ok_or_else(|| {
            let names: Vec<_> = known.map(ToString::to_string).collect();
            let known = if names.is_empty() { "none is there".to_owned() } else { names.join(", ") };
            DefaultUpstreamError::Unknown { name: setting.to_owned(), known }
        })
    }
}

/// Why a setting names no upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefaultUpstreamError {
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error(
        "no upstream document is named {name:?} (known: {known}); write a ClusterUpstream's name, an Upstream's \
         namespace/name, or a URL"
    )]
    Unknown { name: String, known: String },
}

/// Reads each file, and of each folder the `*.yaml` and `*.yml` in it, sorted.
pub fn load(paths: &[PathBuf]) -> LoadReport {
    let files::Found { files, mut mistakes } = files::find(paths);
    let mut read = Read::default();
    for file in &files {
        let sink = Sink::new(file);
        match files::read(file) {
            Ok(text) => read_text(&text, &sink, &mut read),
            Err(message) => sink.add(0, "", message),
        }
        mistakes.extend(sink.into_mistakes());
    }
    conclude(read, mistakes, files)
}

/// As [`load`], of one text that is in memory; `name` stands for the file.
pub fn load_text(name: &Path, text: &str) -> LoadReport {
    let sink = Sink::new(name);
    let mut read = Read::default();
    read_text(text, &sink, &mut read);
    conclude(read, sink.into_mistakes(), vec![name.to_owned()])
}

fn conclude(read: Read, mut mistakes: Vec<Mistake>, files: Vec<PathBuf>) -> LoadReport {
    let unsound = !mistakes.is_empty();
    let resolve::Resolved { mut documents, mistakes: unresolved, contradictory } = read.resolve();
    if unsound || contradictory {
        documents.policies.cluster.push(refuse_everything());
    }
    mistakes.extend(unresolved);
    let place = |mistake: &Mistake| files.iter().position(|file| *file == mistake.file);
    mistakes.sort_by_key(|mistake| (place(mistake), mistake.line));
    LoadReport { documents, mistakes, files }
}

fn read_text(text: &str, sink: &Sink, read: &mut Read) {
    let documents = yaml::parse(text);
    if documents.is_empty() {
        sink.add(0, "", "holds no document; write one or remove the file");
    }
    for document in documents {
        match document {
            Ok(node) => read_document(&Cursor::root(&node, sink), read),
            Err(error) => sink.add(error.line, "", error.message),
        }
    }
}

fn read_document(document: &Cursor<'_>, read: &mut Read) {
    let Some(header) = header::read(document) else { return };
    let identity = header.identity;
    match header.kind {
        Kind::EgressPolicy => {
            let policy = header.body.and_then(|spec| egress::read(&spec, &identity, read));
            read.declare(identity);
            read.egress.extend(policy);
        }
        Kind::ClusterEgressPolicy => {
            let policy = header.body.and_then(|spec| cluster::read(&spec, &identity, read));
            read.declare(identity);
            read.cluster.extend(policy);
        }
        Kind::Upstream | Kind::ClusterUpstream => {
            let upstream = header.body.and_then(|spec| upstream::read(&spec, &identity));
            read.declare(identity);
            read.upstreams.extend(upstream);
        }
        Kind::Secret => {
            let secret = header.body.map(|document| secret::read(&document, &identity));
            read.declare(identity);
            read.secrets.extend(secret);
        }
    }
}

/// Nobody can tell what a document with a mistake was meant to refuse.
fn refuse_everything() -> ClusterEgressPolicy {
    let rule = Rule {
        name: Some("refuse-everything".to_owned()),
        action: ClusterAction::Deny,
        to: Vec::new(),
        ports: Vec::new(),
        via: None,
        limits: Limits::default(),
    };
    ClusterEgressPolicy {
        name: "documents-with-mistakes".to_owned(),
        subject: Subject::Namespaces(LabelSelector::default()),
        tier: ClusterTier::Admin,
        priority: Priority::default(),
        rules: vec![rule],
    }
}

#[cfg(test)]
mod tests;
