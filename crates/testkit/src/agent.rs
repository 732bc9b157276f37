//! The agent as a process in the node's namespace.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binaries::Program;
use crate::netns::Namespace;
use crate::process::{self, Background};
use crate::wait;

const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(20);

/// What goes into agent.yaml.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// `Allow` or `Deny`: for pods that no policy selects.
    pub default: &'static str,
    /// A URL or the name of an Upstream document.
    pub upstream: String,
    pub resolvers: Vec<IpAddr>,
    pub workers: Option<usize>,
    /// File name and text of each policy document file.
    pub policies: Vec<(String, String)>,
    /// More lines of agent.yaml, as they are.
    pub extra: String,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            default: "Allow",
            upstream: "direct".to_owned(),
            resolvers: crate::Host::Dns.both().to_vec(),
            workers: None,
            policies: Vec::new(),
            extra: String::new(),
        }
    }
}

/// What the agent counts of a pod, by the names on the status page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodCounts {
    pub totals: BTreeMap<String, u64>,
    /// By reason; a reason that never occurred is not there.
    pub drops: BTreeMap<String, u64>,
}

impl PodCounts {
    pub fn total(&self, name: &str) -> Result<u64> {
        self.totals.get(name).copied().with_context(|| format!("no {name} in {:?}", self.totals))
    }

    pub fn dropped(&self, reason: &str) -> u64 {
        self.drops.get(reason).copied().unwrap_or(0)
    }

    /// What was counted since `before`; reasons for which nothing was dropped meanwhile are not there.
    pub fn since(&self, before: &Self) -> Self {
        let less = |now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>| -> BTreeMap<String, u64> {
            let more = |(name, count): (&String, &u64)| {
                (name.clone(), count - before.get(name).copied().unwrap_or(0))
            };
            now.iter().map(more).collect()
        };
        let mut drops = less(&self.drops, &before.drops);
        drops.retain(|_, count| *count > 0);
        Self { totals: less(&self.totals, &before.totals), drops }
    }
}

/// A running agent and its files; killed on drop.
#[derive(Debug)]
pub struct AgentProcess {
    process: Background,
    node: Arc<Namespace>,
    directory: TempDir,
}

impl AgentProcess {
    /// Starts it in `node` and waits until it is ready.
    pub fn start(node: &Arc<Namespace>, options: &AgentOptions) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("tpt-agent-").tempdir()?;
        fs::create_dir(directory.path().join("policies"))?;
        fs::write(directory.path().join("agent.yaml"), configuration(directory.path(), options))?;
        for (name, text) in &options.policies {
            fs::write(directory.path().join("policies").join(name), text)?;
        }
        let process = spawn(node, directory.path())?;
        let mut agent = Self { process, node: Arc::clone(node), directory };
        agent.wait_ready()?;
        Ok(agent)
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn cni_socket(&self) -> PathBuf {
        self.directory.path().join("cni.sock")
    }

    pub fn admin_socket(&self) -> PathBuf {
        self.directory.path().join("admin.sock")
    }

