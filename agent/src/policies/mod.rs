//! The policies in force: documents read, compiled, watched, and kept when an edit breaks them.

mod fingerprint;
mod reload;
mod watch;

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use tunproxy_policy::{
    DenyReason, NodeDefault, NodeSettings, PolicySet, UpstreamRef, Workload, WorkloadPolicy,
};

use crate::config::{self, DefaultAction};
use crate::documents::{self, UpstreamKind, UpstreamSpec};
use crate::resolvers;
use crate::worker::PodRules;
use fingerprint::Fingerprint;

pub use reload::{Reload, Trigger, follow};
pub use watch::DocumentWatch;

/// One good reading of the documents.
#[derive(Debug)]
pub struct Generation {
    /// Counts good readings since the start, from 1.
    pub number: u64,
    pub loaded: SystemTime,
    /// Files read.
    pub files: usize,
    pub set: PolicySet,
    pub upstreams: Vec<UpstreamSpec>,
    /// Those of type Direct.
    pub direct: Arc<HashSet<UpstreamRef>>,
    pub resolvers: Arc<[IpAddr]>,
}

/// What a reading came to.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing changed, and nothing was read.
    Same,
    New(Arc<Generation>),
    /// Every mistake; what was in force stays.
    Broken(Vec<String>),
}

/// The current generation and what was wrong with the last reading, if anything.
#[derive(Debug)]
pub struct Policies {
    settings: config::Policy,
    current: ArcSwapOption<Generation>,
    last: Mutex<LastReading>,
}

#[derive(Debug, Default)]
struct LastReading {
    seen: Fingerprint,
    /// Empty when it was good.
    mistakes: Vec<String>,
}

impl Policies {
    pub fn new(settings: config::Policy) -> Self {
        Self { settings, current: ArcSwapOption::empty(), last: Mutex::default() }
    }

    /// Reads everything again. A good reading becomes the current generation; a broken one changes nothing but
    /// [`mistakes`](Self::mistakes).
    pub fn reload(&self) -> Outcome {
        let mut last = self.last();
        // Taken before the reading: a change during it is seen as one by the next event.
        last.seen = Fingerprint::of(&self.settings.paths);
        match self.read() {
            Ok(generation) => {
                last.mistakes.clear();
                let generation = Arc::new(generation);
                self.current.store(Some(generation.clone()));
                Outcome::New(generation)
            }
            Err(mistakes) => {
                last.mistakes.clone_from(&mistakes);
                Outcome::Broken(mistakes)
            }
        }
    }

    /// [`reload`](Self::reload), unless every file is as it was: folders are shared with others' files.
    pub fn reload_if_changed(&self) -> Outcome {
        if self.last().seen == Fingerprint::of(&self.settings.paths) { Outcome::Same } else { self.reload() }
    }

    /// `None` until a first reading was good: every pod is refused everything then.
    pub fn current(&self) -> Option<Arc<Generation>> {
        self.current.load_full()
    }

    pub fn mistakes(&self) -> Vec<String> {
        self.last().mistakes.clone()
    }

    pub fn paths(&self) -> &[PathBuf] {
        &self.settings.paths
    }

    /// What holds for a pod with `workload` now, all of it from one generation.
    pub fn rules_for(&self, workload: &Workload) -> PodRules {
        match self.current() {
            Some(generation) => PodRules {
                policy: Arc::new(generation.set.for_workload(workload)),
                resolvers: generation.resolvers.clone(),
                direct: generation.direct.clone(),
            },
            None => PodRules {
                policy: Arc::new(WorkloadPolicy::deny_all(DenyReason::NoPolicy)),
                resolvers: Arc::default(),
                direct: Arc::default(),
            },
        }
    }

    fn last(&self) -> MutexGuard<'_, LastReading> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<Generation, Vec<String>> {
        let report = documents::load(&self.settings.paths);
        let mut mistakes: Vec<String> = report.mistakes.iter().map(ToString::to_string).collect();
        let (policies, mut upstreams) = report.documents.compile_inputs();
        let upstream = note(&mut mistakes, default_upstream(&self.settings.upstream, &mut upstreams));
        let resolvers = note(&mut mistakes, resolvers::addresses(&self.settings.resolvers));
        let (Some(upstream), Some(resolvers), true) = (upstream, resolvers, mistakes.is_empty()) else {
            return Err(mistakes);
        };
        let default = match self.settings.default {
            DefaultAction::Allow => NodeDefault::Allow,
            DefaultAction::Deny => NodeDefault::Deny,
        };
        let settings = NodeSettings { default, upstream, resolvers: resolvers.clone() };
        Ok(Generation {
            number: self.current().map_or(1, |generation| generation.number + 1),
            loaded: SystemTime::now(),
            files: report.files.len(),
            set: PolicySet::compile(&policies, settings),
            direct: Arc::new(direct(&upstreams)),
            upstreams,
            resolvers: resolvers.into(),
        })
    }
}

fn direct(upstreams: &[UpstreamSpec]) -> HashSet<UpstreamRef> {
    let direct = upstreams.iter().filter(|spec| spec.kind == UpstreamKind::Direct);
    direct.map(|spec| spec.reference.clone()).collect()
}

fn note<T, E: ToString>(mistakes: &mut Vec<String>, result: Result<T, E>) -> Option<T> {
    result.map_err(|error| mistakes.push(error.to_string())).ok()
}

/// The upstream of rules that name none: one of `known`, or a URL, which becomes known by that.
fn default_upstream(text: &str, known: &mut Vec<UpstreamSpec>) -> Result<UpstreamRef, String> {
    if text != "direct" && !text.contains("://") {
        let names: Vec<&str> = known.iter().map(|spec| &*spec.reference.0).collect();
        return match names.contains(&text) {
            true => Ok(UpstreamRef(text.into())),
            false if names.is_empty() => {
                Err(format!("upstream: {text:?} is not a URL, and there are no Upstream documents"))
            }
            false => Err(format!(
                "upstream: {text:?} is neither a URL nor an Upstream document ({})",
                names.join(", ")
            )),
        };
    }
    let spec = documents::parse_upstream_url(text).map_err(|error| format!("upstream: {error}"))?;
    let reference = spec.reference.clone();
    if !known.iter().any(|spec| spec.reference == reference) {
        known.push(spec);
    }
    Ok(reference)
}

#[cfg(test)]
mod tests;
