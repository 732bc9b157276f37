//! From changed documents to what workloads may do.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::{DocumentWatch, Outcome, Policies};
use crate::upstream::Upstreams;

/// Why the documents are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    Start,
    /// Something happened in their folders: they are read only if they differ.
    Change,
    /// A person asked.
    Signal,
}

/// Reads the documents and puts them in force.
pub struct Reload {
    policies: Arc<Policies>,
    upstreams: Arc<Upstreams>,
    /// Gives every workload its policy anew.
    apply: Box<dyn Fn() + Send + Sync>,
    /// One reading at a time, to its end.
    order: Mutex<()>,
}

impl Reload {
    pub fn new(
        policies: Arc<Policies>,
        upstreams: Arc<Upstreams>,
        apply: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self { policies, upstreams, apply: Box::new(apply), order: Mutex::default() }
    }

    /// Returns when the new state is in force, or it was said why not.
    pub async fn run(self: &Arc<Self>, trigger: Trigger) {
        let this = self.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || this.run_blocking(trigger)).await {
            tracing::error!(%error, "reading the policy documents failed; what was in force stays");
        }
    }

    fn run_blocking(&self, trigger: Trigger) {
        let _one = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = match trigger {
            Trigger::Start | Trigger::Signal => self.policies.reload(),
            Trigger::Change => self.policies.reload_if_changed(),
        };
        match outcome {
            Outcome::Same => {}
            Outcome::New(generation) => {
                // First the upstreams: no flow may be allowed to one that is not there yet.
                self.upstreams.replace(&generation.upstreams);
                (self.apply)();
                tracing::info!(generation = generation.number, files = generation.files, "policies in force");
            }
            Outcome::Broken(mistakes) => self.complain(&mistakes),
        }
    }

    fn complain(&self, mistakes: &[String]) {
        for mistake in mistakes {
            tracing::error!("{mistake}");
        }
        let kept = match self.policies.current() {
            Some(_) => "the last good ones stay in force",
            None => "every flow is refused until they are mended",
        };
        tracing::error!(mistakes = mistakes.len(), "the policy documents are broken; {kept}");
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").field("policies", &self.policies).finish_non_exhaustive()
    }
}

/// Reloads on every change, for ever.
pub async fn follow(mut watch: DocumentWatch, reload: Arc<Reload>) {
    loop {
        watch.changed().await;
        reload.run(Trigger::Change).await;
    }
}
