//! `make demo`: the main job on this machine. Ends by itself; exit 0 only if every row came out as meant and nothing is
//! left behind.

use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use tunproxy_e2e::demo::{self, Table};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the demo makes network namespaces and needs root: sudo make demo (without root: tunproxy-agent exec)"
    );
    let began = Instant::now();
    println!(
        "Two pods on a CNI chain (ptp, then tunproxy) and a standalone one; a web server, a resolver and a SOCKS5"
    );
    println!("proxy outside; everything in network namespaces of its own.\n");
    let table = Table::for_stdout();
    println!("{}", table.header());
    let outcomes = demo::run(|outcome| println!("{}", table.line(outcome)))?;
    let wrong = outcomes.iter().filter(|outcome| outcome.wrong.is_some()).count();
    let left = left_behind();
    for what in &left {
        println!("LEFT BEHIND: {what}");
    }
    println!(
        "\n{} of {} rows as meant; {}; {:.1} s",
        outcomes.len() - wrong,
        outcomes.len(),
        if left.is_empty() { "nothing left behind" } else { "something was left behind" },
        began.elapsed().as_secs_f64()
    );
    Ok(wrong == 0 && left.is_empty())
}

/// Namespaces, links and processes of this run that are still there.
fn left_behind() -> Vec<String> {
    let own = format!("tpt-{}-", std::process::id());
    let mut left = Vec::new();
    for directory in ["/run/netns", "/etc/netns"] {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.path().display().to_string());
        left.extend(names.filter(|name| name.contains(&own)));
    }
    let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    left.extend(children.split_whitespace().map(|pid| format!("process {pid}")));
    left
}
