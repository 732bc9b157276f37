//! `tunproxy-agent exec`: status and signals pass through, policy holds, nothing is left; as root and without.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal};
use tunproxy_e2e::{Path, Report, World, WorldOptions};
use tunproxy_testkit::process::output;
use tunproxy_testkit::{Host, Program, root_or_skip, wait};

const LIMIT: Duration = Duration::from_mins(1);

/// Runs `exec` in the node's namespace, so that only the node's own network is touched.
struct Lab {
    world: World,
    directory: tempfile::TempDir,
    agent: PathBuf,
    /// What this process has open is compared: one test at a time.
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let world =
            World::new(&WorldOptions { agent: false, ..WorldOptions::for_path(Path::Routed) }).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let policy = "apiVersion: tunproxy.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: p, namespace: default}\nspec:\n  rules:\n  \
                      - {name: site, action: Allow, to: [{domains: [allowed.test]}]}\n";
        std::fs::write(directory.path().join("policy.yaml"), policy).unwrap();
        // An ordinary user must be able to read the policy and run the program, wherever the build's directory is.
        let agent = directory.path().join("tunproxy-agent");
        std::fs::copy(Program::Agent.path().unwrap(), &agent).unwrap();
        open_to_all(directory.path());
        Self { world, directory, agent, _turn: turn }
    }

    fn command(&self, as_root: bool, options: &[&str], program: &[&str]) -> Command {
        let mut command = self.world.topology.node.command_with_resolver("env");
        if !as_root {
            command.args(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
        }
        command.arg(&self.agent).arg("exec").args(options).arg("--").args(program);
        command
    }

    fn run(&self, as_root: bool, options: &[&str], program: &[&str]) -> Result<Output> {
        output(&mut self.command(as_root, options, program))
    }

    fn policy(&self) -> String {
        self.directory.path().join("policy.yaml").display().to_string()
    }
}

