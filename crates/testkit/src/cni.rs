//! Runs a CNI configuration list as libcni does: each plugin with the previous one's result, DEL in reverse.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::output_with_input;

/// Debian's plugins.
pub const DEBIAN_PLUGINS: &str = "/usr/lib/cni";
const VERSION: &str = "1.0.0";

/// Which main plugin gives the pod its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MainPlugin {
    Ptp,
    Bridge,
}

/// Who the pod is, as a runtime tells plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: Vec<(String, String)>,
}

impl PodIdentity {
    pub fn new(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            labels: labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
        }
    }

    fn cni_args(&self) -> String {
        let Self { namespace, name, uid, .. } = self;
        format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}")
    }

    /// The conventions' `args.cni.labels`.
    fn labels_json(&self) -> Value {
        self.labels.iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
    }
}

/// What a plugin said when it failed.
#[derive(Debug)]
pub struct CniError {
    pub plugin: String,
    pub command: String,
    pub code: i64,
    pub message: String,
}

impl std::fmt::Display for CniError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} {}: code {}: {}", self.plugin, self.command, self.code, self.message)
    }
}

impl std::error::Error for CniError {}

/// A network: a list of plugin configurations, and where the plugins are.
#[derive(Debug)]
pub struct CniNetwork {
    name: String,
    version: &'static str,
    plugins: Vec<Value>,
    path: Vec<PathBuf>,
    directory: TempDir,
}

impl CniNetwork {
    /// `own` is the directory of the product's plugin, searched first.
    pub fn new(name: &str, own: Option<&Path>) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("tpt-cni-").tempdir()?;
        let path = own.map(Path::to_owned).into_iter().chain([PathBuf::from(DEBIAN_PLUGINS)]).collect();
        Ok(Self { name: name.to_owned(), version: VERSION, plugins: Vec::new(), path, directory })
    }

    /// Adds a main plugin with addresses from host-local: 10.244.`index`.0/24 and fd00:244:0:`index`::/64.
    pub fn with_main(mut self, main: MainPlugin, index: u8) -> Self {
        let ipam = self.host_local(index);
        self.plugins.push(match main {
            MainPlugin::Ptp => json!({"type": "ptp", "mtu": 1500, "ipam": ipam}),
            MainPlugin::Bridge => json!({
                "type": "bridge", "bridge": format!("tbr{index}"), "isGateway": true, "mtu": 1500, "ipam": ipam,
            }),
        });
        self
    }

    /// Another `cniVersion` than the newest that Debian's plugins speak.
    pub fn with_version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }

    pub fn with_plugin(mut self, plugin: Value) -> Self {
        self.plugins.push(plugin);
        self
    }

    /// An `ipam` section with state of this network's own.
    pub fn host_local(&self, index: u8) -> Value {
        json!({
            "type": "host-local",
            "dataDir": self.directory.path().join("ipam"),
            "ranges": [
                [{"subnet": format!("10.244.{index}.0/24")}],
                [{"subnet": format!("fd00:244:0:{index:x}::/64")}],
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        })
    }

    /// The whole list, as a runtime reads it.
    pub fn conflist(&self) -> Value {
        json!({"cniVersion": self.version, "name": self.name, "plugins": self.plugins})
    }

    /// Writes the list to `directory`/10-NAME.conflist.
    pub fn write_conflist(&self, directory: &Path) -> Result<PathBuf> {
        fs::create_dir_all(directory)?;
        let file = directory.join(format!("10-{}.conflist", self.name));
        fs::write(&file, serde_json::to_vec_pretty(&self.conflist())?)?;
        Ok(file)
    }

    pub fn plugin_path(&self) -> &[PathBuf] {
        &self.path
    }

    /// ADD of the whole list; a failed ADD is followed by DEL, as runtimes do it.
    pub fn attach(
        self: &Arc<Self>,
        node: &Arc<Namespace>,
        pod: &Arc<Namespace>,
        identity: &PodIdentity,
    ) -> Result<Attachment> {
        let mut attachment = self.attachment(node, pod, identity);
        attachment.add()?;
        Ok(attachment)
    }

    /// A container of its own that nothing has been called for yet.
    pub fn attachment(
        self: &Arc<Self>,
        node: &Arc<Namespace>,
        pod: &Arc<Namespace>,
        identity: &PodIdentity,
    ) -> Attachment {
        static CONTAINER: AtomicU32 = AtomicU32::new(0);
        let number = CONTAINER.fetch_add(1, Ordering::Relaxed);
        Attachment {
            network: Arc::clone(self),
            node: Arc::clone(node),
            pod: Arc::clone(pod),
            identity: identity.clone(),
            container: format!("tpt{}-{number}", std::process::id()),
            interface: "eth0".to_owned(),
            result: Value::Null,
            attached: false,
            calls: Mutex::default(),
        }
    }

    /// Addresses that host-local has given away and not got back.
    pub fn leases(&self) -> Vec<String> {
        leases_in(&self.directory.path().join("ipam").join(&self.name))
    }

    fn find(&self, plugin: &str) -> Result<PathBuf> {
        self.path
            .iter()
            .map(|directory| directory.join(plugin))
            .find(|file| file.exists())
            .with_context(|| format!("no plugin {plugin} in {:?}", self.path))
    }
}

