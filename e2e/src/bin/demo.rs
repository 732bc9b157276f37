//! `make demo`: the main job on this machine. Ends by itself; exit 0 only if every row came out as meant and nothing is
//! left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::WaitOptions;
use tempfile::TempDir;
use tunproxy_e2e::demo::{self, Table};
use tunproxy_testkit::{Interrupt, wait};

const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    Interrupt::run("demo", |interrupt| {
        run(interrupt).map(|right| if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

fn run(interrupt: &Interrupt) -> Result<bool> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the demo makes network namespaces and needs root: sudo make demo (without root: tunproxy-agent exec)"
    );
    let began = Instant::now();
    let before = Before::look()?;
    println!(
        "Two pods on a CNI chain (ptp, then tunproxy) and a standalone one; a web server, a resolver and a SOCKS5"
    );
    println!("proxy outside; everything in network namespaces of its own.\n");
    let table = Table::for_stdout();
    println!("{}", table.header());
    let outcomes = demo::run(interrupt, |outcome| println!("{}", table.line(outcome)));
    // After a failure too: what was killed on the way is to be gone before this program is.
    let left = before.left();
    for what in &left {
        println!("LEFT BEHIND: {what}");
    }
    let outcomes = outcomes?;
    let wrong = outcomes.iter().filter(|outcome| outcome.wrong.is_some()).count();
    println!(
        "\n{} of {} rows as meant; {}; {:.1} s",
        outcomes.len() - wrong,
        outcomes.len(),
        if left.is_empty() { "nothing left behind" } else { "something was left behind" },
        began.elapsed().as_secs_f64()
    );
    Ok(wrong == 0 && left.is_empty())
}

/// What was there before the demo, to tell what it leaves.
struct Before {
    links: BTreeSet<String>,
    /// Every file that the demo makes is below it.
    temporary: TempDir,
}

impl Before {
    /// Orphans of programs that the demo starts become children of this process: none can hide.
    fn look() -> Result<Self> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("subreaper")?;
        let temporary =
            tempfile::Builder::new().prefix(&format!("tunproxy-demo-{}-", std::process::id())).tempdir()?;
        let previous = tempfile::env::override_temp_dir(temporary.path());
        ensure!(previous.is_ok(), "the folder for temporary files is set already: {previous:?}");
        Ok(Self { links: names_in("/sys/class/net"), temporary })
    }

    /// What is still there. Programs that were killed take a moment to go.
    fn left(&self) -> Vec<String> {
        let gone = wait::until_true("everything to go", PATIENCE, || self.left_now().is_empty());
        if gone.is_ok() { Vec::new() } else { self.left_now() }
    }

    fn left_now(&self) -> Vec<String> {
        let mut left = Vec::new();
        let own = format!("tpt-{}-", std::process::id());
        for directory in ["/run/netns", "/etc/netns"] {
            let names = names_in(directory).into_iter().filter(|name| name.starts_with(&own));
            left.extend(names.map(|name| format!("{directory}/{name}")));
        }
        let links = names_in("/sys/class/net");
        left.extend(links.difference(&self.links).map(|name| format!("link {name}")));
        let here = self.temporary.path().display();
        left.extend(names_in(self.temporary.path()).iter().map(|name| format!("{here}/{name}")));
        left.extend(children().into_iter().map(|pid| format!("process {pid}")));
        left
    }
}

fn names_in(directory: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Running children of every thread; those that ended are buried first.
fn children() -> Vec<String> {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    let threads = names_in("/proc/self/task").into_iter();
    let of = |thread: String| fs::read_to_string(format!("/proc/self/task/{thread}/children"));
    threads
        .flat_map(|thread| {
            let text = of(thread).unwrap_or_default();
            text.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>()
        })
        .collect()
}
