//! The demo as `make demo` runs it: the program itself, every row of its table, and nothing left.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tunproxy_e2e::demo;
use tunproxy_testkit::process::Background;
use tunproxy_testkit::{Program, root_or_skip};

/// What the issue of the demo allows it.
const MINUTE: Duration = Duration::from_mins(1);

fn leftovers() -> BTreeSet<String> {
    let names = ["/tmp", "/run/netns", "/etc/netns", "/sys/class/net"].into_iter().flat_map(|directory| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>()
    });
    names.collect()
}

fn start(scratch: &Path) -> Background {
    // Built before, so that the minute is the demo's alone.
    let directory = Program::Agent.path().unwrap().parent().unwrap().to_owned();
    Program::Plugin.path().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunproxy-demo"));
    command.env("TUNPROXY_BIN_DIR", directory);
    Background::spawn(&mut command, "tunproxy-demo", &scratch.join("demo.out")).unwrap()
}

/// Other tests make and remove theirs meanwhile: only names of this demo count.
fn assert_nothing_left(demo: &Background, before: &BTreeSet<String>) {
    let own = [format!("tpt-{}-", demo.pid()), format!("tunproxy-demo-{}-", demo.pid())];
    let left: Vec<String> = leftovers()
        .difference(before)
        .filter(|path| own.iter().any(|own| path.contains(own)))
        .cloned()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn every_row_comes_out_as_meant_and_nothing_is_left() {
    if !root_or_skip() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let before = leftovers();
    let mut demo = start(scratch.path());
    let status = demo.wait(MINUTE).unwrap();
    let table = demo.log();
    println!("{table}");
    assert!(status.success(), "{status} (signal {:?})\n{table}", status.signal());
    let rows = demo::rows();
    for row in &rows {
        assert!(table.contains(row.asked), "no row {:?} in\n{table}", row.asked);
    }
    let summary = format!("{0} of {0} rows as meant; nothing left behind;", rows.len());
    assert!(table.contains(&summary), "no {summary:?} in\n{table}");
    assert_nothing_left(&demo, &before);
}

#[test]
fn a_signal_ends_it_and_nothing_is_left() {
    if !root_or_skip() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let before = leftovers();
    let mut demo = start(scratch.path());
    let log = scratch.path().join("demo.out");
    let first = demo::rows().into_iter().find(|row| !row.ends_with_its_pod).unwrap();
    let begun = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains(first.asked));
    demo.wait_ready(MINUTE, begun).unwrap();
    demo.signal(Signal::INT).unwrap();
    let status = demo.wait(MINUTE).unwrap();
    assert_eq!(status.code(), Some(128 + 2), "{status}\n{}", demo.log());
    assert!(demo.log().contains("interrupted by signal 2"), "{}", demo.log());
    assert_nothing_left(&demo, &before);
}
