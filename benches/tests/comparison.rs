//! The comparison as `make bench` runs it, in its shortest form: every row measures something, and nothing is left,
//! also when it is interrupted. Nothing is said of the figures.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tunproxy_testkit::process::Background;
use tunproxy_testkit::{Program, root_or_skip};

const LIMIT: Duration = Duration::from_mins(3);

/// Rows whose figure may be nothing: the memory of few flows, and the time of an agent that has nothing to do.
const MAY_BE_ZERO: [&str; 2] = ["memory per idle flow", "growth: idle agent, 100 pods"];

/// Rows that no routed path has.
fn is_ours_alone(row: &str) -> bool {
    row.starts_with("memory ")
        || row.starts_with("CPU ")
        || row.starts_with("growth: ")
        || row.starts_with("policy change: ")
        || row.contains("beside SYNs")
        || row.contains("beside malformed")
}

fn start(scratch: &Path, arguments: &[&str]) -> Background {
    let directory = Program::Agent.path().unwrap().parent().unwrap().to_owned();
    Program::Plugin.path().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunproxy-bench"));
    command.env("TUNPROXY_BIN_DIR", directory).env("TMPDIR", scratch).arg("run").args(arguments);
    Background::spawn(&mut command, "tunproxy-bench", &scratch.join("bench.out")).unwrap()
}

fn names_in(directory: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Namespaces of the process, and files other than those named.
fn left(bench: &Background, scratch: &Path, expected: &[&str]) -> Vec<String> {
    let own = format!("tpt-{}-", bench.pid());
    let namespaces = ["/run/netns", "/etc/netns"].into_iter().flat_map(names_in);
    let namespaces = namespaces.filter(|name| name.starts_with(&own));
    let files = names_in(scratch).into_iter().filter(|name| !expected.contains(&name.as_str()));
    namespaces.chain(files).collect()
}

#[test]
fn every_row_is_measured_and_nothing_is_left() {
    if !root_or_skip() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("bench.json");
    let mut bench = start(scratch.path(), &["--quick", "--json", file.to_str().unwrap()]);
    let status = bench.wait(LIMIT).unwrap();
    assert!(status.success(), "{status}\n{}", bench.log());
    let report: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let rows = report["rows"].as_object().unwrap();
    assert!(rows.len() >= 45, "{} rows", rows.len());
    let table = bench.log();
    for (name, row) in rows {
        assert!(table.contains(name), "{name} is not in the table\n{table}");
        for (side, wanted) in [("routed", !is_ours_alone(name)), ("ours", true)] {
            let samples = row["samples"][side].as_array().into_iter().flatten();
            let samples: Vec<f64> = samples.map(|sample| sample.as_f64().unwrap()).collect();
            assert_eq!(!samples.is_empty(), wanted, "{name}, {side}: {samples:?}");
            let may_be_zero = MAY_BE_ZERO.contains(&name.as_str());
            assert!(samples.iter().all(|&sample| sample > 0.0 || may_be_zero), "{name}: {samples:?}");
        }
    }
    assert_eq!(left(&bench, scratch.path(), &["bench.out", "bench.json"]), Vec::<String>::new());
}

#[test]
fn a_signal_ends_it_and_nothing_is_left() {
    if !root_or_skip() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut bench = start(scratch.path(), &["--seconds", "1", "--only", "TCP up, 1"]);
    let log = scratch.path().join("bench.out");
    let begun = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("round 1/5"));
    bench.wait_ready(LIMIT, begun).unwrap();
    bench.signal(rustix::process::Signal::TERM).unwrap();
    let status = bench.wait(LIMIT).unwrap();
    assert_eq!(status.code(), Some(128 + 15), "{status}\n{}", bench.log());
    assert!(bench.log().contains("interrupted by signal 15"), "{}", bench.log());
    assert_eq!(left(&bench, scratch.path(), &["bench.out"]), Vec::<String>::new());
}

#[test]
fn peers_that_do_not_run_are_named_and_nothing_is_left() {
    if !root_or_skip() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let nowhere = scratch.path().join("nowhere");
    let arguments = ["--quick", "--only", "1-byte", "--peers", nowhere.to_str().unwrap()];
    let mut bench = start(scratch.path(), &arguments);
    let status = bench.wait(LIMIT).unwrap();
    assert_eq!(status.code(), Some(1), "{status}\n{}", bench.log());
    let (table, failed) = bench.log().split_once("peers that failed:").map(owned).unwrap();
    assert!(table.contains("1-byte round trip, p99"), "the other sides were not measured\n{table}");
    for peer in ["tun2proxy: there is no", "shadowsocks: there is no"] {
        assert!(failed.contains(peer), "{peer} ...?\n{failed}");
    }
    assert_eq!(left(&bench, scratch.path(), &["bench.out"]), Vec::<String>::new());
}

fn owned((first, second): (&str, &str)) -> (String, String) {
    (first.to_owned(), second.to_owned())
}