/// A pod on a network; DEL on drop.
#[derive(Debug)]
pub struct Attachment {
    network: Arc<CniNetwork>,
    node: Arc<Namespace>,
    pod: Arc<Namespace>,
    identity: PodIdentity,
    container: String,
    interface: String,
    result: Value,
    attached: bool,
    calls: Mutex<Vec<PluginCall>>,
}

/// How long one plugin took for one verb, as a whole process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginCall {
    pub plugin: String,
    pub verb: String,
    pub took: Duration,
}

impl Attachment {
    /// Every call so far, in order.
    pub fn calls(&self) -> Vec<PluginCall> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last plugin's result.
    pub fn result(&self) -> &Value {
        &self.result
    }

    pub fn container(&self) -> &str {
        &self.container
    }

    pub fn pod(&self) -> &Arc<Namespace> {
        &self.pod
    }

    /// The addresses that the result gives the pod.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ips = self.result["ips"].as_array().into_iter().flatten();
        ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect()
    }

    /// ADD of the whole list once more, as a runtime that lost the first answer does.
    pub fn add(&mut self) -> Result<()> {
        self.attached = true;
        let mut previous = None;
        for plugin in &self.network.plugins {
            let result = self.call("ADD", plugin, previous.as_ref())?;
            previous = Some(serde_json::from_slice(&result).context("a result that is not JSON")?);
        }
        self.result = previous.context("a network without plugins")?;
        Ok(())
    }

    /// ADD of which the last plugin is killed (SIGKILL) `after` its start, as by a runtime that has no patience; its
    /// status. What it started itself (ipam) may still run.
    pub fn add_interrupted(&mut self, after: Duration) -> Result<ExitStatus> {
        self.attached = true;
        let (last, before) = self.network.plugins.split_last().context("a network without plugins")?;
        let mut previous = None;
        for plugin in before {
            let result = self.call("ADD", plugin, previous.as_ref())?;
            previous = Some(serde_json::from_slice(&result).context("a result that is not JSON")?);
        }
        let (mut command, input) = self.command("ADD", last, previous.as_ref())?;
        self.node.enter(|| killed_after(&mut command, &input, after))
    }

    pub fn check(&self) -> Result<()> {
        self.network
            .plugins
            .iter()
            .try_for_each(|plugin| self.call("CHECK", plugin, Some(&self.result)).map(drop))
    }

    /// DEL in reverse; every plugin is called even when one fails, and the first failure is returned.
    pub fn detach(&mut self) -> Result<()> {
        self.attached = false;
        let previous = (!self.result.is_null()).then_some(&self.result);
        let outcomes: Vec<Result<Vec<u8>>> =
            self.network.plugins.iter().rev().map(|plugin| self.call("DEL", plugin, previous)).collect();
        outcomes.into_iter().try_for_each(|outcome| outcome.map(drop))
    }

    /// The plugin as a process, and its standard input.
    fn command(&self, verb: &str, plugin: &Value, previous: Option<&Value>) -> Result<(Command, Vec<u8>)> {
        let kind = plugin["type"].as_str().context("a plugin without type")?;
        let mut input = plugin.clone();
        input["name"] = json!(self.network.name);
        input["cniVersion"] = json!(self.network.version);
        input["args"]["cni"]["labels"] = self.identity.labels_json();
        if let Some(previous) = previous {
            input["prevResult"] = previous.clone();
        }
        let path = std::env::join_paths(&self.network.path)?;
        let mut command = Command::new(self.network.find(kind)?);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_NETNS", self.pod.path())
            .env("CNI_IFNAME", &self.interface)
            .env("CNI_ARGS", self.identity.cni_args())
            .env("CNI_PATH", path);
        Ok((command, serde_json::to_vec(&input)?))
    }

    fn call(&self, verb: &str, plugin: &Value, previous: Option<&Value>) -> Result<Vec<u8>> {
        let kind = plugin["type"].as_str().context("a plugin without type")?;
        let (mut command, input) = self.command(verb, plugin, previous)?;
        // Started from a thread inside the node's namespace, so that the time is the plugin's alone.
        let (output, took) = self.node.enter(|| {
            let began = Instant::now();
            output_with_input(&mut command, &input).map(|output| (output, began.elapsed()))
        })?;
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.push(PluginCall { plugin: kind.to_owned(), verb: verb.to_owned(), took });
        if output.status.success() {
            return Ok(output.stdout);
        }
        bail!(error(kind, verb, &output))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if self.attached
            && let Err(failure) = self.detach()
        {
            eprintln!("DEL of {}: {failure:#}", self.container);
        }
    }
}

