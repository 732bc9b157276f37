//! The table of all settings. A setting is one line here: its file key, its help, how it is read and how it is shown.
//! Its environment variable and its flag follow from the key.

use super::value::{Raw, Wrong};
use super::{ByteSize, Config, LogDestination, Resolver};

/// One setting.
pub struct Key {
    /// As in the file: `limits.flowsPerPod`.
    pub path: &'static str,
    pub is_list: bool,
    pub value_name: &'static str,
    pub help: &'static str,
    /// Why setting it changes nothing in this version.
    pub idle: Option<&'static str>,
    pub(super) set: fn(&mut Config, &Raw) -> Result<(), Wrong>,
    pub(super) show: fn(&Config) -> Vec<String>,
}

impl Key {
    /// `limits.flowsPerPod` is `TUNPROXY_LIMITS_FLOWS_PER_POD`.
    pub fn variable(&self) -> String {
        format!("TUNPROXY_{}", self.flag().replace('-', "_").to_ascii_uppercase())
    }

    /// `limits.flowsPerPod` is `--limits-flows-per-pod`.
    pub fn flag(&self) -> String {
        let mut flag = String::with_capacity(self.path.len() + 4);
        for character in self.path.chars() {
            match character {
                '.' => flag.push('-'),
                upper if upper.is_ascii_uppercase() => {
                    flag.push('-');
                    flag.push(upper.to_ascii_lowercase());
                }
                other => flag.push(other),
            }
        }
        flag
    }

    /// How a variable's text becomes values: lists are separated by commas.
    pub(super) fn split(&self, text: &str) -> Vec<String> {
        if self.is_list {
            text.split(',').map(|item| item.trim().to_owned()).collect()
        } else {
            vec![text.to_owned()]
        }
    }

    const fn idle(mut self, reason: &'static str) -> Self {
        self.idle = Some(reason);
        self
    }

    const fn scalar(
        path: &'static str,
        value_name: &'static str,
        help: &'static str,
        set: fn(&mut Config, &Raw) -> Result<(), Wrong>,
        show: fn(&Config) -> Vec<String>,
    ) -> Self {
        Self { path, is_list: false, value_name, help, idle: None, set, show }
    }

    const fn list(
        path: &'static str,
        value_name: &'static str,
        help: &'static str,
        set: fn(&mut Config, &Raw) -> Result<(), Wrong>,
        show: fn(&Config) -> Vec<String>,
    ) -> Self {
        Self { path, is_list: true, value_name, help, idle: None, set, show }
    }
}

/// Assigns what was read to a field.
macro_rules! set {
    ($($field:ident).+ = $read:expr) => {
        |config, raw| {
            let read: fn(&Raw) -> Result<_, Wrong> = $read;
            config.$($field).+ = read(raw)?;
            Ok(())
        }
    };
}

const MEMORY: std::ops::RangeInclusive<ByteSize> = ByteSize::mebibytes(16)..=ByteSize::mebibytes(1 << 20);
const ROTATE: std::ops::RangeInclusive<ByteSize> = ByteSize(4096)..=ByteSize::mebibytes(1 << 20);

/// The longest time of a TCP connection's: Linux allows 32,767 seconds too.
const SECONDS: usize = 32_767;

