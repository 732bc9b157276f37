//! Running programs: once with their output, or in the background until dropped.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use crate::wait;

/// Runs to the end and gives stdout; a failure's error holds the command line, the status and what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs to the end, whatever its status; without standard input.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))
}

/// Runs with `input` on its standard input.
pub fn output_with_input(command: &mut Command, input: &[u8]) -> Result<Output> {
    use std::io::Write;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    // A program that ends before it has read everything is judged by its status, not by our broken pipe.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().with_context(|| format!("cannot wait for {command:?}"))
}

/// User and system time of a process' threads so far, to the nanosecond; of threads that have ended nothing is known.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("no process {pid}"))? {
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let time = text.split_whitespace().next().and_then(|time| time.parse::<u64>().ok());
        sum += time.with_context(|| format!("schedstat holds {text:?}"))?;
    }
    Ok(Duration::from_nanos(sum))
}

/// What `/proc/PID/status` has under `key`, as "VmRSS:", in KiB.
pub fn memory_kib(pid: u32, key: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such key")?;
    line.trim().trim_end_matches(" kB").trim().parse().with_context(|| format!("{key} is no number"))
}

/// A program in the background, in its own process group, which is killed on drop. Its output goes to a file, which
/// is printed when the test fails.
#[derive(Debug)]
pub struct Background {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Background {
    pub fn spawn(command: &mut Command, name: &str, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, name: name.to_owned(), log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.log) {
            let mut bytes = Vec::new();
            let _ = file.read_to_end(&mut bytes);
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
        text
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::kill_process(self.process(), signal)
            .with_context(|| format!("cannot signal {} ({})", self.name, self.child.id()))
    }

    /// The status, when it has ended already.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let child = &mut self.child;
        wait::until(what, limit, || child.try_wait().ok().flatten())
    }

    /// SIGKILL, and wait for the end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        let _ = rustix::process::kill_process_group(self.process(), Signal::KILL);
        self.wait(Duration::from_mins(1))
    }

    /// Asks `ready` until it is true; fails at once, with the log, when the program ends meanwhile.
    pub fn wait_ready(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let name = self.name.clone();
        let mut ended = None;
        let outcome = wait::until_true(format!("{name} to be ready"), limit, || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some() || ready()
        });
        match (outcome, ended) {
            (_, Some(status)) => bail!("{name} ended with {status} before it was ready:\n{}", self.log()),
            (Err(error), None) => Err(error.context(format!("{name} printed:\n{}", self.log()))),
            (Ok(()), None) => Ok(()),
        }
    }

    fn process(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            let _ = rustix::process::kill_process_group(self.process(), Signal::KILL);
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("---- {} printed (last {} lines) ----", self.name, tail.len());
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}
