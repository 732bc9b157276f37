//! What is written down about a flow: when it ends, and if asked when it begins. The flow log, metrics and every view are
//! made from this.

use std::net::SocketAddr;

use smoltcp::time::Instant;
use tunproxy_policy::{DenyReason, DomainName, Protocol, RuleId, UpstreamRef, Verdict};

/// Where a flow's name came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameSource {
    /// A trusted resolver's answer to this pod.
    Dns,
    /// The server name in the TLS ClientHello, among several leased names.
    Sni,
    /// The Host header of HTTP/1, among several leased names.
    Host,
}

impl NameSource {
    pub fn label(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Sni => "sni",
            Self::Host => "host",
        }
    }
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CloseReason {
    /// Both directions were closed in order.
    Finished,
    ResetByPod,
    ResetByPeer,
    /// Nothing passed for the protocol's idle time.
    Idle,
    /// Policy refused it at the start.
    Denied,
    /// A policy change no longer allows it.
    PolicyChanged,
    Refused,
    NetworkUnreachable,
    HostUnreachable,
    /// The upstream did not answer the connect in time.
    TimedOut,
    /// The upstream proxy failed in a way that is none of the above.
    UpstreamFailed,
    /// The upstream cannot carry this protocol.
    UpstreamUnsupported,
    /// The pod stopped answering: SYN|ACK, data, FIN or keepalives went unacknowledged.
    PodSilent,
    /// The pod gave up before the upstream connected.
    Abandoned,
    /// A bound of the pod was reached.
    Limit,
    /// The least recently used flow gave way to a new one.
    Evicted,
    /// The pod was detached or the agent stopped.
    Detached,
}

impl CloseReason {
    pub const ALL: [Self; 17] = [
        Self::Finished,
        Self::ResetByPod,
        Self::ResetByPeer,
        Self::Idle,
        Self::Denied,
        Self::PolicyChanged,
        Self::Refused,
        Self::NetworkUnreachable,
        Self::HostUnreachable,
        Self::TimedOut,
        Self::UpstreamFailed,
        Self::UpstreamUnsupported,
        Self::PodSilent,
        Self::Abandoned,
        Self::Limit,
        Self::Evicted,
        Self::Detached,
    ];

    /// The fixed label of logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::ResetByPod => "reset-by-pod",
            Self::ResetByPeer => "reset-by-peer",
            Self::Idle => "idle",
            Self::Denied => "denied",
            Self::PolicyChanged => "policy-changed",
            Self::Refused => "refused",
            Self::NetworkUnreachable => "network-unreachable",
            Self::HostUnreachable => "host-unreachable",
            Self::TimedOut => "timed-out",
            Self::UpstreamFailed => "upstream-failed",
            Self::UpstreamUnsupported => "upstream-unsupported",
            Self::PodSilent => "pod-silent",
            Self::Abandoned => "abandoned",
            Self::Limit => "limit",
            Self::Evicted => "evicted",
            Self::Detached => "detached",
        }
    }
}

/// The outcome of policy for a recorded flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Allowed(Verdict),
    Denied(DenyReason),
}

/// A flow that was let through, at the moment it has its name and its upstream. There is none for flows that were refused
/// or whose upstream failed: their record says it all.
#[derive(Clone, Debug)]
pub struct FlowBegin {
    pub start: Instant,
    pub now: Instant,
    pub protocol: Protocol,
    /// As in the [`FlowRecord`], which has the same for the flow's end.
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub name: Option<DomainName>,
    pub name_source: Option<NameSource>,
    pub verdict: Verdict,
    pub rule: RuleId,
    pub upstream: UpstreamRef,
    pub dialed: Option<SocketAddr>,
    pub connect_micros: Option<u64>,
}

/// One flow, from the pod's view.
#[derive(Clone, Debug)]
pub struct FlowRecord {
    pub start: Instant,
    pub end: Instant,
    pub protocol: Protocol,
    /// The pod's address and port; the port is the identifier for ICMP echo.
    pub source: SocketAddr,
    /// What the pod asked for; port 0 for ICMP.
    pub destination: SocketAddr,
    pub name: Option<DomainName>,
    pub name_source: Option<NameSource>,
    pub outcome: Outcome,
    pub rule: RuleId,
    /// `None` when policy refused the flow.
    pub upstream: Option<UpstreamRef>,
    /// The address that was dialled, where the node dialled it itself.
    pub dialed: Option<SocketAddr>,
    /// Payload bytes the pod sent / received.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// IP packets (super-segments count as one) the pod sent / received.
    pub packets_sent: u64,
    pub packets_received: u64,
    /// How long the upstream took to connect; `None` if it did not.
    pub connect_micros: Option<u64>,
    pub close: CloseReason,
    /// What the upstream said when it failed, in its own words.
    pub detail: Option<Box<str>>,
}
