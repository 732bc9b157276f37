//! What the plugin asks and what the agent answers.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A request of the plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Request {
    /// Is this pod enrolled, and with which settings is it to be plumbed? Makes the agent load the pod's policy.
    Prepare(PrepareRequest),
    /// The pod is plumbed. Descriptors: the network namespace, then one per queue of the TUN. An agent that cannot
    /// deliver [`Response::Attached`] drops the attachment again: a plugin that was killed may have been followed by a
    /// DEL, whose [`Request::Detach`] came by another connection and before.
    Attach(AttachRequest),
    /// The pod's interface goes away. Unknown keys are a success.
    Detach(AttachmentKey),
    /// Drop every attachment of `network` that is not in `valid`.
    Gc(GcRequest),
    /// Is the attachment served?
    Check(AttachmentKey),
    /// Could an ADD be served now?
    Status,
}

/// An answer of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Response {
    /// Answer to [`Request::Prepare`].
    Settings(Settings),
    /// The policy is resident and the datapath serves the TUN.
    Attached,
    /// The attachment is gone, or was never there.
    Detached,
    /// Answer to [`Request::Gc`]: what was dropped.
    Collected { removed: Vec<AttachmentKey> },
    /// Answer to [`Request::Check`].
    Checked(Checked),
    /// Answer to [`Request::Status`].
    Status(Status),
    /// The request failed and changed nothing.
    Error(Failure),
}

/// See [`Request::Prepare`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrepareRequest {
    pub key: AttachmentKey,
    /// Path as the runtime gave it, for example `/var/run/netns/cni-...`.
    pub netns_path: PathBuf,
    pub pod: PodIdentity,
    pub mode: Mode,
    /// Name of the network configuration.
    pub network: String,
}

/// See [`Request::Attach`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachRequest {
    pub attachment: Attachment,
}

/// See [`Request::Gc`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GcRequest {
    pub network: String,
    pub valid: Vec<AttachmentKey>,
}

/// What identifies an attachment: the pair that CNI guarantees to be unique.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentKey {
    pub container_id: String,
    /// The interface CNI named (`CNI_IFNAME`), not the TUN.
    pub ifname: String,
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// Whose interface it is. Every field may be empty: the runtime need not be a kubelet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodIdentity {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// From the CNI convention `args.cni.labels`.
    pub labels: BTreeMap<String, String>,
}

/// How the pod gets its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// A main plugin made the interface; the TUN stands beside it.
    Chained,
    /// The TUN is the pod's interface.
    Standalone,
}

/// How a pod is to be plumbed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// `false`: the pod passes through untouched, the other fields mean nothing.
    pub enrolled: bool,
    /// Queues of the TUN, at least 1.
    pub queues: u16,
    /// MTU of the TUN; absent: that of the main interface (chained) or 1500 (standalone).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Firewall mark of replies to inbound connections: they leave by the main interface.
    pub mark: u32,
    /// Pod networks: reached by the main interface.
    #[serde(default)]
    pub pods: Vec<IpNet>,
    /// Service networks: reached by the main interface, but for port 53.
    #[serde(default)]
    pub services: Vec<IpNet>,
}

/// One plumbed interface: what the agent serves, and what it keeps on disk to serve it again after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    #[serde(flatten)]
    pub key: AttachmentKey,
    pub network: String,
    pub mode: Mode,
    pub tun_name: String,
    pub queues: u16,
    pub mtu: u32,
    pub netns_path: PathBuf,
    pub netns: NamespaceId,
    /// Addresses the pod may use as a source.
    pub addresses: Vec<InterfaceAddress>,
    #[serde(default)]
    pub pod: PodIdentity,
}

/// A network namespace by what `stat` says of it: a path can be reused by a successor, this pair cannot while it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceId {
    pub device: u64,
    pub inode: u64,
}

/// An address with its prefix length, written `10.1.2.3/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InterfaceAddress(pub IpNet);

impl InterfaceAddress {
    pub fn ip(&self) -> IpAddr {
        self.0.addr()
    }

    /// The broadcast address of its network, where that has one: IPv6 has none, nor have two hosts alone (RFC 3021).
    pub fn broadcast(&self) -> Option<IpAddr> {
        match self.0 {
            IpNet::V4(network) if network.prefix_len() < 31 => Some(network.broadcast().into()),
            _ => None,
        }
    }
}

/// See [`Request::Check`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checked {
    pub ok: bool,
    #[serde(default)]
    pub problems: Vec<String>,
}

/// See [`Request::Status`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// An ADD would be served.
    pub ready: bool,
    /// Running pods are affected too.
    #[serde(default)]
    pub degraded: bool,
    /// Why not ready or degraded; empty when all is well.
    #[serde(default)]
    pub message: String,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub code: ErrorCode,
    /// Names the thing, the place and the way out.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code.as_str())
    }
}

/// What kind of failure: the plugin maps it to a CNI error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ErrorCode {
    /// The peer speaks another version of these messages.
    ProtocolMismatch,
    /// The frame or a value in it makes no sense.
    BadRequest,
    /// Policy not resident or agent still starting: the same request may succeed later.
    NotReady,
    /// The key is taken by an attachment in another network namespace.
    Conflict,
    /// A bound of the agent is reached.
    LimitReached,
    /// The agent could not do it; the message says what failed.
    Internal,
}

impl ErrorCode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ProtocolMismatch => "protocol mismatch",
            Self::BadRequest => "bad request",
            Self::NotReady => "not ready",
            Self::Conflict => "conflict",
            Self::LimitReached => "limit reached",
            Self::Internal => "internal",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_more_than_two_hosts_have_a_broadcast_address() {
        let broadcast = |network: &str| InterfaceAddress(network.parse().unwrap()).broadcast();
        assert_eq!(broadcast("10.244.0.9/24"), Some([10, 244, 0, 255].into()));
        assert_eq!(broadcast("10.244.0.9/30"), Some([10, 244, 0, 11].into()));
        for none in ["10.244.0.9/31", "10.244.0.9/32", "fd00::9/64"] {
            assert_eq!(broadcast(none), None, "{none}");
        }
    }
}