pub static KEYS: &[Key] = &[
    Key::scalar(
        "node.name",
        "NAME",
        "This node's name in logs and status\n[default: the host name]",
        set!(node.name = Raw::text),
        |config| vec![config.node.name.clone()],
    ),
    Key::scalar(
        "cniSocket",
        "PATH",
        "The socket on which the CNI plugin finds the agent",
        set!(cni.socket = Raw::path),
        |config| vec![config.cni.socket.display().to_string()],
    ),
    Key::scalar(
        "stateDir",
        "DIR",
        "Where the attachments are kept over a restart",
        set!(node.state_dir = Raw::path),
        |config| vec![config.node.state_dir.display().to_string()],
    ),
    Key::scalar(
        "pluginStateDir",
        "DIR",
        "Where the plugin leaves word of pods deleted while the agent was down",
        set!(cni.plugin_state_dir = Raw::path),
        |config| vec![config.cni.plugin_state_dir.display().to_string()],
    ),
    Key::list(
        "policy",
        "PATH",
        "A file or folder of policy documents; read again when it changes",
        set!(policy.paths = Raw::paths),
        |config| config.policy.paths.iter().map(|path| path.display().to_string()).collect(),
    ),
    Key::scalar(
        "workers",
        "COUNT",
        "Datapath threads\n[default: the cores]",
        set!(workers = |raw| raw.count(1..=1024).map(|count| count.try_into().expect("at least 1"))),
        |config| vec![config.workers.to_string()],
    ),
    Key::list(
        "networks.pods",
        "CIDR",
        "Pod networks: pods added from now on reach them by the main plugin's interface, past the TUN and policy, but for \
         DNS (port 53); a standalone pod has no such interface and does not",
        set!(networks.pods = Raw::networks),
        |config| config.networks.pods.iter().map(ToString::to_string).collect(),
    ),
    Key::list(
        "networks.services",
        "CIDR",
        "Service networks: reached as the pod networks are",
        set!(networks.services = Raw::networks),
        |config| config.networks.services.iter().map(ToString::to_string).collect(),
    ),
    Key::list(
        "networks.nodes",
        "CIDR",
        "Node networks; without effect in this version: they are for the host gate, which is not there yet",
        set!(networks.nodes = Raw::networks),
        |config| config.networks.nodes.iter().map(ToString::to_string).collect(),
    )
    .idle("without effect in this version"),
    Key::scalar(
        "default",
        "ACTION",
        "Allow or Deny: for pods that no policy selects",
        set!(policy.default = Raw::choice),
        |config| vec![format!("{:?}", config.policy.default)],
    ),
    Key::scalar(
        "upstream",
        "URL|NAME",
        "The upstream of rules that name none: direct, a URL, or the name of an Upstream document",
        set!(policy.upstream = Raw::text),
        |config| vec![redact(&config.policy.upstream)],
    ),
    Key::list(
        "resolvers",
        "ADDRESS|FILE",
        "Trusted resolvers, or files like /etc/resolv.conf: only their answers bind names to flows",
        set!(policy.resolvers = |raw| raw.each(parse_resolver)),
        |config| config.policy.resolvers.iter().map(ToString::to_string).collect(),
    ),
    Key::scalar(
        "limits.pods",
        "COUNT",
        "Attached pods",
        set!(limits.pods = |raw| raw.count(1..=100_000)),
        |config| vec![config.limits.pods.to_string()],
    ),
    Key::scalar(
        "limits.flowsPerPod",
        "COUNT",
        "TCP flows of one pod",
        set!(limits.flows_per_pod = |raw| raw.count(1..=1_000_000)),
        |config| vec![config.limits.flows_per_pod.to_string()],
    ),
    Key::scalar(
        "limits.pendingPerPod",
        "COUNT",
        "TCP flows of one pod whose upstream is not connected yet",
        set!(limits.pending_per_pod = |raw| raw.count(1..=100_000)),
        |config| vec![config.limits.pending_per_pod.to_string()],
    ),
    Key::scalar(
        "limits.udpMappingsPerPod",
        "COUNT",
        "UDP source ports of one pod",
        set!(limits.udp_mappings_per_pod = |raw| raw.count(1..=65_535)),
        |config| vec![config.limits.udp_mappings_per_pod.to_string()],
    ),
    Key::scalar(
        "limits.dials",
        "COUNT",
        "Connects through proxies under way, of all pods; one pod has at most half of them",
        set!(limits.dials = |raw| raw.count(1..=100_000)),
        |config| vec![config.limits.dials.to_string()],
    ),
    Key::scalar(
        "limits.memory",
        "SIZE",
        "Packet buffers of the whole agent",
        set!(limits.memory = |raw| raw.size(MEMORY)),
        |config| vec![config.limits.memory.to_string()],
    ),
    Key::scalar(
        "tcp.keepalive",
        "SECONDS",
        "Silence after which a pod is asked whether its end of a TCP connection is there; 0: never",
        set!(tcp.keepalive = |raw| raw.count(0..=SECONDS).map(|count| count as u32)),
        |config| vec![config.tcp.keepalive.to_string()],
    ),
    Key::scalar(
        "tcp.keepaliveInterval",
        "SECONDS",
        "From one such question to the next",
        set!(tcp.keepalive_interval = |raw| raw.count(1..=SECONDS).map(|count| count as u32)),
        |config| vec![config.tcp.keepalive_interval.to_string()],
    ),
    Key::scalar(
        "tcp.keepaliveProbes",
        "COUNT",
        "Questions without an answer after which the connection is reset",
        set!(tcp.keepalive_probes = |raw| raw.count(1..=127).map(|count| count as u8)),
        |config| vec![config.tcp.keepalive_probes.to_string()],
    ),
    Key::scalar(
        "tcp.userTimeout",
        "SECONDS",
        "How long a pod may leave octets unacknowledged before the connection is reset; 0: for fifteen time-outs",
        set!(tcp.user_timeout = |raw| raw.count(0..=SECONDS).map(|count| count as u32)),
        |config| vec![config.tcp.user_timeout.to_string()],
    ),
    Key::scalar(
        "flowLog.path",
        "PATH",
        "Where flows are recorded, one JSON line each: a file, stdout or none",
        set!(flow_log.destination = parse_destination),
        |config| vec![config.flow_log.destination.to_string()],
    ),
    Key::scalar(
        "flowLog.begin",
        "BOOL",
        "true: a line when a flow begins too, one without time, close and counts",
        set!(flow_log.begin = Raw::boolean),
        |config| vec![config.flow_log.begin.to_string()],
    ),
    Key::scalar(
        "flowLog.rotate",
        "SIZE",
        "The flow log's size at which a new file is begun",
        set!(flow_log.rotate = |raw| raw.size(ROTATE)),
        |config| vec![config.flow_log.rotate.to_string()],
    ),
    Key::scalar(
        "flowLog.keep",
        "COUNT",
        "Old flow log files that are kept",
        set!(flow_log.keep = |raw| raw.count(0..=1_000)),
        |config| vec![config.flow_log.keep.to_string()],
    ),
    Key::scalar(
        "admin.socket",
        "PATH",
        "The Unix socket of health, status and metrics, or none",
        set!(admin.socket = Raw::optional_path),
        |config| {
            vec![config.admin.socket.as_ref().map_or("none".to_owned(), |path| path.display().to_string())]
        },
    ),
    Key::scalar(
        "admin.metrics",
        "ADDRESS",
        "The address and port of metrics and health over HTTP, or none",
        set!(admin.metrics = Raw::optional_address),
        |config| vec![config.admin.metrics.map_or("none".to_owned(), |address| address.to_string())],
    ),
    Key::scalar(
        "log.level",
        "FILTER",
        "error, warn, info, debug or trace, also per module: info,tunproxy_agent::serve=debug",
        set!(log.level = parse_filter),
        |config| vec![config.log.level.clone()],
    ),
    Key::scalar("log.format", "FORMAT", "text or json", set!(log.format = Raw::choice), |config| {
        vec![format!("{:?}", config.log.format).to_ascii_lowercase()]
    }),
];

