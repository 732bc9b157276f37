//! The metrics page, in OpenMetrics text. Everything is read at the scrape; nothing is counted here.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::Node;
use crate::serve::pods::PodStatus;

/// The page as it is now.
pub fn render(node: &Arc<Node>) -> String {
    let mut registry = Registry::with_prefix("tunproxy");
    registry.register_collector(Box::new(Page(node.clone())));
    let mut text = String::new();
    encode(&mut text, &registry).expect("writing to a String does not fail");
    text
}

#[derive(Debug)]
struct Page(Arc<Node>);

/// Names of the datapath's totals on this page and their meaning, in the order of [`super::status::counters`].
const POD_COUNTERS: [(&str, &str); 12] = [
    ("pod_packets_in", "Packets read from the pod's TUN, a super-segment counts as one"),
    ("pod_bytes_in", "Bytes of the packets read from the pod's TUN"),
    ("pod_packets_out", "Packets written to the pod's TUN, a super-segment counts as one"),
    ("pod_bytes_out", "Bytes of the packets written to the pod's TUN"),
    ("pod_tcp_opened", "TCP flows whose upstream connected"),
    ("pod_tcp_retransmits", "TCP segments sent to the pod again"),
    ("pod_challenge_acks", "Challenge ACKs sent to the pod (RFC 5961)"),
    ("pod_resets_sent", "TCP resets sent to the pod"),
    ("pod_icmp_errors_sent", "ICMP errors sent to the pod"),
    ("pod_dns_answers", "DNS answers of trusted resolvers that were observed"),
    ("pod_udp_evictions", "UDP peers that gave way to newer ones"),
    ("pod_refusals_unrecorded", "Refused flows beyond the rate at which they are recorded"),
];

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let node = &self.0;
        let pods = node.pods.list();
        let policies = &node.policies;
        let generation = policies.current().map_or(0, |generation| generation.number);
        gauge(&mut encoder, "ready", "1 when pods can be added", i64::from(node.unready().is_none()))?;
        gauge(&mut encoder, "pods", "Attached interfaces", pods.len() as i64)?;
        let broken = pods.iter().filter(|pod| pod.problem.is_some()).count();
        gauge(&mut encoder, "pods_broken", "Attached interfaces that are not served", broken as i64)?;
        gauge(&mut encoder, "policy_generation", "Good readings of the policy documents", generation as i64)?;
        let mistakes = policies.mistakes().len();
        gauge(
            &mut encoder,
            "policy_mistakes",
            "Mistakes in the last reading of the documents",
            mistakes as i64,
        )?;
        gauge(
            &mut encoder,
            "packet_memory_bytes",
            "What is drawn of limits.memory",
            node.pods.workers().packet_memory() as i64,
        )?;
        flows(&mut encoder, node)?;
        flow_log(&mut encoder, node)?;
        pod_counters(&mut encoder, &pods)?;
        pod_drops(&mut encoder, &pods)?;
        pod_flows(&mut encoder, &pods)
    }
}

fn flows(encoder: &mut DescriptorEncoder<'_>, node: &Node) -> fmt::Result {
    let series = node.recorder.flows().map(|(verdict, close, count)| {
        ([("verdict", verdict.to_owned()), ("close", close.label().to_owned())], count)
    });
    counters(encoder, "flows", "Ended flows", series)
}

fn flow_log(encoder: &mut DescriptorEncoder<'_>, node: &Node) -> fmt::Result {
    let totals = node.recorder.log_totals();
    let results = [("written", totals.written), ("dropped", totals.dropped), ("failed", totals.failed)];
    let series = results.map(|(result, count)| ([("result", result.to_owned())], count));
    counters(encoder, "flow_log_records", "Records of the flow log", series)
}

fn pod_counters(encoder: &mut DescriptorEncoder<'_>, pods: &[PodStatus]) -> fmt::Result {
    for (index, (name, help)) in POD_COUNTERS.into_iter().enumerate() {
        let series = pods.iter().filter_map(|pod| {
            let snapshot = pod.snapshot.as_ref()?;
            Some((labels(pod), super::status::counters(&snapshot.counters)[index].1))
        });
        counters(encoder, name, help, series)?;
    }
    Ok(())
}

fn pod_drops(encoder: &mut DescriptorEncoder<'_>, pods: &[PodStatus]) -> fmt::Result {
    let series =
        pods.iter().filter_map(|pod| Some((pod, pod.snapshot.as_ref()?))).flat_map(|(pod, snapshot)| {
            snapshot.counters.drops().map(|(reason, count)| {
                let [namespace, name, ifname] = labels(pod);
                ([namespace, name, ifname, ("reason", reason.label().to_owned())], count)
            })
        });
    counters(encoder, "pod_drops", "Packets not acted upon", series)
}

fn pod_flows(encoder: &mut DescriptorEncoder<'_>, pods: &[PodStatus]) -> fmt::Result {
    let mut family = encoder.encode_descriptor("pod_flows", "Live flows", None, MetricType::Gauge)?;
    for pod in pods {
        if let Some(snapshot) = &pod.snapshot {
            ConstGauge::new(snapshot.flows as i64).encode(family.encode_family(&labels(pod))?)?;
        }
    }
    Ok(())
}

fn labels(pod: &PodStatus) -> [(&'static str, String); 3] {
    let identity = &pod.attachment.pod;
    [
        ("namespace", identity.namespace.clone()),
        ("pod", identity.name.clone()),
        ("interface", pod.attachment.key.ifname.clone()),
    ]
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in series {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
