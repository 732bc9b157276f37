//! What is measured in: an outside with the load's server, a node with the agent and a SOCKS5 server, and pods.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tunproxy_testkit::process::run as run_command;
use tunproxy_testkit::servers::Danted;
use tunproxy_testkit::topology::{NODE_V4, UPLINK};
use tunproxy_testkit::{
    AgentOptions, AgentProcess, Attachment, CniNetwork, Host, MainPlugin, Namespace, PodIdentity, Program,
    Topology, Wire,
};

use crate::client::Measured;
use crate::report::Side;
use crate::rows::Through;

const PORT: u16 = 7000;
const SOCKS_PORT: u16 = 1080;
/// As many as the growth rows attach beside the two that are always there.
const CROWD: usize = 100;

/// Pods with label `app: socks` go through the node's SOCKS5 server.
fn policy(socks: SocketAddr) -> String {
    format!(
        "apiVersion: tunproxy.io/v1alpha1\nkind: Upstream\nmetadata: {{name: socks, namespace: default}}\n\
         spec: {{type: SOCKS5, address: \"{socks}\"}}\n---\n\
         apiVersion: tunproxy.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: socks, namespace: default}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: socks}}}}\n  rules:\n\
         \x20 - {{name: all, action: Allow, via: {{upstream: socks}}}}\n"
    )
}

/// Fields are dropped in this order: pods, agent, servers, namespaces.
pub struct Lab {
    pub routed: Pod,
    ours: Option<Ours>,
    _socks: Danted,
    server: Child,
    pub topology: Topology,
    pub address: SocketAddr,
    pub socks_address: SocketAddr,
}

struct Ours {
    direct: Pod,
    socks: Pod,
    /// More pods, added by [`Lab::grow`].
    crowd: Vec<Pod>,
    agent: AgentProcess,
}

pub struct Pod {
    pub attachment: Attachment,
    pub namespace: Arc<Namespace>,
}

/// From where a load starts, and what it asks for its connections.
#[derive(Clone, Debug)]
pub struct Start {
    pub namespace: Arc<Namespace>,
    pub via: Option<SocketAddr>,
}

impl Lab {
    pub fn new(with_ours: bool) -> Result<Self> {
        let topology = Topology::new(Wire::Veth)?;
        let address = SocketAddr::new(Host::Iperf.v4().into(), PORT);
        let socks_address = SocketAddr::new(NODE_V4.into(), SOCKS_PORT);
        let server = start_server(&topology.outside, address)?;
        let socks = Danted::start_towards(UPLINK, &topology.node, socks_address)?;
        let routed = pod(&topology, &network("routed", 1, None)?, "routed")?;
        // A measurement opens more connections than there are ports a minute.
        many_ports(&topology.node)?;
        let ours = with_ours.then(|| Ours::new(&topology, socks_address)).transpose()?;
        Ok(Self { routed, ours, _socks: socks, server, topology, address, socks_address })
    }

    pub fn agent(&self) -> Option<&AgentProcess> {
        self.ours.as_ref().map(|ours| &ours.agent)
    }

    /// Where a side's load starts; `None` where that side is not measured.
    pub fn start(&self, side: Side, through: Through) -> Option<Start> {
        let from = |pod: &Pod, via| Start { namespace: Arc::clone(&pod.namespace), via };
        match (side, through) {
            (Side::Routed, Through::Nothing) => Some(from(&self.routed, None)),
            (Side::Routed, Through::Socks) => Some(from(&self.routed, Some(self.socks_address))),
            (Side::Ours, Through::Nothing) => Some(from(&self.ours.as_ref()?.direct, None)),
            (Side::Ours, Through::Socks) => Some(from(&self.ours.as_ref()?.socks, None)),
            (Side::Peer(_), _) => None,
        }
    }

    /// Attaches pods until there are `count` in all beside the one that goes through SOCKS5; gives the first `count`.
    pub fn grow(&mut self, count: usize) -> Result<Vec<Arc<Namespace>>> {
        let ours = self.ours.as_mut().context("no agent")?;
        let network = network("crowd", 3, Some(&ours.agent))?;
        while ours.crowd.len() + 1 < count.min(CROWD) {
            let name = format!("crowd{}", ours.crowd.len());
            ours.crowd.push(pod(&self.topology, &network, &name)?);
        }
        let all = std::iter::once(&ours.direct).chain(&ours.crowd);
        Ok(all.take(count).map(|pod| Arc::clone(&pod.namespace)).collect())
    }

    /// One measurement; `pods` are entered in turn, or none.
    pub fn load(&self, start: &Start, pods: &[Arc<Namespace>], arguments: &str) -> Result<Measured> {
        let text = run_command(self.client(start, pods).args(arguments.split_whitespace()))?;
        serde_json::from_str(&text).with_context(|| format!("the load generator printed {text:?}"))
    }

