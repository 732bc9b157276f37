use std::fs;
use std::net::SocketAddr;

use tunproxy_datapath::record::Outcome;
use tunproxy_datapath::{CloseReason, NameSource};
use tunproxy_policy::{DenyReason, DomainName, Protocol, RuleId, UpstreamRef, Verdict};

use super::*;

fn workload() -> Workload {
    Workload { namespace: "shop".into(), name: "web-0".into(), uid: "u-1".into(), ..Workload::default() }
}

fn allowed() -> FlowRecord {
    FlowRecord {
        start: tunproxy_datapath::Instant::from_micros(1_000_000),
        end: tunproxy_datapath::Instant::from_micros(3_500_000),
        protocol: Protocol::Tcp,
        source: "10.1.0.2:40000".parse().unwrap(),
        destination: "140.82.112.5:443".parse().unwrap(),
        name: Some(DomainName::parse("api.github.com").unwrap()),
        name_source: Some(NameSource::Dns),
        outcome: Outcome::Allowed(Verdict::Allowed),
        rule: RuleId { policy: "EgressPolicy/shop/web".into(), rule: "github".into() },
        upstream: Some(UpstreamRef::direct()),
        dialed: Some("140.82.112.5:443".parse().unwrap()),
        bytes_sent: 517,
        bytes_received: 4096,
        packets_sent: 7,
        packets_received: 9,
        connect_micros: Some(1_250),
        close: CloseReason::Finished,
        detail: None,
    }
}

fn ended() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_792_000_000) + Duration::from_millis(250)
}

fn text(record: &FlowRecord) -> String {
    String::from_utf8(FlowLine::new(ended(), &workload(), record).to_json_line()).unwrap()
}

#[test]
fn an_allowed_flow_has_exactly_these_fields() {
    let expected = concat!(
        r#"{"time":"2026-10-14T17:46:40.250000Z","start":"2026-10-14T17:46:37.750000Z","#,
        r#""pod":{"namespace":"shop","name":"web-0","uid":"u-1"},"protocol":"TCP","#,
        r#""source":"10.1.0.2:40000","destination":"140.82.112.5:443","name":"api.github.com","nameSource":"dns","#,
        r#""verdict":"allowed","policy":"EgressPolicy/shop/web","rule":"github","upstream":"direct","#,
        r#""dialed":"140.82.112.5:443","bytesSent":517,"bytesReceived":4096,"packetsSent":7,"packetsReceived":9,"#,
        r#""connectMs":1.25,"durationMs":2500.0,"close":"finished"}"#,
        "\n"
    );
    assert_eq!(text(&allowed()), expected);
}

#[test]
fn a_refused_ping_leaves_out_what_it_does_not_have() {
    let record = FlowRecord {
        protocol: Protocol::Icmp,
        source: "[fd00::2]:77".parse::<SocketAddr>().unwrap(),
        destination: "[2001:db8::1]:0".parse().unwrap(),
        name: None,
        name_source: None,
        outcome: Outcome::Denied(DenyReason::NoRuleMatched),
        upstream: None,
        dialed: None,
        connect_micros: None,
        close: CloseReason::Denied,
        ..allowed()
    };
    let line: serde_json::Value = serde_json::from_str(&text(&record)).unwrap();
    assert_eq!(line["source"], "fd00::2");
    assert_eq!(line["destination"], "2001:db8::1");
    assert_eq!(line["verdict"], "denied");
    assert_eq!(line["reason"], "no-rule-matched");
    for absent in ["name", "nameSource", "upstream", "dialed", "connectMs"] {
        assert!(line.get(absent).is_none(), "{absent} is there");
    }
}

#[test]
fn a_failed_connect_says_why() {
    let record = FlowRecord { close: CloseReason::HostUnreachable, ..allowed() };
    let line: serde_json::Value = serde_json::from_str(&text(&record)).unwrap();
    assert_eq!(line["verdict"], "allowed");
    assert_eq!(line["reason"], "host-unreachable");
    assert_eq!(line["close"], "host-unreachable");
}

#[test]
fn what_the_upstream_said_is_the_reason() {
    let said = "the proxy p:1080 gave no connection: it answered CONNECT with: not allowed by its rules";
    let record = FlowRecord { close: CloseReason::UpstreamFailed, detail: Some(said.into()), ..allowed() };
    let line: serde_json::Value = serde_json::from_str(&text(&record)).unwrap();
    assert_eq!((&line["reason"], &line["close"]), (&said.into(), &"upstream-failed".into()));
}

