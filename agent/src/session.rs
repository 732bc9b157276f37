//! One workload served by this process alone, without a CNI: what `exec` and `tun` share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio::runtime::Runtime;
use tunproxy_datapath::{DnsAlias, Limits};
use tunproxy_policy::Workload;

use crate::cli::PolicyArgs;
use crate::config::{self, Resolver};
use crate::flowlog::{FlowLog, Output};
use crate::policies::{DocumentWatch, Outcome, Policies, Reload, follow};
use crate::upstream::Upstreams;
use crate::worker::{Dialer, FlowSink, PodConfig, PodId, Workers, WorkersConfig, raise_descriptor_limit};

const ID: PodId = PodId(1);
/// Connects through upstreams under way.
const DIALS: usize = 4_096;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The policies of a command line, read and found good.
#[derive(Debug)]
pub struct Governed {
    pub policies: Arc<Policies>,
    pub workload: Arc<Workload>,
}

/// A TUN to serve.
#[derive(Debug)]
pub struct Wire {
    pub queues: Vec<OwnedFd>,
    pub vnet_header: bool,
    pub addresses: Vec<IpAddr>,
    pub mtu: u16,
    pub dns_alias: Option<DnsAlias>,
    /// Record flows when they begin too.
    pub record_begin: bool,
    /// `SO_MARK` of the upstream sockets.
    pub mark: Option<u32>,
}

/// A running datapath. Dropping it ends every flow, each with its record.
#[derive(Debug)]
pub struct Session {
    workers: Arc<Workers>,
    pub reload: Arc<Reload>,
    /// Dropped after the workers, which hand it their dials.
    pub runtime: Runtime,
}

impl Governed {
    /// Reads the documents; their mistakes are the error. `virtual_resolver` is trusted beside those of the system.
    pub fn read(args: &PolicyArgs, virtual_resolver: Option<IpAddr>) -> anyhow::Result<Self> {
        let resolvers = virtual_resolver.map(Resolver::Address).into_iter();
        let policies = Policies::new(config::Policy {
            paths: args.policies.clone(),
            default: args.default,
            upstream: args.upstream.clone(),
            resolvers: resolvers.chain([Resolver::File(RESOLV_CONF.into())]).collect(),
        });
        match policies.reload() {
            Outcome::New(_) | Outcome::Same => {}
            Outcome::Broken(mistakes) => anyhow::bail!("{}", mistakes.join("\n")),
        }
        let workload =
            Workload { namespace: args.namespace.clone(), labels: args.labels(), ..Workload::default() };
        Ok(Self { policies: Arc::new(policies), workload: Arc::new(workload) })
    }

    /// The trusted resolvers.
    pub fn resolvers(&self) -> Arc<[IpAddr]> {
        self.policies.current().map(|generation| generation.resolvers.clone()).unwrap_or_default()
    }
}

impl Session {
    /// Starts to serve `wire` under the policies, with one worker for each queue.
    pub fn start(governed: &Governed, wire: Wire, sink: &Arc<dyn FlowSink>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("control")
            .enable_all()
            .build()
            .context("the control thread cannot be started")?;
        let upstreams = Arc::new(Upstreams::new(runtime.handle().clone(), wire.mark, DIALS));
        if let Some(generation) = governed.policies.current() {
            upstreams.replace(&generation.upstreams);
        }
        let config = WorkersConfig {
            workers: wire.queues.len(),
            limits: Limits::default(),
            record_begin: wire.record_begin,
            mark: wire.mark,
        };
        let dialer: Arc<dyn Dialer> = upstreams.clone();
        // The command was started before and keeps the limit it was given.
        raise_descriptor_limit();
        let workers = Workers::start(&config, &dialer, sink).context("the datapath cannot be started")?;
        let workers = Arc::new(workers);
        let pod = PodConfig {
            id: ID,
            workload: governed.workload.clone(),
            queues: wire.queues,
            vnet_header: wire.vnet_header,
            addresses: wire.addresses,
            broadcasts: Vec::new(),
            mtu: wire.mtu,
            rules: governed.policies.rules_for(&governed.workload),
            dns_alias: wire.dns_alias,
        };
        workers.attach(pod).context("the TUN cannot be served")?;
        let reload = Arc::new(reload(governed, upstreams, workers.clone()));
        Ok(Self { workers, reload, runtime })
    }

    /// Applies edits of the documents for as long as the session lives.
    pub fn follow_documents(&self, governed: &Governed) {
        if governed.policies.paths().is_empty() {
            return;
        }
        let _inside = self.runtime.enter();
        match DocumentWatch::start(governed.policies.paths()) {
            Ok(watch) => drop(self.runtime.spawn(follow(watch, self.reload.clone()))),
            Err(error) => {
                tracing::warn!(%error, "policy documents are not watched; edits take effect at the next start");
            }
        }
    }

    /// Packets not acted upon, by the reason's label.
    pub fn drops(&self) -> BTreeMap<&'static str, u64> {
        let pods = self.workers.snapshot();
        pods.iter()
            .flat_map(|pod| pod.counters.drops())
            .map(|(reason, count)| (reason.label(), count))
            .collect()
    }

    /// Ends every flow.
    pub fn stop(self) {
        self.workers.detach(ID);
    }
}

fn reload(governed: &Governed, upstreams: Arc<Upstreams>, workers: Arc<Workers>) -> Reload {
    let (policies, workload) = (governed.policies.clone(), governed.workload.clone());
    Reload::new(governed.policies.clone(), upstreams, move || {
        workers.set_rules(ID, &policies.rules_for(&workload));
    })
}

/// The flow log of `--log FILE`.
pub fn open_log(path: Option<&Path>) -> anyhow::Result<Option<FlowLog>> {
    let Some(path) = path else { return Ok(None) };
    let output = if path.as_os_str() == "-" {
        Output::Stdout
    } else {
        // A person's file: neither rotated nor bounded.
        Output::File { path: path.to_owned(), rotate: u64::MAX, keep: 0 }
    };
    let log = FlowLog::start(&output).with_context(|| format!("--log {}", path.display()))?;
    Ok(Some(log))
}
