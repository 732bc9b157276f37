//! The status page: one JSON document for people and tools.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Node;
use crate::flowlog::Totals;
use crate::policies::Policies;
use crate::serve::pods;

/// The whole document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    pub node: String,
    pub version: &'static str,
    pub ready: bool,
    /// Why not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    pub policies: PolicyStatus,
    pub flow_log: Totals,
    /// Ended flows by verdict and close reason.
    pub flows: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    pub pods: Vec<PodStatus>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Good readings since the start; 0 while there was none.
    pub generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loaded: Option<String>,
    /// Every mistake of the last reading; the generation before it stays in force.
    pub mistakes: Vec<String>,
    pub upstreams: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    pub container_id: String,
    pub ifname: String,
    pub namespace: String,
    pub name: String,
    pub network: String,
    pub tun: String,
    pub addresses: Vec<String>,
    pub served: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Live flows.
    pub flows: usize,
    pub counters: BTreeMap<&'static str, u64>,
    /// Packets not acted upon, by reason.
    pub drops: BTreeMap<&'static str, u64>,
}

impl NodeStatus {
    pub fn of(node: &Node) -> Self {
        let message = node.unready();
        Self {
            node: node.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            ready: message.is_none(),
            message,
            policies: PolicyStatus::of(&node.policies),
            flow_log: node.recorder.log_totals(),
            flows: flows(node),
            pods: node.pods.list().into_iter().map(PodStatus::of).collect(),
        }
    }
}

impl PolicyStatus {
    fn of(policies: &Policies) -> Self {
        let current = policies.current();
        Self {
            generation: current.as_ref().map_or(0, |generation| generation.number),
            loaded: current.as_ref().map(|generation| rfc3339(generation.loaded)),
            mistakes: policies.mistakes(),
            upstreams: current.map_or_else(Vec::new, |generation| {
                generation.upstreams.iter().map(|upstream| upstream.reference.0.to_string()).collect()
            }),
        }
    }
}

impl PodStatus {
    fn of(pod: pods::PodStatus) -> Self {
        let attachment = pod.attachment;
        let (flows, counters, drops) = match &pod.snapshot {
            Some(snapshot) => {
                let drops =
                    snapshot.counters.drops().map(|(reason, count)| (reason.label(), count)).collect();
                (snapshot.flows, counters(&snapshot.counters).into(), drops)
            }
            None => (0, BTreeMap::new(), BTreeMap::new()),
        };
        Self {
            container_id: attachment.key.container_id,
            ifname: attachment.key.ifname,
            namespace: attachment.pod.namespace,
            name: attachment.pod.name,
            network: attachment.network,
            tun: attachment.tun_name,
            addresses: attachment.addresses.iter().map(|address| address.ip().to_string()).collect(),
            served: pod.problem.is_none(),
            problem: pod.problem,
            flows,
            counters,
            drops,
        }
    }
}

/// The datapath's totals by their names on the status page.
pub(super) fn counters(counters: &tunproxy_datapath::Counters) -> [(&'static str, u64); 12] {
    [
        ("packetsIn", counters.packets_in),
        ("bytesIn", counters.bytes_in),
        ("packetsOut", counters.packets_out),
        ("bytesOut", counters.bytes_out),
        ("tcpOpened", counters.tcp_opened),
        ("tcpRetransmits", counters.tcp_retransmits),
        ("challengeAcks", counters.challenge_acks),
        ("resetsSent", counters.resets_sent),
        ("icmpErrorsSent", counters.icmp_errors_sent),
        ("dnsAnswers", counters.dns_answers),
        ("udpEvictions", counters.udp_evictions),
        ("refusalsUnrecorded", counters.refusals_unrecorded),
    ]
}

fn flows(node: &Node) -> BTreeMap<&'static str, BTreeMap<&'static str, u64>> {
    let mut flows: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for (verdict, close, count) in node.recorder.flows() {
        flows.entry(verdict).or_default().insert(close.label(), count);
    }
    flows
}

fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}
