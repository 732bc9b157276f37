//! A node: a namespace in which the plugins run, a directory for their state, pods, and calls as a runtime makes them.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tunproxy_testkit::Namespace;
use tunproxy_testkit::cni::leases_in;

use crate::agent::FakeAgent;

/// The plugin under test.
pub const TUNPROXY: &str = env!("CARGO_BIN_EXE_tunproxy");

/// Debian's plugins (containernetworking-plugins).
pub const DEBIAN: &str = "/usr/lib/cni";

/// What a call may take that is given up after some hundred milliseconds: the kernel's own locks, which nothing
/// interrupts, are contended by all the tests that run at once.
pub const PATIENCE: Duration = Duration::from_mins(1);

pub struct Node {
    pub host: Namespace,
    pub dir: TempDir,
}

/// What a plugin answered.
#[derive(Debug)]
pub struct Reply {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Reply {
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    #[track_caller]
    pub fn failed(self, code: u64) -> Value {
        assert_eq!(self.code, 1, "{self:#?}");
        let document: Value = serde_json::from_str(&self.stdout).unwrap();
        assert_eq!(document["code"], code, "{document:#}");
        document
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

impl From<Output> for Reply {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Node {
    pub fn new() -> Self {
        let node = Self { host: Namespace::new("node").unwrap(), dir: tempfile::tempdir().unwrap() };
        node.host.sysctl("net.ipv4.ip_forward", "1").unwrap();
        node
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("cni.sock")
    }

    pub fn agent(&self) -> FakeAgent {
        FakeAgent::start(&self.socket())
    }

    /// Our network configuration in a chain.
    pub fn config(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "testnet",
            "type": "tunproxy",
            "agentSocket": self.socket(),
            "stateDir": self.dir.path().join("state"),
        })
    }

    /// Our network configuration as the main plugin.
    pub fn standalone_config(&self) -> Value {
        let mut config = self.config();
        config["ipam"] = self.host_local();
        config
    }

    fn host_local(&self) -> Value {
        json!({
            "type": "host-local",
            "ranges": [[{"subnet": "10.77.1.0/24"}], [{"subnet": "fd77:0:0:1::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            "dataDir": self.dir.path().join("ipam"),
        })
    }

    /// Addresses that host-local has handed out.
    pub fn leases(&self) -> usize {
        leases_in(&self.dir.path().join("ipam/testnet")).len()
    }

    /// The configuration of a main plugin of Debian's.
    pub fn main_config(&self, kind: &str) -> Value {
        let mut config = json!({
            "cniVersion": "1.0.0",
            "name": "testnet",
            "type": kind,
            "ipam": self.host_local(),
        });
        if kind == "bridge" {
            config["bridge"] = json!("br0");
            config["isGateway"] = json!(true);
        }
        config
    }

    /// Lets a main plugin make `ifname`, and returns its result.
    pub fn main_add(&self, kind: &str, id: &str, pod: &Namespace, ifname: &str) -> Value {
        let call = self.call("ADD", id, pod).ifname(ifname).config(&self.main_config(kind));
        call.run_debian(kind).succeeded().json()
    }

    /// A call of our plugin.
    pub fn call(&self, verb: &str, id: &str, pod: &Namespace) -> Call<'_> {
        self.bare_call(verb).id(id).ifname("eth0").netns(pod.path().to_str().unwrap()).config(&self.config())
    }

    /// The same without any variable or configuration.
    pub fn bare_call(&self, verb: &str) -> Call<'_> {
        let path = format!("{}:{DEBIAN}", Path::new(TUNPROXY).parent().unwrap().display());
        let variables = vec![("CNI_COMMAND", verb.to_owned()), ("CNI_PATH", path)];
        Call { node: self, program: TUNPROXY.into(), variables, input: Vec::new() }
    }

    /// A plugin of the test's own, in the node's directory.
    pub fn script(&self, name: &str, body: &str) {
        let path = self.dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// ADD of a whole chain; returns what the main plugin gave and what we did.
    pub fn chain_add(&self, kind: &str, id: &str, pod: &Namespace) -> (Value, Reply) {
        let previous = self.main_add(kind, id, pod, "eth0");
        let reply = self.call("ADD", id, pod).previous(&previous).run();
        (previous, reply)
    }
}

pub fn pod() -> Namespace {
    Namespace::new("pod").unwrap()
}

/// One run of a plugin.
pub struct Call<'a> {
    node: &'a Node,
    program: PathBuf,
    variables: Vec<(&'static str, String)>,
    input: Vec<u8>,
}

impl Call<'_> {
    pub fn set(mut self, name: &'static str, value: &str) -> Self {
        self.variables.retain(|(set, _)| *set != name);
        self.variables.push((name, value.to_owned()));
        self
    }

    pub fn id(self, id: &str) -> Self {
        self.set("CNI_CONTAINERID", id)
    }

    pub fn ifname(self, ifname: &str) -> Self {
        self.set("CNI_IFNAME", ifname)
    }

    pub fn netns(self, path: &str) -> Self {
        self.set("CNI_NETNS", path)
    }

    pub fn kubernetes_pod(self, namespace: &str, name: &str) -> Self {
        let text =
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID=u-1");
        self.set("CNI_ARGS", &text)
    }

    pub fn config(mut self, config: &Value) -> Self {
        self.input = config.to_string().into_bytes();
        self
    }

    /// Changes one key of the configuration.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        let mut config: Value = serde_json::from_slice(&self.input).unwrap();
        config[key] = value;
        self.input = config.to_string().into_bytes();
        self
    }

    pub fn previous(self, result: &Value) -> Self {
        self.with("prevResult", result.clone())
    }

    pub fn input(mut self, bytes: &[u8]) -> Self {
        self.input = bytes.to_vec();
        self
    }

    pub fn run(self) -> Reply {
        self.spawn().wait_with_output().unwrap().into()
    }

    /// Runs a plugin of Debian's in the place of ours.
    pub fn run_debian(mut self, kind: &str) -> Reply {
        self.program = Path::new(DEBIAN).join(kind);
        self.run()
    }

    /// Starts it, feeds it and lets it run.
    pub fn spawn(self) -> Child {
        let mut command = self.command();
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        // A plugin that does not want its input closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(&self.input);
        child
    }

    /// With standard input from a file that cannot be read.
    pub fn run_with_unreadable_input(self) -> Reply {
        let directory = std::fs::File::open("/").unwrap();
        self.command().stdin(directory).output().unwrap().into()
    }

    fn command(&self) -> Command {
        let mut command = self.node.host.command(&self.program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CNI_")) {
            command.env_remove(name);
        }
        let variables = self.variables.iter().map(|(name, value)| (*name, value.as_str()));
        command.envs(variables).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// Everything about routing in a namespace, without what the kernel changes by itself: carrier states, link-local
/// addresses, multicast routes, the order of equal entries.
pub fn snapshot(namespace: &Namespace) -> Vec<String> {
    let mut all = Vec::new();
    for words in
        ["-o link", "-o addr", "rule", "-6 rule", "-4 route show table all", "-6 route show table all"]
    {
        let text = namespace.ip(words).unwrap();
        let kept =
            text.lines().filter(|line| !line.starts_with("multicast ff00::/8") && !line.contains("fe80::"));
        let mut lines: Vec<String> = kept.map(stable).collect();
        lines.sort();
        all.extend(lines);
    }
    all
}

fn stable(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "state" => drop(words.next()),
            "linkdown" | "tentative" => {}
            _ if word.starts_with('<') => kept.push(if word.contains(",UP") { "<UP>" } else { "<DOWN>" }),
            _ => kept.push(word),
        }
    }
    kept.join(" ")
}

/// The interface by which a packet would leave; `None` when it is refused.
pub fn way(namespace: &Namespace, words: &str) -> Option<String> {
    let text = namespace.ip(&format!("route get {words}")).ok()?;
    let mut words = text.split_whitespace();
    words.find(|word| *word == "dev")?;
    words.next().map(str::to_owned)
}