fn parse_resolver(text: &str) -> Result<Resolver, Wrong> {
    if let Ok(address) = text.parse() {
        return Ok(Resolver::Address(address));
    }
    super::value::absolute(text.to_owned()).map(Resolver::File).map_err(|_| {
        format!("{text:?} is neither an IP address nor the absolute path of a file like /etc/resolv.conf")
    })
}

fn parse_destination(raw: &Raw) -> Result<LogDestination, Wrong> {
    match raw.text()?.as_str() {
        "none" => Ok(LogDestination::None),
        "stdout" => Ok(LogDestination::Stdout),
        text if text.starts_with('/') => Ok(LogDestination::File(text.into())),
        text => Err(format!("{text:?} is not an absolute path, stdout or none")),
    }
}

fn parse_filter(raw: &Raw) -> Result<String, Wrong> {
    let text = raw.text()?;
    match tracing_subscriber::EnvFilter::try_new(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(format!("{text:?} is not a log filter ({error}); error, warn, info, debug, trace")),
    }
}

/// A URL's password is not for the screen.
pub fn redact(upstream: &str) -> String {
    let Some((scheme, rest)) = upstream.split_once("://") else { return upstream.to_owned() };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}"),
        None => upstream.to_owned(),
    }
}

impl std::fmt::Display for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl std::fmt::Display for LogDestination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}
