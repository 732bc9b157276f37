//! Other programs that do the same work, beside us in the same run: each as its own documentation has it used.
//!
//! pasta makes a namespace's network by itself. tun2proxy and shadowsocks own a TUN of the node, into which a routed pod's
//! packets are led: neither opens a TUN of another namespace. Both go out directly, so that nothing but their own work is
//! measured; tun2proxy asks the node's SOCKS5 server too.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tempfile::TempDir;
use tunproxy_testkit::Namespace;
use tunproxy_testkit::process::{self, Background};

use crate::lab::{Lab, Pod, Start};
use crate::report::Side;
use crate::rows::Through;

const START: Duration = Duration::from_secs(20);
pub const PASTA: &str = "pasta";
pub const TUN2PROXY: &str = "tun2proxy";
pub const SHADOWSOCKS: &str = "shadowsocks";
pub const NAMES: [&str; 3] = [PASTA, TUN2PROXY, SHADOWSOCKS];

/// A running peer; fields are dropped in this order.
pub struct Peer {
    pub name: &'static str,
    pub through: Through,
    process: Background,
    namespace: Arc<Namespace>,
    _pod: Option<Pod>,
    _scratch: TempDir,
}

impl Peer {
    /// Starts it and waits until it carries; `programs` holds those that are no Debian package.
    pub fn start(lab: &Lab, programs: &Path, name: &'static str, through: Through) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("tpt-peer-").tempdir()?;
        let (process, namespace, pod) = match name {
            PASTA => pasta(lab, scratch.path())?,
            TUN2PROXY => tun2proxy(lab, &program(programs, "tun2proxy-bin")?, scratch.path(), through)?,
            _ => shadowsocks(lab, &program(programs, "sslocal")?, scratch.path())?,
        };
        let mut peer = Self { name, through, process, namespace, _pod: pod, _scratch: scratch };
        peer.wait_ready(lab.address)?;
        Ok(peer)
    }

    pub fn side(&self) -> Side {
        Side::Peer(self.name)
    }

    pub fn starting_point(&self) -> Start {
        Start { namespace: Arc::clone(&self.namespace), via: None }
    }

    pub fn cpu_time(&self) -> Result<Duration> {
        process::cpu_time(self.process.pid())
    }

    pub fn rss_kib(&self) -> Result<u64> {
        process::memory_kib(self.process.pid(), "VmRSS:")
    }

    fn wait_ready(&mut self, server: SocketAddr) -> Result<()> {
        let namespace = &self.namespace;
        self.process.wait_ready(START, || namespace.accepts(server, Duration::from_secs(1)))
    }
}

type Started = (Background, Arc<Namespace>, Option<Pod>);

fn program(folder: &Path, name: &str) -> Result<PathBuf> {
    let file = folder.join(name);
    anyhow::ensure!(file.exists(), "there is no {}", file.display());
    Ok(file)
}

fn pasta(lab: &Lab, scratch: &Path) -> Result<Started> {
    let namespace = lab.topology.pod_namespace(PASTA)?;
    let mut command = lab.topology.node.command(PASTA);
    // No port is forwarded into the namespace, and as ours it is not kept from root's own files.
    command.args("--foreground --quiet --config-net --netns-only --runas 0 --mtu 1500".split_whitespace());
    command.args("-t none -u none -T none -U none --ns-ifname eth0 --netns".split_whitespace());
    command.arg(namespace.path());
    let process = Background::spawn(&mut command, PASTA, &scratch.join("log"))?;
    Ok((process, namespace, None))
}

fn tun2proxy(lab: &Lab, program: &Path, scratch: &Path, through: Through) -> Result<Started> {
    let (tun, proxy, number) = match through {
        Through::Nothing => ("peer0", "none".to_owned(), 30),
        Through::Socks => ("peer1", format!("socks5://{}", lab.socks_address), 31),
    };
    let mut command = lab.topology.node.command(program);
    command.args(["--tun", tun, "--proxy", &proxy, "--mtu", "1500", "--max-sessions", "20000"]);
    command.args(["--verbosity", "warn"]);
    let process = Background::spawn(&mut command, TUN2PROXY, &scratch.join("log"))?;
    lead_pod(lab, TUN2PROXY, number, tun, process)
}

fn shadowsocks(lab: &Lab, program: &Path, scratch: &Path) -> Result<Started> {
    let tun = "peer2";
    let (configuration, rules) = (scratch.join("config.json"), scratch.join("direct.acl"));
    // Everything goes past the server, which must be named all the same.
    fs::write(&rules, "[bypass_all]\n")?;
    let text = json!({
        "server": "127.0.0.1", "server_port": 8388, "password": "none", "method": "none", "mode": "tcp_and_udp",
        "locals": [{
            "protocol": "tun", "mode": "tcp_and_udp",
            "tun_interface_name": tun, "tun_interface_address": "10.255.2.1/24",
        }],
    });
    fs::write(&configuration, text.to_string())?;
    let mut command = lab.topology.node.command(program);
    command.arg("--config").arg(configuration).arg("--acl").arg(rules).args(["--nofile", "20000"]);
    let process = Background::spawn(&mut command, SHADOWSOCKS, &scratch.join("log"))?;
    lead_pod(lab, SHADOWSOCKS, 32, tun, process)
}

/// A routed pod whose packets the node leads into the TUN of `process`; what comes out of it finds the pod by its route.
fn lead_pod(lab: &Lab, name: &str, number: u8, tun: &str, mut process: Background) -> Result<Started> {
    let node = &lab.topology.node;
    process.wait_ready(START, || node.ip(&format!("link show {tun}")).is_ok())?;
    // tun2proxy leaves this to whoever starts it.
    node.ip(&format!("link set {tun} mtu 1500 txqueuelen 5000 up"))?;
    let pod = lab.pod_of(Side::Routed, name, number)?;
    let address = pod.attachment.addresses().into_iter().find(std::net::IpAddr::is_ipv4);
    let address = address.context("the pod has no IPv4 address")?;
    let route = node.ip_json(&format!("route get {address}"))?;
    let veth = route[0]["dev"].as_str().context("no route to the pod")?;
    for device in ["all", tun] {
        node.sysctl(&format!("net.ipv4.conf.{device}.rp_filter"), "0")?;
    }
    node.ip(&format!("route add default dev {tun} table {number}"))?;
    node.ip(&format!("rule add iif {veth} lookup {number}"))?;
    Ok((process, Arc::clone(&pod.namespace), Some(pod)))
}

/// What `name` says of itself.
pub fn version(programs: &Path, name: &str) -> String {
    let program = match name {
        PASTA => PathBuf::from(PASTA),
        TUN2PROXY => programs.join("tun2proxy-bin"),
        _ => programs.join("sslocal"),
    };
    let text = process::run(Command::new(program).arg("--version")).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}