/// Addresses that host-local has given away by its files in `folder`, which is that of one network.
pub fn leases_in(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "lock" && !name.starts_with("last_reserved_ip")).collect()
}

fn killed_after(command: &mut Command, input: &[u8], after: Duration) -> Result<ExitStatus> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("spawn")?;
    // Smaller than a pipe: nobody has to read it for us to go on.
    let _ = child.stdin.take().context("no standard input")?.write_all(input);
    std::thread::sleep(after);
    let _ = child.kill();
    child.wait().context("wait")
}

fn error(plugin: &str, verb: &str, output: &std::process::Output) -> CniError {
    let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let text =
        || format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    CniError {
        plugin: plugin.to_owned(),
        command: verb.to_owned(),
        code: document["code"].as_i64().unwrap_or(-1),
        message: document["msg"].as_str().map_or_else(text, |message| {
            format!("{message} {}", document["details"].as_str().unwrap_or_default())
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::{Host, Topology, Wire, root_or_skip};

    #[test]
    fn pods_of_both_main_plugins_reach_the_outside_and_leave_nothing() {
        if !root_or_skip() {
            return;
        }
        let topology = Topology::new(Wire::Veth).unwrap();
        let before = topology.node.links().unwrap().len();
        for (index, main) in [MainPlugin::Ptp, MainPlugin::Bridge].into_iter().enumerate() {
            let network = Arc::new(CniNetwork::new("tkt", None).unwrap().with_main(main, index as u8));
            let pod = topology.pod_namespace("pod").unwrap();
            let identity = PodIdentity::new("default", "web", &[("app", "web")]);
            let mut attachment = network.attach(&topology.node, &pod, &identity).unwrap();
            assert_eq!(attachment.addresses().len(), 2, "{}", attachment.result());
            for ip in Host::Web.both() {
                let address = SocketAddr::new(ip, 8080);
                let _listener = topology.outside.tcp_listen(address).unwrap();
                pod.tcp_connect(address, Duration::from_secs(5)).unwrap();
            }
            attachment.detach().unwrap();
            assert!(pod.links().unwrap().len() == 1, "only lo is left");
        }
        let _ = topology.node.ip("link del tbr1");
        assert_eq!(topology.node.links().unwrap().len(), before);
    }

    #[test]
    fn a_failure_says_which_plugin_and_code() {
        if !root_or_skip() {
            return;
        }
        let topology = Topology::new(Wire::Veth).unwrap();
        let network = Arc::new(CniNetwork::new("bad", None).unwrap().with_plugin(json!({"type": "ptp"})));
        let pod = topology.pod_namespace("pod").unwrap();
        let failure = network.attach(&topology.node, &pod, &PodIdentity::new("a", "b", &[])).unwrap_err();
        let error = failure.downcast_ref::<CniError>().unwrap();
        assert_eq!((error.plugin.as_str(), error.command.as_str()), ("ptp", "ADD"));
    }
}