fn open_to_all(directory: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn exec(as_root: bool) {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let mut report = Report::default();
    for status in [0, 1, 42, 255] {
        report.row(format!("exit status {status}"), || {
            let output = lab.run(as_root, &[], &["sh", "-c", &format!("exit {status}")])?;
            ensure!(output.status.code() == Some(status), "{}: {}", output.status, text(&output));
            Ok(())
        });
    }
    report.row("a command that does not exist", || {
        let output = lab.run(as_root, &[], &["/no/such/program"])?;
        ensure!(
            output.status.code() == Some(127) && text(&output).contains("/no/such/program"),
            "{}",
            text(&output)
        );
        Ok(())
    });
    report.row("the death by a signal is 128 + its number", || {
        let output = lab.run(as_root, &[], &["sh", "-c", "kill -KILL $$"])?;
        ensure!(output.status.code() == Some(137), "{}: {}", output.status, text(&output));
        Ok(())
    });
    for sent in SIGNALS {
        report.row(format!("SIG{} reaches the command", sent.0), || signal(&lab, as_root, sent));
    }
    report.row("standard input, output and error pass through", || {
        let mut command = lab.command(as_root, &[], &["sh", "-c", "cat; echo error >&2"]);
        let output = tunproxy_testkit::process::output_with_input(&mut command, b"hello")?;
        ensure!(output.stdout == b"hello" && text(&output).contains("error"), "{}", text(&output));
        Ok(())
    });
    report.row("allowed by name", || {
        let output =
            lab.run(as_root, &["--policy", &lab.policy()], &["curl", "-sS", "http://allowed.test/"])?;
        ensure!(
            output.status.success() && text(&output).starts_with("allowed.test over"),
            "{}",
            text(&output)
        );
        Ok(())
    });
    report.row("refused by name", || {
        let output =
            lab.run(as_root, &["--policy", &lab.policy()], &["curl", "-sS", "http://other.test/"])?;
        ensure!(output.status.code() == Some(7), "{}: {}", output.status, text(&output));
        Ok(())
    });
    report.row("over IPv6", || {
        let output = lab.run(as_root, &[], &["curl", "-sS", &format!("http://[{}]/", Host::Web.v6())])?;
        ensure!(output.status.success() && text(&output).contains("over HTTP/1.1"), "{}", text(&output));
        Ok(())
    });
    report.row("through a SOCKS5 proxy", || {
        let proxy = format!("socks5://pod:p%40ss%3Aword@{}:1081", Host::Socks.v4());
        let output = lab.run(as_root, &["--upstream", &proxy], &["curl", "-sS", "http://allowed.test/"])?;
        ensure!(output.status.success(), "{}", text(&output));
        let log = lab.world.microsocks.log();
        ensure!(log.contains("connected to allowed.test:80"), "{log}");
        Ok(())
    });
    report.row("the flow log", || {
        let file = lab.directory.path().join(format!("flows-{as_root}.jsonl"));
        std::fs::write(&file, "")?;
        std::os::unix::fs::chown(&file, Some(65534), None)?;
        let options = ["--policy", &lab.policy(), "--log", &file.display().to_string()];
        lab.run(as_root, &options, &["curl", "-sS", "http://allowed.test/"])?;
        let text = std::fs::read_to_string(&file)?;
        let line = text
            .lines()
            .find(|line| line.contains("allowed.test") && line.contains(":80"))
            .context(text.clone())?;
        let flow: serde_json::Value = serde_json::from_str(line)?;
        ensure!(flow["rule"] == "site" && flow["verdict"] == "allowed", "{flow}");
        Ok(())
    });
    report.finish();
}

/// Signals that a supervisor or a terminal sends, with their names for `trap`.
const SIGNALS: [(&str, Signal); 6] = [
    ("TERM", Signal::TERM),
    ("INT", Signal::INT),
    ("HUP", Signal::HUP),
    ("QUIT", Signal::QUIT),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
];

/// A signal to `exec` reaches the command, which may handle it; `exec` ends as the command does.
fn signal(lab: &Lab, as_root: bool, (name, signal): (&str, Signal)) -> Result<()> {
    let marker = lab.directory.path().join(format!("ready-{as_root}-{name}"));
    std::fs::create_dir(&marker)?;
    std::os::unix::fs::chown(&marker, Some(65534), Some(65534))?;
    // The builtin `read` ends at once for a trapped signal, and waits for ever otherwise.
    let script = format!("trap 'exit 33' {name}; : > {0}/up; read nothing; exit 44", marker.display());
    let mut command = lab.command(as_root, &[], &["sh", "-c", &script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let held = child.stdin.take();
    wait::until_true("the command to run", LIMIT, || marker.join("up").exists())?;
    rustix::process::kill_process(Pid::from_child(&child), signal)?;
    let ended = wait::until("its end", LIMIT, || child.try_wait().ok().flatten());
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    drop(held);
    let status = ended?;
    ensure!(status.code() == Some(33), "ended with {status} (signal {:?})", status.signal());
    Ok(())
}

#[test]
fn as_root() {
    exec(true);
}

#[test]
fn as_an_ordinary_user() {
    exec(false);
}

/// Everything that runs of `exec` could leave, seen from outside.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    links: BTreeSet<String>,
    processes: usize,
    mounts: usize,
    /// Network namespaces of the processes that run with our TMPDIR.
    namespaces: BTreeSet<PathBuf>,
    /// What those processes have open, and this one: a namespace or a TUN that is held stays.
    descriptors: BTreeMap<PathBuf, usize>,
    /// In TMPDIR.
    files: BTreeSet<PathBuf>,
}

impl Traces {
    fn of(lab: &Lab, temporary: &FilePath) -> Self {
        let node = &lab.world.topology.node;
        let files = std::fs::read_dir(temporary).unwrap();
        let mut processes = ours(temporary);
        let namespaces =
            processes.iter().filter_map(|process| std::fs::read_link(process.join("ns/net")).ok());
        let namespaces = namespaces.collect();
        processes.push("/proc/self".into());
        Self {
            links: node.links().unwrap(),
            processes: node.pids().len(),
            mounts: mounts(),
            namespaces,
            descriptors: descriptors(&processes),
            files: files.map(|entry| entry.unwrap().path()).collect(),
        }
    }
}

/// Other tests' processes come and go meanwhile; ours have TMPDIR in their environment.
fn ours(temporary: &FilePath) -> Vec<PathBuf> {
    let ours = format!("TMPDIR={}", temporary.display());
    let is_ours = |process: &FilePath| {
        let environment = std::fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == ours.as_bytes())
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    processes.filter(|process| is_ours(process)).collect()
}

/// What the descriptors of `processes` are, and how many of each.
fn descriptors(processes: &[PathBuf]) -> BTreeMap<PathBuf, usize> {
    let mut descriptors = BTreeMap::new();
    // One that ends meanwhile has none.
    let listed = processes.iter().filter_map(|process| std::fs::read_dir(process.join("fd")).ok());
    for target in listed.flatten().flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok()) {
        *descriptors.entry(target).or_default() += 1;
    }
    descriptors
}

/// The network namespaces of the whole system, where the kernel tells: `None` where it does not. Other tests have some.
fn system_namespaces() -> Option<u64> {
    let slabs = std::fs::read_to_string("/proc/slabinfo").ok()?;
    let line = slabs.lines().find_map(|line| line.strip_prefix("net_namespace "))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What a run might leave is seen when it is left: a file for resolv.conf, a TUN, a namespace.
fn leftovers_are_seen(lab: &Lab, temporary: &FilePath) -> Result<()> {
    let before = Traces::of(lab, temporary);
    let file = temporary.join("tunproxy-resolv-planted");
    std::fs::write(&file, "nameserver 198.19.255.1\n")?;
    ensure!(Traces::of(lab, temporary) != before, "{} is not seen", file.display());
    std::fs::remove_file(&file)?;
    for held in ["/dev/net/tun", "/proc/self/ns/net"] {
        let open = std::fs::File::open(held)?;
        ensure!(Traces::of(lab, temporary) != before, "{held} is not seen when it is held");
        drop(open);
    }
    let after = Traces::of(lab, temporary);
    ensure!(after == before, "{before:?} became {after:?}");
    Ok(())
}

/// A run that lives shows in the traces, and no more once it ended: the comparison after it means something.
fn one_run_is_seen(lab: &Lab, temporary: &FilePath) -> Result<()> {
    let before = Traces::of(lab, temporary);
    let changed = || std::fs::metadata(temporary).and_then(|folder| folder.modified());
    let changed_before = changed()?;
    let mut child = lab
        .command(true, &[], &["cat"])
        .env("TMPDIR", temporary)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let seen = wait::until_true("its namespace and its TUN", LIMIT, || {
        let now = Traces::of(lab, temporary);
        now.namespaces.len() > 1 && now.descriptors.contains_key(FilePath::new("/dev/net/tun"))
    });
    drop(child.stdin.take());
    child.wait()?;
    seen?;
    let after = Traces::of(lab, temporary);
    ensure!(before == after, "{before:?} became {after:?}");
    ensure!(changed()? != changed_before, "it had no file in {}", temporary.display());
    Ok(())
}

/// 1,000 runs in a row, two at once, as root and as a user in turn.
#[test]
fn a_thousand_runs_leave_nothing() {
    const RUNS: usize = 1_000;
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let temporary = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(temporary.path(), Some(65534), Some(65534)).unwrap();
    one_run_is_seen(&lab, temporary.path()).unwrap();
    leftovers_are_seen(&lab, temporary.path()).unwrap();
    let (before, namespaces) = (Traces::of(&lab, temporary.path()), system_namespaces());
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (lab, temporary) = (&lab, temporary.path());
            scope.spawn(move || {
                for index in 0..RUNS / 2 {
                    let mut command = lab.command(index % 2 == worker, &[], &["true"]);
                    let output = output(command.env("TMPDIR", temporary)).unwrap();
                    assert!(output.status.success(), "run {index}: {}", text(&output));
                }
            });
        }
    });
    assert_eq!(before, Traces::of(&lab, temporary.path()));
    // The kernel takes its time to remove them. A quarter of what there would be: others come and go.
    if let Some(before) = namespaces {
        let few = || system_namespaces().is_some_and(|now| now < before + RUNS as u64 / 4);
        wait::until_true("the namespaces to go", LIMIT, few).unwrap();
    }
}

/// Mounts that a sandbox could leave; other tests' namespaces come and go meanwhile.
fn mounts() -> usize {
    let text = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    text.lines().filter(|line| line.contains("resolv.conf")).count()
}
