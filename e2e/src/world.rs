//! Node, outside, servers, agent and pods of one test.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tunproxy_testkit::process::{output_with_input, run};
use tunproxy_testkit::servers::{Danted, DnsServer, GitRepository, Iperf, Microsocks, Nginx, Sshd, WebNames};
use tunproxy_testkit::topology::{POD_NETWORK_V4, POD_NETWORK_V6};
use tunproxy_testkit::{
    AgentOptions, AgentProcess, Attachment, CniNetwork, Host, MainPlugin, Namespace, PodIdentity, Program,
    Topology, Wire,
};

/// How a pod's traffic leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// ptp alone: the kernel's routed path, the honest twin of ours.
    Routed,
    /// tunproxy after ptp.
    AfterPtp,
    /// tunproxy after bridge.
    AfterBridge,
    /// tunproxy alone, with host-local.
    Standalone,
}

impl Path {
    pub const OURS: [Self; 3] = [Self::AfterPtp, Self::AfterBridge, Self::Standalone];

    pub const fn is_ours(self) -> bool {
        !matches!(self, Self::Routed)
    }
}

#[derive(Clone, Debug)]
pub struct WorldOptions {
    /// True starts the agent.
    pub agent: bool,
    pub wire: Wire,
    pub agent_options: AgentOptions,
}

impl WorldOptions {
    pub fn for_path(path: Path) -> Self {
        Self { agent: path.is_ours(), wire: Wire::Veth, agent_options: AgentOptions::default() }
    }

    pub fn with_wire(mut self, wire: Wire) -> Self {
        self.wire = wire;
        self
    }

    pub fn with_upstream(mut self, upstream: impl Into<String>) -> Self {
        self.agent_options.upstream = upstream.into();
        self
    }

    pub fn with_policy(mut self, text: &str) -> Self {
        let name = format!("{:02}.yaml", self.agent_options.policies.len());
        self.agent_options.policies.push((name, text.to_owned()));
        self
    }
}

pub const IPERF_PORT: u16 = 5201;
pub const SOCKS_PORT: u16 = 1080;
pub const SOCKS_AUTH_PORT: u16 = 1081;
pub const SOCKS_USER: &str = "pod";
pub const SOCKS_PASSWORD: &str = "p@ss:word";

/// The names that the outside's DNS knows. `allowed.test` and `refused.test` share their addresses, as behind a CDN.
pub const NAMES: [(&str, Host); 7] = [
    ("allowed.test", Host::Web),
    ("refused.test", Host::Web),
    ("other.test", Host::OtherWeb),
    ("ssh.test", Host::Ssh),
    ("iperf.test", Host::Iperf),
    ("far.test", Host::Far),
    ("far-refused.test", Host::Far),
];

/// Fields are dropped in this order: the agent before the servers, those before the namespaces.
#[derive(Debug)]
pub struct World {
    pub agent: Option<AgentProcess>,
    pub nginx: Nginx,
    pub dns: DnsServer,
    pub sshd: Sshd,
    pub danted: Danted,
    pub microsocks: Microsocks,
    pub iperf: Vec<Iperf>,
    pub git: GitRepository,
    pub topology: Topology,
    pub scratch: TempDir,
}

impl World {
    pub fn new(options: &WorldOptions) -> Result<Self> {
        let topology = Topology::new(options.wire)?;
        let outside = &topology.outside;
        count_leaks(outside)?;
        let nginx = Nginx::start(outside, &web_sites())?;
        let git = GitRepository::create(&nginx.files(), "project")?;
        let dns = DnsServer::start(outside, &[Host::Dns.both(), Host::Far.both()].concat(), &records())?;
        let sshd = Sshd::start(outside, &Host::Ssh.both())?;
        let danted = Danted::start(outside, SocketAddr::new(Host::Socks.v4().into(), SOCKS_PORT))?;
        let socks = Host::Socks.v4().into();
        let microsocks = Microsocks::start(outside, socks, SOCKS_AUTH_PORT, SOCKS_USER, SOCKS_PASSWORD)?;
        let iperf = Host::Iperf.both().map(|ip| Iperf::start(outside, ip, IPERF_PORT));
        let iperf = iperf.into_iter().collect::<Result<_>>()?;
        let agent = || AgentProcess::start(&topology.node, &options.agent_options);
        let agent = options.agent.then(agent).transpose()?;
        let scratch = tempfile::Builder::new().prefix("tpt-e2e-").tempdir()?;
        Ok(Self { agent, nginx, dns, sshd, danted, microsocks, iperf, git, topology, scratch })
    }

