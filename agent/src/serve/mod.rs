//! `tunproxy-agent serve`: the node agent's service, from start to orderly stop.
//!
//! Order of the start: the lock, the policies, the datapath, the pods of the last agent, and only then the plugin's
//! socket. A pod is never served before its policy is resident, and a plugin never waits for half an agent.

pub mod cni;
mod memory;
pub mod pods;
mod presence;
pub mod readiness;
pub mod store;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Handle;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tunproxy_ipc::{Listener, Tombstones};

use crate::admin::{Admin, Node};
use crate::cli::ServeArgs;
use crate::config::{Config, LogDestination};
use crate::flowlog::{FlowLog, Output, Recorder};
use crate::logging;
use crate::policies::{DocumentWatch, Policies, Reload, Trigger, follow};
use crate::upstream::Upstreams;
use crate::worker::{Dialer, FlowSink, MAX_SHARDS, Workers, WorkersConfig, raise_descriptor_limit};
pub use memory::restart_with_small_caches;
use pods::{PodSettings, Pods};
use readiness::ServiceManager;
use store::Store;

/// Between two looks for pods that went away without a DEL.
const SWEEP: Duration = Duration::from_secs(30);
/// For requests under way when the agent stops.
const DRAIN: Duration = Duration::from_secs(10);
/// Control only: the data has threads of its own.
const CONTROL_THREADS: usize = 2;

/// Runs until a signal stops it.
pub fn run(args: &ServeArgs, no_color: bool) -> anyhow::Result<ExitCode> {
    let loaded = Config::load(args.config.as_deref(), |name| std::env::var(name).ok(), &args.settings)?;
    if args.print_config {
        print!("{loaded}");
        return Ok(ExitCode::SUCCESS);
    }
    logging::start(&loaded.config.log.level, loaded.config.log.format, no_color)?;
    for (key, reason) in loaded.idle() {
        tracing::warn!(key, "a setting is {reason}");
    }
    let config = loaded.config;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("the control threads cannot be started")?;
    runtime.block_on(serve(config))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: Config) -> anyhow::Result<()> {
    // Caught from the first moment: a HUP during the start must not end the agent.
    let mut signals = Signals::listen()?;
    let agent = Agent::start(&config).await?;
    let (node, reload) = (agent.node.clone(), agent.reload.clone());
    let (stop, stopped) = channel(false);
    let tasks = agent.spawn_tasks(&stopped);
    node.started.store(true, Ordering::Release);
    let manager = ServiceManager::from_environment();
    manager.notify("READY=1");
    tracing::info!(node = config.node.name, socket = %config.cni.socket.display(), "ready");
    loop {
        match signals.next().await {
            Signal::Reload => {
                node.recorder.reopen_log();
                reload.run(Trigger::Signal).await;
            }
            Signal::Stop(name) => {
                tracing::info!(signal = name, "stopping");
                break;
            }
        }
    }
    manager.notify("STOPPING=1");
    stop_tasks(&stop, tasks).await;
    let pods = node.pods.clone();
    // Ends every flow, each with its record, before the flow log is closed.
    tokio::task::spawn_blocking(move || pods.stop()).await?;
    tracing::info!(
        "stopped; the pods' attachments stay on disk, and nothing leaves a pod until an agent serves it"
    );
    Ok(())
}

/// Everything that runs.
struct Agent {
    node: Arc<Node>,
    reload: Arc<Reload>,
    listener: Listener,
    admin: Admin,
    watch: Option<DocumentWatch>,
}

impl Agent {
    async fn start(config: &Config) -> anyhow::Result<Self> {
        let store = Store::open(&config.node.state_dir)?;
        let admin = Admin::bind(&config.admin).await?;
        let policies = Arc::new(Policies::new(config.policy.clone()));
        let watch = watch_documents(&policies);
        let upstreams = Arc::new(Upstreams::new(Handle::current(), None, config.limits.dials));
        let recorder = Arc::new(Recorder::new(start_flow_log(config)?));
        let dialer: Arc<dyn Dialer> = upstreams.clone();
        let sink: Arc<dyn FlowSink> = recorder.clone();
        raise_descriptor_limit();
        let workers = Workers::start(&workers_config(config), &dialer, &sink)
            .context("the datapath's threads cannot be started")?;
        let tombstones = Tombstones::new(&config.cni.plugin_state_dir);
        let pods = Arc::new(Pods::new(workers, store, tombstones, policies.clone(), pod_settings(config)));
        let governed = pods.clone();
        let reload = Arc::new(Reload::new(policies.clone(), upstreams, move || governed.apply_policies()));
        reload.run(Trigger::Start).await;
        let restoring = pods.clone();
        tokio::task::spawn_blocking(move || restoring.restore()).await??;
        let listener = bind_plugin_socket(&config.cni.socket)?;
        let name = config.node.name.clone();
        let node = Arc::new(Node { name, pods, policies, recorder, started: false.into() });
        Ok(Self { node, reload, listener, admin, watch })
    }