    /// The plugin's entry in a conflist for this agent.
    pub fn plugin_configuration(&self) -> Value {
        json!({
            "type": "tunproxy",
            "agentSocket": self.cni_socket(),
            "stateDir": self.directory.path().join("plugin"),
            "timeout": "10s",
        })
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Writes a policy file as an editor does (a new file renamed over the old one); the agent reloads by itself.
    pub fn write_policy(&self, name: &str, text: &str) -> Result<()> {
        let folder = self.directory.path().join("policies");
        let temporary = self.directory.path().join(name);
        fs::write(&temporary, text)?;
        fs::rename(&temporary, folder.join(name))?;
        Ok(())
    }

    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::TERM)?;
        self.process.wait(STOP)
    }

    /// Starts it again with the same files, after [`Self::kill`] or [`Self::terminate`].
    pub fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.node, self.directory.path())?;
        self.wait_ready()
    }

    /// As [`Self::start_again`], for an agent that is not to become ready: waits until it answers at all.
    pub fn start_again_unready(&mut self) -> Result<()> {
        self.process = spawn(&self.node, self.directory.path())?;
        let socket = self.admin_socket();
        self.process
            .wait_ready(START, || http_get(&socket, "/healthz").is_ok_and(|(status, _)| status == 200))
    }

    /// Status and body of `/readyz`.
    pub fn readiness(&self) -> Result<(u16, String)> {
        http_get(&self.admin_socket(), "/readyz")
    }

    /// The body of a 200 answer of the admin socket.
    pub fn admin(&self, path: &str) -> Result<String> {
        let (status, body) = http_get(&self.admin_socket(), path)?;
        if status != 200 {
            bail!("{path} answered {status}: {body}");
        }
        Ok(body)
    }

    /// Every attached pod as `/status` has it.
    pub fn pods(&self) -> Result<Vec<Value>> {
        let mut status: Value = serde_json::from_str(&self.admin("/status")?)?;
        match status["pods"].take() {
            Value::Array(pods) => Ok(pods),
            other => bail!("/status has no pods but {other}"),
        }
    }

    /// Live flows of all pods.
    pub fn live_flows(&self) -> Result<u64> {
        self.pods()?.iter().map(|pod| pod["flows"].as_u64().context("a pod without flows")).sum()
    }

    /// What is counted of pod `name` so far; all of it was read at one moment, between two packets.
    pub fn counts(&self, name: &str) -> Result<PodCounts> {
        let pods = self.pods()?;
        let pod = pods.iter().find(|pod| pod["name"] == name).with_context(|| format!("no pod {name}"))?;
        let map = |key: &str| {
            serde_json::from_value(pod[key].clone()).with_context(|| format!("{key} of {name}: {}", pod[key]))
        };
        Ok(PodCounts { totals: map("counters")?, drops: map("drops")? })
    }

    /// What the agent and the plugin keep on disk of attachments, below the directory of this agent. The plugin's lock,
    /// empty and one for all of them, is none.
    pub fn state_files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut folders = vec![self.directory.path().join("state"), self.directory.path().join("plugin")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if entry.file_name() != "ipam.lock" {
                    files.push(path);
                }
            }
        }
        files.sort();
        files
    }

    /// Every record of the flow log so far.
    pub fn flows(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.directory.path().join("flows.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a flow record that `wanted` accepts.
    pub fn wait_for_flow(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        wait::until(format!("a flow record of {what}"), Duration::from_secs(15), || {
            self.flows().into_iter().find(|flow| wanted(flow))
        })
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// The most that was ever resident, in KiB.
    pub fn peak_rss_kib(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    /// From now on, [`Self::peak_rss_kib`] is the peak of what comes (proc(5), clear_refs).
    pub fn forget_peak_rss(&self) -> Result<()> {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").context("clear_refs")
    }

    fn memory(&self, key: &str) -> Result<u64> {
        process::memory_kib(self.pid(), key)
    }

    pub fn open_descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// See [`process::cpu_time`].
    pub fn cpu_time(&self) -> Result<Duration> {
        process::cpu_time(self.pid())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let socket = self.admin_socket();
        self.process.wait_ready(START, || http_get(&socket, "/readyz").is_ok_and(|(status, _)| status == 200))
    }
}

fn spawn(node: &Namespace, directory: &Path) -> Result<Background> {
    let mut command = node.command_with_resolver(Program::Agent.path()?);
    command.args(["serve", "--config"]).arg(directory.join("agent.yaml"));
    command.arg("--policy").arg(directory.join("policies"));
    Background::spawn(&mut command, "tunproxy-agent", &directory.join("agent.log"))
}

fn configuration(directory: &Path, options: &AgentOptions) -> String {
    let here = directory.display();
    let resolvers: Vec<String> = options.resolvers.iter().map(|ip| format!("\"{ip}\"")).collect();
    let mut text = format!(
        "node: {{name: test-node}}\n\
         cniSocket: {here}/cni.sock\n\
         stateDir: {here}/state\n\
         default: {}\n\
         upstream: \"{}\"\n\
         resolvers: [{}]\n\
         flowLog: {{path: {here}/flows.jsonl}}\n\
         admin: {{socket: {here}/admin.sock}}\n",
        options.default,
        options.upstream,
        resolvers.join(", "),
    );
    if let Some(workers) = options.workers {
        let _ = writeln!(text, "workers: {workers}");
    }
    text + &options.extra
}

/// One HTTP/1.0 request over a Unix socket: status and body.
fn http_get(socket: &Path, path: &str) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the answer's head")?;
    let status =
        head.split_whitespace().nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    Ok((status, body.to_owned()))
}
