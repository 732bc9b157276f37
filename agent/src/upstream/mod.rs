//! How an allowed flow reaches its destination: the upstreams by name, and the protocols they speak.
//!
//! A worker hands over what it cannot dial itself and gets a connected socket back, whatever the protocol before it
//! was. Nothing is remembered of a flow here.

mod dials;
mod route;
pub mod socks5;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tunproxy_datapath::{DialFailure, Target};
use tunproxy_policy::{Permit, UpstreamRef};

use crate::documents::UpstreamSpec;
use crate::worker::{Completion, DialRequest, Dialer, Dialing};

use dials::Dials;
pub use route::{DialError, Route};

/// The upstreams in force, replaced as a whole when documents change.
#[derive(Debug)]
pub struct Upstreams {
    routes: ArcSwap<HashMap<UpstreamRef, Arc<Route>>>,
    runtime: Handle,
    /// `SO_MARK` of every socket towards an upstream.
    mark: Option<u32>,
    dials: Arc<Dials>,
}

impl Upstreams {
    /// At most `dials` connects are under way at once, of all pods together.
    pub fn new(runtime: Handle, mark: Option<u32>, dials: usize) -> Self {
        Self { routes: ArcSwap::default(), runtime, mark, dials: Dials::new(dials) }
    }

    /// Puts `specs` in the place of all that was known. Connections that stand are not touched.
    pub fn replace(&self, specs: &[UpstreamSpec]) {
        let mut routes = HashMap::new();
        for spec in specs {
            match Route::try_from(spec) {
                Ok(route) => drop(routes.insert(spec.reference.clone(), Arc::new(route))),
                // Left out: what policy sends there is refused.
                Err(error) => {
                    tracing::error!(upstream = &*spec.reference.0, %error, "an upstream cannot be used");
                }
            }
        }
        self.routes.store(Arc::new(routes));
    }

    fn route(&self, upstream: &UpstreamRef) -> Option<Arc<Route>> {
        let routes = self.routes.load();
        routes.get(upstream).cloned().or_else(|| upstream.is_direct().then(|| Arc::new(Route::direct())))
    }

    /// Connects `target` as `permit` allows.
    async fn connect(
        route: Option<Arc<Route>>,
        permit: &Permit,
        target: &Target,
        mark: Option<u32>,
    ) -> Result<OwnedFd, DialError> {
        match route {
            Some(route) => route.connect(target, mark).await,
            // Policy refuses rules whose upstream is unknown; this is a flow decided just before a change.
            None => Err(DialError::Unknown { upstream: permit.upstream().0.to_string() }),
        }
    }
}

impl Dialer for Upstreams {
    fn dial(&self, request: DialRequest, done: Completion) -> Dialing {
        // A flow that its pod abandons meanwhile keeps its place until its socket is closed.
        let Some(place) = self.dials.take(request.pod) else {
            tracing::debug!(
                pod = request.pod.0,
                "the pod has its share of connects under way: one is refused"
            );
            done.finish(Err(DialFailure::Limit.into()));
            return Dialing::over();
        };
        let route = self.route(request.permit.upstream());
        let mark = self.mark;
        let task = self.runtime.spawn(async move {
            let result = Self::connect(route, &request.permit, &request.target, mark).await;
            if let Err(error) = &result {
                let upstream = &*request.permit.upstream().0;
                tracing::debug!(upstream, destination = %request.target.destination, %error, "an upstream failed");
            }
            drop(place);
            done.finish(result.map_err(DialError::into_failure));
        });
        let abort = task.abort_handle();
        Dialing::new(move || abort.abort())
    }
}
