//! Everything that can fail, and the one place in which it becomes a CNI error document.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tunproxy_ipc::{ClientError, ErrorCode};
use tunproxy_linux_net::NetNsError;
use tunproxy_linux_net::steering::SteeringError;
use tunproxy_linux_net::tun::TunError;

use crate::version::CniVersion;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("cniVersion {found:?} is not supported (supported: {})", CniVersion::ALL.map(CniVersion::as_str).join(", "))]
    Version { found: String },
    #[error("{verb} exists since CNI {since}, the network configuration has cniVersion {found}")]
    VerbVersion { verb: &'static str, since: &'static str, found: CniVersion },
    #[error("network namespace {path} does not exist any more")]
    ContainerGone { path: PathBuf },
    #[error("{}", describe(.problems))]
    Environment { problems: Vec<(&'static str, String)> },
    #[error("cannot read the network configuration from standard input: {source}")]
    ReadInput { source: io::Error },
    #[error("the network configuration is not JSON: {source}")]
    Decode { source: serde_json::Error },
    #[error("network configuration: {key}: {reason}")]
    Config { key: String, reason: String },
    #[error("CNI_NETNS {path} is the host's own network namespace: steering it would cut the node off")]
    HostNamespace { path: PathBuf },
    #[error(transparent)]
    Agent(#[from] ClientError),
    #[error("the agent answered {request} with something else: {answer}")]
    Answer { request: &'static str, answer: String },
    #[error("the agent does not enrol this pod, and without it the pod has no network in standalone mode")]
    NotEnrolled,
    #[error(transparent)]
    Steering(#[from] SteeringError),
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    #[error("{}", .problems.join("; "))]
    CheckFailed { problems: Vec<String> },
    #[error("not ready: {message}")]
    NotReady { message: String },
    #[error("not ready, and running pods are affected: {message}")]
    Degraded { message: String },
    #[error("ipam plugin {plugin} is not in CNI_PATH {path}: install it there")]
    IpamMissing { plugin: String, path: String },
    #[error("ipam plugin {plugin}: {source}")]
    IpamRun { plugin: String, source: io::Error },
    #[error("ipam plugin {plugin} did not end within {limit:?}")]
    IpamTimedOut { plugin: String, limit: Duration },
    #[error("ipam plugin {plugin} still works on an earlier call for {key}: try again later")]
    IpamBusy { plugin: String, key: String },
    #[error("ipam plugin {plugin} answered: {reason}")]
    IpamAnswer { plugin: String, reason: String },
    /// The ipam plugin's own error document, passed on with its code.
    #[error("{message}")]
    Ipam { code: u64, message: String, details: String },
}

/// Codes below 100 are the specification's, from 100 on they are ours.
pub mod code {
    pub const INCOMPATIBLE_VERSION: u64 = 1;
    pub const UNKNOWN_CONTAINER: u64 = 3;
    pub const INVALID_ENVIRONMENT: u64 = 4;
    pub const IO_FAILURE: u64 = 5;
    pub const DECODE_FAILURE: u64 = 6;
    pub const INVALID_CONFIG: u64 = 7;
    pub const TRY_AGAIN_LATER: u64 = 11;
    pub const NOT_AVAILABLE: u64 = 50;
    pub const LIMITED_CONNECTIVITY: u64 = 51;
    pub const PLUMBING: u64 = 100;
    pub const INTERFACE_TAKEN: u64 = 101;
    pub const HOST_NAMESPACE: u64 = 102;
    pub const IPAM: u64 = 103;
    pub const CHECK_FAILED: u64 = 104;
    pub const AGENT_MISMATCH: u64 = 105;
    pub const AGENT_REFUSED: u64 = 106;
}

impl PluginError {
    pub fn config(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config { key: key.into(), reason: reason.into() }
    }

    /// The error document of the specification, in one line.
    pub fn document(&self, version: &str) -> String {
        let mut document = json!({
            "cniVersion": version,
            "code": self.code(),
            "msg": self.summary(),
        });
        let details = match self {
            Self::Ipam { details, .. } => details.clone(),
            _ => self.to_string(),
        };
        if !details.is_empty() {
            document["details"] = Value::String(details);
        }
        document.to_string()
    }

    pub fn code(&self) -> u64 {
        match self {
            Self::Version { .. } | Self::VerbVersion { .. } => code::INCOMPATIBLE_VERSION,
            Self::ContainerGone { .. } => code::UNKNOWN_CONTAINER,
            Self::IpamBusy { .. } => code::TRY_AGAIN_LATER,
            Self::Environment { .. } => code::INVALID_ENVIRONMENT,
            Self::ReadInput { .. } => code::IO_FAILURE,
            Self::Decode { .. } => code::DECODE_FAILURE,
            Self::Config { .. } => code::INVALID_CONFIG,
            Self::HostNamespace { .. } => code::HOST_NAMESPACE,
            Self::Agent(error) => agent_code(error),
            Self::Answer { .. } => code::AGENT_MISMATCH,
            Self::NotEnrolled => code::AGENT_REFUSED,
            Self::Steering(error) => steering_code(error),
            Self::NetNs(_) => code::PLUMBING,
            Self::CheckFailed { .. } => code::CHECK_FAILED,
            Self::NotReady { .. } => code::NOT_AVAILABLE,
            Self::Degraded { .. } => code::LIMITED_CONNECTIVITY,
            Self::IpamMissing { .. }
            | Self::IpamRun { .. }
            | Self::IpamTimedOut { .. }
            | Self::IpamAnswer { .. } => code::IPAM,
            Self::Ipam { code, .. } => *code,
        }
    }

    /// The short `msg`; what, where and the way out are in `details`.
    fn summary(&self) -> String {
        let text = match self {
            Self::Version { .. } | Self::VerbVersion { .. } => "incompatible CNI version",
            Self::ContainerGone { .. } => "container does not exist",
            Self::Environment { .. } => "invalid environment variables",
            Self::ReadInput { .. } => "cannot read the network configuration",
            Self::Decode { .. } => "cannot decode the network configuration",
            Self::Config { key, .. } => return format!("invalid network configuration: {key}"),
            Self::HostNamespace { .. } => "refusing the host's network namespace",
            Self::IpamBusy { .. } => "the ipam plugin is busy",
            Self::Agent(error) if agent_code(error) == code::TRY_AGAIN_LATER => "the agent is not available",
            Self::Agent(_) | Self::Answer { .. } | Self::NotEnrolled => "the agent refused",
            Self::Steering(error) if steering_code(error) == code::INTERFACE_TAKEN => "interface exists",
            Self::Steering(_) | Self::NetNs(_) => "cannot set up the pod's network",
            Self::CheckFailed { .. } => "the pod's network is not as it was made",
            Self::NotReady { .. } => "the plugin is not available",
            Self::Degraded { .. } => "the plugin is not available, running pods have limited connectivity",
            Self::IpamMissing { .. }
            | Self::IpamRun { .. }
            | Self::IpamTimedOut { .. }
            | Self::IpamAnswer { .. } => "the ipam plugin failed",
            Self::Ipam { message, .. } => return message.clone(),
        };
        text.into()
    }
}

/// An agent that cannot be asked now may answer later; one of another release will not.
fn agent_code(error: &ClientError) -> u64 {
    match error {
        ClientError::Unreachable { .. }
        | ClientError::TimedOut { .. }
        | ClientError::Closed { .. }
        | ClientError::Io { .. } => code::TRY_AGAIN_LATER,
        ClientError::Untrusted { .. } => code::AGENT_REFUSED,
        ClientError::Frame { .. } => code::AGENT_MISMATCH,
        ClientError::Refused(failure) => match failure.code {
            ErrorCode::NotReady | ErrorCode::LimitReached => code::TRY_AGAIN_LATER,
            ErrorCode::ProtocolMismatch => code::AGENT_MISMATCH,
            ErrorCode::BadRequest | ErrorCode::Conflict | ErrorCode::Internal => code::AGENT_REFUSED,
        },
    }
}

fn steering_code(error: &SteeringError) -> u64 {
    match error {
        SteeringError::Tun(TunError::Exists { .. } | TunError::Foreign { .. })
        | SteeringError::TableTaken { .. } => code::INTERFACE_TAKEN,
        SteeringError::Tun(_)
        | SteeringError::NetNs(_)
        | SteeringError::Netlink(_)
        | SteeringError::Sysctl(_)
        | SteeringError::NoInterface { .. }
        | SteeringError::NoAddress { .. } => code::PLUMBING,
    }
}

fn describe(problems: &[(&'static str, String)]) -> String {
    let each: Vec<String> = problems.iter().map(|(name, problem)| format!("{name} {problem}")).collect();
    each.join("; ")
}
