//! The demo as `make demo` runs it: the program itself, every row of its table, and nothing left.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

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

#[test]
fn every_row_comes_out_as_meant_and_nothing_is_left() {
    if !root_or_skip() {
        return;
    }
    // Built before, so that the minute is the demo's alone.
    let directory = Program::Agent.path().unwrap().parent().unwrap().to_owned();
    Program::Plugin.path().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let before = leftovers();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunproxy-demo"));
    command.env("TUNPROXY_BIN_DIR", directory);
    let mut demo =
        Background::spawn(&mut command, "tunproxy-demo", &scratch.path().join("demo.out")).unwrap();
    let own = [format!("tpt-{}-", demo.pid()), "tunproxy-demo-".to_owned()];
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
    // Other tests make and remove theirs meanwhile: only names of the demo count.
    let left: Vec<String> = leftovers()
        .difference(&before)
        .filter(|path| own.iter().any(|own| path.contains(own)))
        .cloned()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
