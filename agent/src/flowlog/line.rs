//! The flow log's format. The field names are a promise: they are documented and do not change.

use std::net::SocketAddr;
use std::time::SystemTime;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tunproxy_datapath::record::Outcome;
use tunproxy_datapath::{CloseReason, FlowBegin, FlowRecord};
use tunproxy_policy::{Protocol, Verdict, Workload};

/// One line. Absent fields are not known or do not apply.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowLine<'a> {
    /// When the flow ended: RFC 3339, UTC. Absent in the line of a flow that begins, like all that only its end knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    pub start: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod<'a>>,
    /// `TCP`, `UDP` or `ICMP`, as in policies.
    pub protocol: &'static str,
    pub source: String,
    /// What the pod asked for.
    pub destination: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_source: Option<&'static str>,
    /// `allowed`, `denied` or `audited`.
    pub verdict: &'static str,
    pub policy: &'a str,
    pub rule: &'a str,
    /// Of a refusal: its label. Of a failure: what the upstream said, or else the label of `close`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dialed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_sent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_received: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close: Option<&'static str>,
}

/// Whose flow it was; a command under `exec` has a namespace only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pod<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    pub namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub uid: &'a str,
}

impl<'a> FlowLine<'a> {
    /// `ended` is the wall clock's time of the record's end: the record itself only knows the datapath's clock.
    pub fn new(ended: SystemTime, workload: &'a Workload, record: &'a FlowRecord) -> Self {
        let duration = std::time::Duration::from_micros((record.end - record.start).total_micros());
        let (verdict, reason) = verdict(record);
        Self {
            time: Some(rfc3339(ended)),
            start: rfc3339(ended - duration),
            pod: Pod::of(workload),
            protocol: protocol(record.protocol),
            source: endpoint(record.protocol, record.source),
            destination: endpoint(record.protocol, record.destination),
            name: record.name.as_ref().map(tunproxy_policy::DomainName::as_str),
            name_source: record.name_source.map(tunproxy_datapath::NameSource::label),
            verdict,
            policy: &record.rule.policy,
            rule: &record.rule.rule,
            reason,
            upstream: record.upstream.as_ref().map(|upstream| &*upstream.0),
            dialed: record.dialed.map(|address| endpoint(record.protocol, address)),
            bytes_sent: Some(record.bytes_sent),
            bytes_received: Some(record.bytes_received),
            packets_sent: Some(record.packets_sent),
            packets_received: Some(record.packets_received),
            connect_ms: record.connect_micros.map(milliseconds),
            duration_ms: Some(milliseconds(duration.as_micros() as u64)),
            close: Some(record.close.label()),
        }
    }

    /// `now` is the wall clock's time of the event. The end's line has the same protocol, source and destination.
    pub fn of_begin(now: SystemTime, workload: &'a Workload, begin: &'a FlowBegin) -> Self {
        let age = std::time::Duration::from_micros((begin.now - begin.start).total_micros());
        Self {
            time: None,
            start: rfc3339(now - age),
            pod: Pod::of(workload),
            protocol: protocol(begin.protocol),
            source: endpoint(begin.protocol, begin.source),
            destination: endpoint(begin.protocol, begin.destination),
            name: begin.name.as_ref().map(tunproxy_policy::DomainName::as_str),
            name_source: begin.name_source.map(tunproxy_datapath::NameSource::label),
            verdict: verdict_label(begin.verdict),
            policy: &begin.rule.policy,
            rule: &begin.rule.rule,
            reason: None,
            upstream: Some(&*begin.upstream.0),
            dialed: begin.dialed.map(|address| endpoint(begin.protocol, address)),
            bytes_sent: None,
            bytes_received: None,
            packets_sent: None,
            packets_received: None,
            connect_ms: begin.connect_micros.map(milliseconds),
            duration_ms: None,
            close: None,
        }
    }

    /// The line's bytes with the newline.
    pub fn to_json_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("texts and finite numbers");
        line.push(b'\n');
        line
    }
}

impl<'a> Pod<'a> {
    fn of(workload: &'a Workload) -> Option<Self> {
        let pod = Self { namespace: &workload.namespace, name: &workload.name, uid: &workload.uid };
        (pod != Self { namespace: "", name: "", uid: "" }).then_some(pod)
    }
}

fn verdict(record: &FlowRecord) -> (&'static str, Option<&str>) {
    match record.outcome {
        Outcome::Denied(reason) => ("denied", Some(reason.label())),
        Outcome::Allowed(verdict) => {
            (verdict_label(verdict), record.detail.as_deref().or(failure(record.close)))
        }
    }
}

pub(crate) fn verdict_label(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allowed => "allowed",
        Verdict::Audited => "audited",
    }
}

/// Whether a flow did not get what it asked for: policy refused it, or it failed.
pub(crate) fn is_failure(record: &FlowRecord) -> bool {
    matches!(record.outcome, Outcome::Denied(_)) || failure(record.close).is_some()
}

/// The reason of an allowed flow that did not get what it asked for.
fn failure(close: CloseReason) -> Option<&'static str> {
    match close {
        CloseReason::Refused
        | CloseReason::NetworkUnreachable
        | CloseReason::HostUnreachable
        | CloseReason::TimedOut
        | CloseReason::UpstreamFailed
        | CloseReason::UpstreamUnsupported
        | CloseReason::PodSilent
        | CloseReason::Limit
        | CloseReason::Evicted
        | CloseReason::PolicyChanged => Some(close.label()),
        CloseReason::Finished
        | CloseReason::ResetByPod
        | CloseReason::ResetByPeer
        | CloseReason::Idle
        | CloseReason::Denied
        | CloseReason::Abandoned
        | CloseReason::Detached => None,
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Icmp => "ICMP",
    }
}

/// ICMP has no ports: the address alone.
fn endpoint(protocol: Protocol, address: SocketAddr) -> String {
    match protocol {
        Protocol::Tcp | Protocol::Udp => address.to_string(),
        Protocol::Icmp => address.ip().to_string(),
    }
}

fn milliseconds(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// Always six decimals, so that lines sort as text.
fn rfc3339(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let micros = time.nanosecond() / 1000;
    let seconds = time.replace_nanosecond(0).expect("0 is a valid nanosecond");
    let text = seconds.format(&Rfc3339).expect("the wall clock shows a year of four digits");
    format!("{}.{micros:06}Z", text.trim_end_matches('Z'))
}