    pub fn agent(&self) -> &AgentProcess {
        self.agent.as_ref().expect("this world was made with an agent")
    }

    /// Packets that arrived outside with a pod's source address. Ours dials from the node's address, so there every one
    /// is a leak; on the routed path all are.
    pub fn leaks(&self) -> Result<u64> {
        let text = run(self.topology.outside.command("nft").args(["-j", "list", "counters"]))?;
        let document: Value = serde_json::from_str(&text)?;
        let counters = document["nftables"].as_array().into_iter().flatten();
        Ok(counters.filter_map(|entry| entry["counter"]["packets"].as_u64()).sum())
    }

    /// A pod of namespace `default` with label `app: NAME`.
    pub fn pod(&self, path: Path, name: &str) -> Result<Pod> {
        self.pod_as(path, &PodIdentity::new("default", name, &[("app", name)]))
    }

    pub fn pod_as(&self, path: Path, identity: &PodIdentity) -> Result<Pod> {
        let namespace = self.topology.pod_namespace(&identity.name)?;
        let network = Arc::new(self.network(path)?);
        let attachment = network
            .attach(&self.topology.node, &namespace, identity)
            .with_context(|| format!("cannot attach pod {} {path:?}", identity.name))?;
        Ok(Pod { attachment, namespace })
    }

    /// The chain of a path: a network of its own each time, in name (libcni caches results by it) and address range.
    pub fn network(&self, path: Path) -> Result<CniNetwork> {
        use std::sync::atomic::{AtomicU8, Ordering};
        static INDEX: AtomicU8 = AtomicU8::new(0);
        let index = INDEX.fetch_add(1, Ordering::Relaxed);
        let ours = || -> Result<_> { Ok(self.agent().plugin_configuration()) };
        let plugin = Program::Plugin;
        let directory = if path.is_ours() { plugin.path()?.parent().map(ToOwned::to_owned) } else { None };
        let network = CniNetwork::new(&format!("tpt{}-{index}", std::process::id()), directory.as_deref())?;
        Ok(match path {
            Path::Routed => network.with_main(MainPlugin::Ptp, index),
            Path::AfterPtp => network.with_main(MainPlugin::Ptp, index).with_plugin(ours()?),
            Path::AfterBridge => network.with_main(MainPlugin::Bridge, index).with_plugin(ours()?),
            Path::Standalone => {
                let mut own = ours()?;
                own["ipam"] = network.host_local(index);
                own["mtu"] = json!(1500);
                network.with_plugin(own)
            }
        })
    }

    /// `curl` with the test's certificate authority, silent but for errors.
    pub fn curl(&self, arguments: &str) -> String {
        format!("curl -sS --max-time 60 --cacert {} {arguments}", self.nginx.ca().display())
    }
}

/// A pod on its network: its namespace, until it is dropped, which is DEL.
#[derive(Debug)]
pub struct Pod {
    attachment: Attachment,
    namespace: Arc<Namespace>,
}

impl Pod {
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// DEL, with its outcome.
    pub fn detach(mut self) -> Result<()> {
        self.attachment.detach()
    }
}

impl std::ops::Deref for Pod {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

fn count_leaks(outside: &Namespace) -> Result<()> {
    let rules = format!(
        "table inet leaks {{\ncounter v4 {{ }}\ncounter v6 {{ }}\n\
         chain arrivals {{ type filter hook prerouting priority -300;\n\
         ip saddr {POD_NETWORK_V4} counter name v4\nip6 saddr {POD_NETWORK_V6} counter name v6\n}}\n}}\n"
    );
    let output = output_with_input(outside.command("nft").args(["-f", "-"]), rules.as_bytes())?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn web_sites() -> Vec<WebNames> {
    let site =
        |host: Host, name: &str| WebNames { addresses: host.both().to_vec(), names: vec![name.to_owned()] };
    NAMES
        .iter()
        .filter(|(_, host)| matches!(host, Host::Web | Host::OtherWeb | Host::Far))
        .map(|&(name, host)| site(host, name))
        .collect()
}

fn records() -> Vec<(&'static str, IpAddr)> {
    NAMES.iter().flat_map(|&(name, host)| host.both().map(|ip| (name, ip))).collect()
}