#[test]
fn a_flow_that_begins_has_exactly_these_fields() {
    let end = allowed();
    let begin = FlowBegin {
        start: end.start,
        now: end.start + tunproxy_datapath::Duration::from_micros(1_250),
        protocol: end.protocol,
        source: end.source,
        destination: end.destination,
        name: end.name,
        name_source: end.name_source,
        verdict: Verdict::Audited,
        rule: end.rule,
        upstream: UpstreamRef::direct(),
        dialed: end.dialed,
        connect_micros: end.connect_micros,
    };
    let line = FlowLine::of_begin(ended(), &workload(), &begin).to_json_line();
    let expected = concat!(
        r#"{"start":"2026-10-14T17:46:40.248750Z","#,
        r#""pod":{"namespace":"shop","name":"web-0","uid":"u-1"},"protocol":"TCP","#,
        r#""source":"10.1.0.2:40000","destination":"140.82.112.5:443","name":"api.github.com","nameSource":"dns","#,
        r#""verdict":"audited","policy":"EgressPolicy/shop/web","rule":"github","upstream":"direct","#,
        r#""dialed":"140.82.112.5:443","connectMs":1.25}"#,
        "\n"
    );
    assert_eq!(String::from_utf8(line).unwrap(), expected);
}

#[test]
fn what_was_queued_is_on_disk_when_the_log_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/flows.jsonl");
    let log = FlowLog::start(&Output::File { path: path.clone(), rotate: u64::MAX, keep: 1 }).unwrap();
    for _ in 0..100 {
        log.record(Arc::new(workload()), allowed());
    }
    drop(log);
    assert_eq!(fs::read_to_string(path).unwrap().lines().count(), 100);
}

#[test]
fn a_full_queue_drops_and_counts_and_does_not_block() {
    let (queue, records) = sync_channel(2);
    let log = FlowLog { queue: Some(queue), counters: Arc::default(), writer: None };
    for _ in 0..5 {
        log.record(Arc::new(workload()), allowed());
    }
    assert_eq!(log.totals(), Totals { written: 0, dropped: 3, failed: 0 });
    assert_eq!(records.try_iter().count(), 2);
}

#[test]
fn a_full_disk_is_counted() {
    let output = Output::File { path: "/dev/full".into(), rotate: u64::MAX, keep: 1 };
    let mut writer =
        Writer { sink: Sink::open(&output).unwrap(), counters: Arc::default(), complained: None };
    // More than the buffer holds, so that some of it must meet the disk.
    for _ in 0..100 {
        writer.handle(Message::Record(Box::new(Happened::now(Arc::new(workload()), allowed()))));
    }
    assert!(writer.counters.failed.load(Ordering::Relaxed) > 0);
    assert!(writer.complained.is_some());
}

#[test]
fn a_file_that_is_full_is_followed_by_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flows.jsonl");
    let mut file = RotatingFile::open(&path, 10, 2).unwrap();
    for line in ["first\n", "second\n", "3\n", "fourth\n", "a line beyond the bound\n", "6\n"] {
        file.write_line(line.as_bytes()).unwrap();
    }
    file.flush().unwrap();
    let read = |suffix: &str| fs::read_to_string(format!("{}{suffix}", path.display())).unwrap();
    assert_eq!(read(""), "6\n");
    assert_eq!(read(".1"), "a line beyond the bound\n");
    assert_eq!(read(".2"), "fourth\n");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn keeping_none_keeps_the_file_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flows.jsonl");
    let mut file = RotatingFile::open(&path, 4, 0).unwrap();
    for line in ["one\n", "two\n"] {
        file.write_line(line.as_bytes()).unwrap();
    }
    file.flush().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // Somebody took it away, and it is full.
    fs::remove_file(&path).unwrap();
    file.write_line(b"three\n").unwrap();
    file.flush().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
}

#[test]
fn a_file_that_was_moved_away_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flows.jsonl");
    let mut file = RotatingFile::open(&path, u64::MAX, 1).unwrap();
    file.write_line(b"old\n").unwrap();
    fs::rename(&path, folder.path().join("moved")).unwrap();
    file.reopen().unwrap();
    file.write_line(b"new\n").unwrap();
    file.flush().unwrap();
    assert_eq!(fs::read_to_string(folder.path().join("moved")).unwrap(), "old\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
}
