//! The agent's settings: one table of keys ([`keys::KEYS`]), four places a value can come from.
//!
//! A later place wins: the default, then the file, then the environment, then the flag. Everything is first a [`Raw`]
//! setting (texts and where they stand) and only then part of the validated [`Config`]; nothing else of the agent
//! sees a raw one.

mod file;
mod flags;
mod keys;
mod print;
mod size;
mod value;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use tunproxy_datapath::Keepalive;

pub use flags::ConfigFlags;
pub use keys::{KEYS, redact};
pub use size::ByteSize;
pub use value::{Mistake, Origin, Raw};

/// What the agent runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub node: Node,
    pub cni: Cni,
    pub workers: NonZeroUsize,
    pub networks: Networks,
    pub policy: Policy,
    pub limits: Limits,
    pub tcp: Tcp,
    pub flow_log: FlowLog,
    pub admin: Admin,
    pub log: Log,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    /// What must survive a restart: the attachments.
    pub state_dir: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cni {
    pub socket: PathBuf,
    /// Where the plugin keeps the tombstones of pods that were deleted while the agent was down.
    pub plugin_state_dir: PathBuf,
}

/// What is "inside": reached by the pod's main interface, not through the TUN.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    pub pods: Vec<IpNet>,
    pub services: Vec<IpNet>,
    pub nodes: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Files and folders of policy documents.
    pub paths: Vec<PathBuf>,
    pub default: DefaultAction,
    /// A URL, or the name of an Upstream document; resolved when the documents are loaded.
    pub upstream: String,
    pub resolvers: Vec<Resolver>,
}

/// What happens to pods that no policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DefaultAction {
    #[value(name = "Allow", alias = "allow")]
    Allow,
    #[value(name = "Deny", alias = "deny")]
    Deny,
}

/// A trusted resolver, or a file in the form of resolv.conf(5) that lists some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolver {
    Address(IpAddr),
    File(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub pods: usize,
    pub flows_per_pod: usize,
    pub pending_per_pod: usize,
    pub udp_mappings_per_pod: usize,
    /// Connects through proxies under way.
    pub dials: usize,
    pub memory: ByteSize,
}

/// How long silence lasts on a TCP connection of a pod. All in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Silence before the pod is asked whether it is there; 0: it is not asked.
    pub keepalive: u32,
    pub keepalive_interval: u32,
    pub keepalive_probes: u8,
    /// How long octets may stay unacknowledged; 0: for fifteen time-outs.
    pub user_timeout: u32,
}

impl Tcp {
    pub fn keepalive(&self) -> Option<Keepalive> {
        let Self { keepalive: idle, keepalive_interval: interval, keepalive_probes: probes, .. } = *self;
        (idle > 0).then_some(Keepalive { idle, interval, probes })
    }

    pub fn user_timeout(&self) -> Option<tunproxy_datapath::Duration> {
        let seconds = u64::from(self.user_timeout);
        (seconds > 0).then(|| tunproxy_datapath::Duration::from_secs(seconds))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowLog {
    pub destination: LogDestination,
    /// Record flows when they begin too.
    pub begin: bool,
    pub rotate: ByteSize,
    pub keep: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogDestination {
    None,
    Stdout,
    File(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub socket: Option<PathBuf>,
    pub metrics: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// A configuration and, for each key that is not at its default, where its value comes from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    origins: Vec<Origin>,
}

/// Every mistake of the file, the environment and the flags.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Mistakes(pub Vec<Mistake>);

impl Config {
    /// Reads `file` (if any), asks `environment` for each key's variable, and applies `flags`.
    pub fn load(
        file: Option<&Path>,
        environment: impl Fn(&str) -> Option<String>,
        flags: &ConfigFlags,
    ) -> Result<Loaded, Mistakes> {
        let (mut raw, mut mistakes) = file.map_or_else(Default::default, file::read);
        raw.extend(from_environment(environment));
        raw.extend(flags.raw());
        let mut config = Self::default();
        let mut origins = vec![Origin::Default; KEYS.len()];
        for setting in &raw {
            match (KEYS[setting.key].set)(&mut config, setting) {
                Ok(()) => origins[setting.key] = setting.origin.clone(),
                Err(message) => mistakes.push(setting.mistake(message)),
            }
        }
        if mistakes.is_empty() { Ok(Loaded { config, origins }) } else { Err(Mistakes(mistakes)) }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: Node { name: host_name(), state_dir: "/var/lib/tunproxy".into() },
            cni: Cni {
                socket: "/run/tunproxy/cni.sock".into(),
                plugin_state_dir: "/var/lib/tunproxy/cni".into(),
            },
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            networks: Networks::default(),
            policy: Policy {
                paths: Vec::new(),
                default: DefaultAction::Allow,
                upstream: "direct".to_owned(),
                resolvers: vec![Resolver::File("/etc/resolv.conf".into())],
            },
            limits: Limits {
                pods: 1_000,
                flows_per_pod: 10_000,
                pending_per_pod: 512,
                udp_mappings_per_pod: 4_096,
                dials: 4_096,
                memory: ByteSize::mebibytes(256),
            },
            tcp: Tcp { keepalive: 7_200, keepalive_interval: 75, keepalive_probes: 9, user_timeout: 0 },
            flow_log: FlowLog {
                destination: LogDestination::File("/var/log/tunproxy/flows.jsonl".into()),
                begin: false,
                rotate: ByteSize::mebibytes(64),
                keep: 4,
            },
            admin: Admin {
                socket: Some("/run/tunproxy/admin.sock".into()),
                metrics: Some(SocketAddr::from(([127, 0, 0, 1], 9965))),
            },
            log: Log { level: "info".to_owned(), format: LogFormat::Text },
        }
    }
}

fn from_environment(environment: impl Fn(&str) -> Option<String>) -> Vec<Raw> {
    let set = |(key, spec): (usize, &keys::Key)| {
        let variable = spec.variable();
        // An empty variable is how container manifests write "not set".
        let text = environment(&variable).filter(|text| !text.is_empty())?;
        Some(Raw { key, values: spec.split(&text), origin: Origin::Variable(variable) })
    };
    KEYS.iter().enumerate().filter_map(set).collect()
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