    /// Starts what runs beside the signals, until `stopped` turns true.
    fn spawn_tasks(self, stopped: &Receiver<bool>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let (pods, stop) = (self.node.pods.clone(), stopped.clone());
        tasks.spawn(async move {
            if let Err(error) = cni::serve(self.listener, pods, stop).await {
                tracing::error!(%error, "the plugin's socket failed");
            }
        });
        tasks.spawn(self.admin.serve(self.node.clone(), stopped.clone()));
        tasks.spawn(until(stopped.clone(), sweep(self.node.pods.clone())));
        tasks.spawn(until(stopped.clone(), memory::give_back()));
        if let Some(watch) = self.watch {
            tasks.spawn(until(stopped.clone(), follow(watch, self.reload.clone())));
        }
        tasks
    }
}

/// A signal that the agent heeds.
enum Signal {
    Reload,
    Stop(&'static str),
}

struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hang_up: unix::Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| unix::signal(kind).context("signals cannot be caught");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop("TERM"),
            _ = self.interrupt.recv() => Signal::Stop("INT"),
            _ = self.hang_up.recv() => Signal::Reload,
        }
    }
}

async fn until(mut stopped: Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::select! {
        _ = stopped.wait_for(|stopped| *stopped) => {}
        () = work => {}
    }
}

async fn sweep(pods: Arc<Pods>) {
    let mut interval = tokio::time::interval(SWEEP);
    loop {
        interval.tick().await;
        let pods = pods.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || pods.sweep()).await {
            tracing::error!(%error, "the sweep for dead pods failed");
        }
    }
}

async fn stop_tasks(stop: &Sender<bool>, mut tasks: JoinSet<()>) {
    stop.send_replace(true);
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, all).await.is_err() {
        tracing::warn!("requests under way did not end in time and are cut off");
    }
}

/// Without a watch the agent still serves: a HUP has the documents read again.
fn watch_documents(policies: &Policies) -> Option<DocumentWatch> {
    match DocumentWatch::start(policies.paths()) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(%error, "policy documents are not watched; send HUP after a change");
            None
        }
    }
}

fn bind_plugin_socket(path: &Path) -> anyhow::Result<Listener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{}: the folder of cniSocket cannot be made", folder.display()))?;
    }
    Ok(Listener::bind(path)?)
}

fn start_flow_log(config: &Config) -> anyhow::Result<Option<FlowLog>> {
    let output = match &config.flow_log.destination {
        LogDestination::None => return Ok(None),
        LogDestination::Stdout => Output::Stdout,
        LogDestination::File(path) => {
            let rotate = config.flow_log.rotate.bytes();
            Output::File { path: path.clone(), rotate, keep: config.flow_log.keep }
        }
    };
    let log = FlowLog::start(&output)
        .context("the flow log cannot be opened; set flowLog.path to another file, stdout or none")?;
    Ok(Some(log))
}

fn workers_config(config: &Config) -> WorkersConfig {
    let limits = &config.limits;
    let workers = config.workers.get();
    WorkersConfig {
        workers,
        limits: tunproxy_datapath::Limits {
            flows: limits.flows_per_pod,
            pending: limits.pending_per_pod,
            half_open: limits.pending_per_pod,
            udp_mappings: limits.udp_mappings_per_pod,
            memory: usize::try_from(limits.memory.bytes()).unwrap_or(usize::MAX),
            keepalive: config.tcp.keepalive(),
            user_timeout: config.tcp.user_timeout(),
            ..tunproxy_datapath::Limits::default()
        },
        record_begin: config.flow_log.begin,
        mark: None,
    }
}

fn pod_settings(config: &Config) -> PodSettings {
    PodSettings {
        networks: config.networks.clone(),
        queues: config.workers.get().min(MAX_SHARDS) as u16,
        limit: config.limits.pods,
    }
}