    /// Opens `count` connections over `pods`, or from `start`, and holds them until they are dropped.
    pub fn hold(&self, start: &Start, pods: &[Arc<Namespace>], count: usize) -> Result<Held> {
        let mut command = self.client(start, pods);
        let mut child = command
            .args(["idle", &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        wait_for_ready(&mut child)?;
        Ok(Held { child })
    }

    /// Opens `count` connections over `pods`, and has each of them watched for its reset.
    pub fn doom(&self, start: &Start, pods: &[Arc<Namespace>], count: usize) -> Result<Doomed> {
        let mut command = self.client(start, pods);
        let mut child = command.args(["doomed", &count.to_string()]).stdout(Stdio::piped()).spawn()?;
        let output = read_ready(&mut child)?;
        Ok(Doomed { child, output })
    }

    fn client(&self, start: &Start, pods: &[Arc<Namespace>]) -> Command {
        let mut command = start.namespace.command(std::env::current_exe().unwrap_or_default());
        command.args(["load", &self.address.to_string()]);
        if let Some(via) = start.via {
            command.args(["--via", &via.to_string()]);
        }
        for pod in pods {
            command.arg("--netns").arg(pod.path());
        }
        command
    }

    /// A pod of its own on the routed path, and one of ours whose only interface is the TUN.
    pub fn pod_of(&self, side: Side, name: &str, index: u8) -> Result<Pod> {
        let network = match side {
            Side::Routed | Side::Peer(_) => network(name, index, None)?,
            Side::Ours => standalone(name, index, self.agent().context("no agent")?)?,
        };
        pod(&self.topology, &network, name)
    }

    /// The network of further pods, for the rows that attach and detach them.
    pub fn network(&self, name: &str, index: u8) -> Result<Arc<CniNetwork>> {
        network(name, index, self.agent())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Ours {
    fn new(topology: &Topology, socks: SocketAddr) -> Result<Self> {
        let options = AgentOptions {
            policies: vec![("socks.yaml".to_owned(), policy(socks))],
            // A pod alone is to hold as many flows as there are descriptors for.
            extra: "limits: {flowsPerPod: 20000}\n".to_owned(),
            ..AgentOptions::default()
        };
        let agent = AgentProcess::start(&topology.node, &options)?;
        let network = network("ours", 2, Some(&agent))?;
        let direct = pod(topology, &network, "direct")?;
        let socks = pod(topology, &network, "socks")?;
        Ok(Self { direct, socks, crowd: Vec::new(), agent })
    }
}

/// Connections that are open and idle, until the value is dropped.
pub struct Held {
    child: Child,
}

impl Held {
    pub fn close(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        ensure!(self.child.wait()?.success(), "the holder of idle connections failed");
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connections that wait for their reset.
pub struct Doomed {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Doomed {
    /// When the last one came, in milliseconds since 1970.
    pub fn last_reset(mut self) -> Result<f64> {
        let mut text = String::new();
        self.output.read_to_string(&mut text)?;
        ensure!(self.child.wait()?.success(), "not every connection was reset");
        Ok(serde_json::from_str::<Measured>(&text)?.value)
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn network(name: &str, index: u8, agent: Option<&AgentProcess>) -> Result<Arc<CniNetwork>> {
    let name = format!("bench-{name}-{}", std::process::id());
    let Some(agent) = agent else {
        return Ok(Arc::new(CniNetwork::new(&name, None)?.with_main(MainPlugin::Ptp, index)));
    };
    let plugin = Program::Plugin.path()?;
    let network = CniNetwork::new(&name, plugin.parent())?;
    Ok(Arc::new(network.with_main(MainPlugin::Ptp, index).with_plugin(agent.plugin_configuration())))
}

fn standalone(name: &str, index: u8, agent: &AgentProcess) -> Result<Arc<CniNetwork>> {
    let name = format!("bench-{name}-{}", std::process::id());
    let network = CniNetwork::new(&name, Program::Plugin.path()?.parent())?;
    let mut plugin = agent.plugin_configuration();
    plugin["ipam"] = network.host_local(index);
    plugin["mtu"] = serde_json::json!(1500);
    Ok(Arc::new(network.with_plugin(plugin)))
}

fn pod(topology: &Topology, network: &Arc<CniNetwork>, name: &str) -> Result<Pod> {
    let namespace = topology.pod_namespace(name)?;
    let identity = PodIdentity::new("default", name, &[("app", name)]);
    let attachment = network.attach(&topology.node, &namespace, &identity)?;
    many_ports(&namespace)?;
    Ok(Pod { attachment, namespace })
}

fn many_ports(namespace: &Namespace) -> Result<()> {
    namespace.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
    namespace.sysctl("net.ipv4.ip_local_port_range", "1024 65000")
}

fn start_server(outside: &Namespace, address: SocketAddr) -> Result<Child> {
    let mut command = outside.command(std::env::current_exe()?);
    let mut server = command.args(["serve", &address.to_string()]).stdout(Stdio::piped()).spawn()?;
    wait_for_ready(&mut server)?;
    Ok(server)
}

fn wait_for_ready(child: &mut Child) -> Result<()> {
    let mut reader = read_ready(child)?;
    // The pipe stays open: a later line must not end the child.
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    Ok(())
}

fn read_ready(child: &mut Child) -> Result<BufReader<ChildStdout>> {
    let output = child.stdout.take().context("no standard output")?;
    let mut line = String::new();
    let mut reader = BufReader::new(output);
    reader.read_line(&mut line)?;
    ensure!(line.trim() == "ready", "the load generator said {line:?} instead of ready");
    Ok(reader)
}
