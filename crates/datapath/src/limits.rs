//! What one pod may take. Every table of the datapath is bounded by one of these.

use smoltcp::time::Duration;

/// When a silent pod is asked whether its end of a TCP connection is still there (RFC 9293 3.8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Seconds of silence before the first probe.
    pub idle: u32,
    /// Seconds between probes.
    pub interval: u32,
    /// Probes without an answer after which the connection is given up.
    pub probes: u8,
}

/// The standard's two hours, and for the rest Linux's defaults.
impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: 7_200, interval: 75, probes: 9 }
    }
}

/// Bounds of one pod's stack. Counts are per pod; byte counts are stated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TCP flows with state (half-open, established, closing).
    pub flows: usize,
    /// SYNs held while the decision or the upstream connect is pending.
    pub pending: usize,
    /// Flows whose SYN|ACK the pod has not acknowledged. A SYN flood to an open port fills this, not the descriptors.
    pub half_open: usize,
    /// TIME-WAIT records; the oldest gives way.
    pub time_wait: usize,
    /// UDP source ports with an outside mapping; the least recently used gives way.
    pub udp_mappings: usize,
    /// Remote peers of all UDP mappings together; the least recently used gives way.
    pub udp_peers: usize,
    /// ICMP echo identifiers in use.
    pub echo_flows: usize,
    /// Addresses with leased names.
    pub leases: usize,
    /// Bytes one TCP flow may hold towards the upstream (the receive window's ceiling).
    pub receive_buffer: usize,
    /// Bytes of packet buffers that all flows of the process may hold before new data is refused. A pod may hold as much
    /// as is still free.
    pub memory: usize,
    /// `None`: pods are never asked, and one that vanished holds its flows for ever.
    pub keepalive: Option<Keepalive>,
    /// How long octets for the pod, or a FIN, may stay unacknowledged before the connection is given up, whatever the number of
    /// retransmissions (RFC 9293 3.8.3: R2; as TCP_USER_TIMEOUT). `None`: 15 time-outs.
    pub user_timeout: Option<Duration>,
    pub udp_idle: Duration,
    /// Idle time of UDP flows to ports 53 and 123: one question, one answer.
    pub udp_query_idle: Duration,
    pub echo_idle: Duration,
    /// ICMP errors and resets of stray segments, a second; beyond it they are counted and not sent. The reset that refuses
    /// a SYN is not limited.
    pub errors_per_second: u32,
    /// Records of refused flows, a second. Repeats have the half of it; the rest is kept for flows not refused lately.
    pub refusals_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 10_000,
            pending: 512,
            half_open: 512,
            time_wait: 4_096,
            udp_mappings: 4_096,
            udp_peers: 8_192,
            echo_flows: 256,
            leases: 4_096,
            receive_buffer: 2 << 20,
            memory: 256 << 20,
            keepalive: Some(Keepalive::default()),
            user_timeout: None,
            udp_idle: Duration::from_secs(180),
            udp_query_idle: Duration::from_secs(10),
            echo_idle: Duration::from_secs(30),
            errors_per_second: 1_000,
            refusals_per_second: 100,
        }
    }
}
