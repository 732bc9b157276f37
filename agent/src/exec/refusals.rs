//! What the command was refused, and what its upstream failed to do, told in the end.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tunproxy_datapath::record::Outcome;
use tunproxy_datapath::{FlowBegin, FlowRecord};
use tunproxy_policy::{Protocol, Workload};

use crate::flowlog::FlowLog;
use crate::worker::FlowSink;

/// Distinct refusals remembered; a port scan has more, and only their number counts then.
const REMEMBERED: usize = 256;
/// Lines printed.
const PRINTED: usize = 10;

/// Counts refused flows by what was asked and which rule refused it, and hands every record to the flow log.
#[derive(Debug)]
pub struct Refusals {
    log: Option<FlowLog>,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    seen: BTreeMap<String, u64>,
    /// Flows beyond those remembered.
    others: u64,
}

impl Refusals {
    pub fn new(log: Option<FlowLog>) -> Self {
        Self { log, counts: Mutex::default() }
    }

    /// One line for each distinct refusal, the most frequent first.
    pub fn print(&self, out: &mut impl Write) {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        // Standard error that is closed is no reason to fail after the fact.
        let _ = write_lines(&counts, out);
    }
}

impl FlowSink for Refusals {
    fn begin(&self, workload: &Arc<Workload>, begin: FlowBegin) {
        if let Some(log) = &self.log {
            log.begin(workload.clone(), begin);
        }
    }

    fn record(&self, workload: &Arc<Workload>, record: FlowRecord) {
        if let Some(line) = describe(&record) {
            self.counts.lock().unwrap_or_else(PoisonError::into_inner).add(line);
        }
        if let Some(log) = &self.log {
            log.record(workload.clone(), record);
        }
    }
}

impl Counts {
    fn add(&mut self, line: String) {
        if let Some(count) = self.seen.get_mut(&line) {
            *count += 1;
        } else if self.seen.len() < REMEMBERED {
            self.seen.insert(line, 1);
        } else {
            self.others += 1;
        }
    }
}

fn write_lines(counts: &Counts, out: &mut impl Write) -> io::Result<()> {
    let mut lines: Vec<(&String, &u64)> = counts.seen.iter().collect();
    lines.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (line, count) in lines.iter().take(PRINTED) {
        let times = if **count == 1 { String::new() } else { format!(" ({count} times)") };
        writeln!(out, "tunproxy-agent: {line}{times}")?;
    }
    let rest = lines.iter().skip(PRINTED).map(|(_, count)| **count).sum::<u64>() + counts.others;
    if rest > 0 {
        writeln!(out, "tunproxy-agent: {rest} more flows were refused or failed; --log FILE records each")?;
    }
    Ok(())
}

/// `refused TCP api.example.com:443 (192.0.2.1) by EgressPolicy/default/web rules[0]: rule`, or `failed TCP ...` with
/// what the upstream said. Where the destination itself said no, the command tells it as well as we could.
fn describe(record: &FlowRecord) -> Option<String> {
    let asked = asked(record);
    match (record.outcome, &record.detail) {
        (Outcome::Denied(reason), _) => {
            Some(format!("refused {asked} by {}: {}", record.rule, reason.label()))
        }
        (Outcome::Allowed(_), Some(detail)) => Some(format!("failed {asked}: {detail}")),
        (Outcome::Allowed(_), None) => None,
    }
}

fn asked(record: &FlowRecord) -> String {
    let (protocol, address, port) = match record.protocol {
        Protocol::Tcp => ("TCP", record.destination.to_string(), format!(":{}", record.destination.port())),
        Protocol::Udp => ("UDP", record.destination.to_string(), format!(":{}", record.destination.port())),
        Protocol::Icmp => ("ICMP", record.destination.ip().to_string(), String::new()),
    };
    let destination = match &record.name {
        Some(name) => format!("{name}{port} ({})", record.destination.ip()),
        None => address,
    };
    format!("{protocol} {destination}")
}

#[cfg(test)]
mod tests {
    use tunproxy_datapath::{CloseReason, Instant};
    use tunproxy_policy::{DenyReason, DomainName, RuleId, Verdict};

    use super::*;

    fn refused(port: u16, name: Option<&str>) -> FlowRecord {
        FlowRecord {
            start: Instant::from_micros(0),
            end: Instant::from_micros(0),
            protocol: Protocol::Tcp,
            source: "198.19.255.2:40000".parse().unwrap(),
            destination: (std::net::Ipv4Addr::new(192, 0, 2, 1), port).into(),
            name: name.map(|name| DomainName::parse(name).unwrap()),
            name_source: None,
            outcome: Outcome::Denied(DenyReason::NoRuleMatched),
            rule: RuleId { policy: "EgressPolicy/default/web".into(), rule: "default".into() },
            upstream: None,
            dialed: None,
            bytes_sent: 0,
            bytes_received: 0,
            packets_sent: 1,
            packets_received: 0,
            connect_micros: None,
            close: CloseReason::Denied,
            detail: None,
        }
    }

    fn printed(records: impl IntoIterator<Item = FlowRecord>) -> String {
        let refusals = Refusals::new(None);
        records.into_iter().for_each(|record| refusals.record(&Arc::default(), record));
        let mut text = Vec::new();
        refusals.print(&mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn the_same_refusal_is_one_line() {
        let records = [refused(25, None), refused(443, Some("a.test")), refused(443, Some("a.test"))];
        assert_eq!(
            printed(records),
            "tunproxy-agent: refused TCP a.test:443 (192.0.2.1) by EgressPolicy/default/web default: \
             no-rule-matched (2 times)\n\
             tunproxy-agent: refused TCP 192.0.2.1:25 by EgressPolicy/default/web default: no-rule-matched\n"
        );
    }

    #[test]
    fn a_scan_is_summed_up() {
        let text = printed((1..=1000).map(|port| refused(port, None)));
        assert_eq!(text.lines().count(), PRINTED + 1);
        assert!(
            text.ends_with(
                "tunproxy-agent: 990 more flows were refused or failed; --log FILE records each\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn what_the_upstream_said_is_told() {
        let record = FlowRecord {
            outcome: Outcome::Allowed(Verdict::Allowed),
            close: CloseReason::HostUnreachable,
            detail: Some("the proxy p:1080 cannot be reached: Connection refused".into()),
            ..refused(443, Some("a.test"))
        };
        assert_eq!(
            printed([record]),
            "tunproxy-agent: failed TCP a.test:443 (192.0.2.1): the proxy p:1080 cannot be reached: Connection \
             refused\n"
        );
    }

    #[test]
    fn nothing_refused_is_nothing_said() {
        assert_eq!(printed([]), "");
    }
}
