//! Linux's TCP in the pod against ours over bad links: every octet arrives, both ways at once, and both ends end.
//!
//! The link lies behind the pod ([`Behind`]): the packets that it loses, repeats, delays and reorders are those between the
//! kernel's TCP and the agent's engine. What this costs in throughput is for `make bench` (rows "link").

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tunproxy_e2e::Report;
use tunproxy_testkit::link::{LinkConfig, LinkStats};
use tunproxy_testkit::{
    AgentOptions, AgentProcess, Attachment, Behind, CniNetwork, Host, PodIdentity, Program, Topology, Wire,
    root_or_skip,
};

/// Octets each way. At 400 ms and 5 % loss, where the kernel's reno takes a second for 30,000, a row takes a quarter of a
/// minute.
const LENGTH: usize = 300_000;
const LIMIT: Duration = Duration::from_mins(3);

const LOSSES: [f64; 5] = [0.0, 0.005, 0.01, 0.02, 0.05];
/// One way, in milliseconds.
const DELAYS: [u64; 5] = [0, 5, 20, 60, 200];
const KINDS: [Kind; 5] = [Kind::Plain, Kind::Reordering, Kind::Duplicating, Kind::Slow, Kind::Everything];

/// What a link does beside losing and delaying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    /// A tenth of the frames comes 3 ms late.
    Reordering,
    Duplicating,
    /// 4 Mbit/s, with a queue that overflows.
    Slow,
    Everything,
}

fn link(loss: f64, delay: u64, kind: Kind) -> LinkConfig {
    let delay = Duration::from_millis(delay);
    let has = |wanted: Kind| kind == wanted || kind == Kind::Everything;
    LinkConfig {
        loss,
        delay,
        duplicate: if has(Kind::Duplicating) { 0.05 } else { 0.0 },
        reorder: if has(Kind::Reordering) { 0.1 } else { 0.0 },
        reorder_by: Duration::from_millis(3),
        rate: has(Kind::Slow).then_some(4_000_000),
    }
}

/// A machine behind a pod of its own, and where it connects to. Fields are dropped in this order.
struct Cell {
    name: String,
    link: LinkConfig,
    behind: Behind,
    _attachment: Attachment,
    listeners: Vec<TcpListener>,
    seed: u64,
}

/// Each loss meets each kind, and each of both meets each delay.
#[test]
fn every_octet_arrives_over_every_link() {
    if !root_or_skip() {
        return;
    }
    let topology = Topology::new(Wire::Veth).unwrap();
    let agent = AgentProcess::start(&topology.node, &AgentOptions::default()).unwrap();
    let network = Arc::new(network(&agent).unwrap());
    let places = (0..LOSSES.len()).flat_map(|loss| (0..KINDS.len()).map(move |kind| (loss, kind)));
    let cells: Vec<Cell> = places
        .map(|(loss, kind)| {
            let delay = DELAYS[(loss + kind) % DELAYS.len()];
            let name = format!("{} % lost, {delay} ms, {:?}", LOSSES[loss] * 100.0, KINDS[kind]);
            let link = link(LOSSES[loss], delay, KINDS[kind]);
            Cell::new(&topology, &network, name, link, (loss * KINDS.len() + kind) as u64).unwrap()
        })
        .collect();
    let mut report = Report::default();
    thread::scope(|scope| {
        let runs: Vec<_> = cells.iter().map(|cell| scope.spawn(|| cell.run(&agent))).collect();
        for (cell, run) in cells.iter().zip(runs) {
            report.row(cell.name.clone(), || run.join().expect("a cell's thread"));
        }
    });
    report.finish();
}

/// The TUN is the pod's only interface.
fn network(agent: &AgentProcess) -> Result<CniNetwork> {
    let network = CniNetwork::new(&format!("links{}", std::process::id()), Program::Plugin.path()?.parent())?;
    let mut plugin = agent.plugin_configuration();
    plugin["ipam"] = network.host_local(9);
    plugin["mtu"] = json!(1500);
    Ok(network.with_plugin(plugin))
}

impl Cell {
    fn new(
        topology: &Topology,
        network: &Arc<CniNetwork>,
        name: String,
        link: LinkConfig,
        seed: u64,
    ) -> Result<Self> {
        let pod = topology.pod_namespace(&format!("link{seed}"))?;
        let identity = PodIdentity::new("default", &format!("link{seed}"), &[]);
        let attachment = network.attach(&topology.node, &pod, &identity)?;
        let behind = Behind::new(&pod, "eth0", &attachment.addresses(), [link; 2], seed)?;
        let listen = |ip: IpAddr| topology.outside.tcp_listen(SocketAddr::new(ip, 20_000 + seed as u16));
        let listeners = Host::Web.both().map(listen).into_iter().collect::<std::io::Result<_>>()?;
        Ok(Self { name, link, behind, _attachment: attachment, listeners, seed })
    }

    /// Both families over the one link.
    fn run(&self, agent: &AgentProcess) -> Result<()> {
        thread::scope(|scope| {
            let runs: Vec<_> =
                self.listeners.iter().map(|listener| scope.spawn(|| self.exchange(listener))).collect();
            runs.into_iter().try_for_each(|run| run.join().expect("a family's thread"))
        })?;
        for direction in [self.behind.link.forward(), self.behind.link.back()] {
            self.was_bad(direction)?;
        }
        for listener in &self.listeners {
            let to = listener.local_addr()?.to_string();
            let flow = agent.wait_for_flow(&to, |flow| flow["destination"] == *to)?;
            ensure!(flow["close"] == "finished", "{flow}");
            ensure!(flow["bytesSent"] == LENGTH && flow["bytesReceived"] == LENGTH, "{flow}");
        }
        Ok(())
    }

    fn exchange(&self, listener: &TcpListener) -> Result<()> {
        let to = listener.local_addr()?;
        let near =
            self.behind.namespace.tcp_connect(to, LIMIT).with_context(|| format!("connect to {to}"))?;
        // The agent has connected: no SYN|ACK before that.
        let (far, _) = listener.accept()?;
        let (up, down) = (octets(2 * self.seed), octets(2 * self.seed + 1));
        thread::scope(|scope| {
            let ends = [
                scope.spawn(|| swap(&near, &up, &down).context("the pod's end")),
                scope.spawn(|| swap(&far, &down, &up).context("the end outside")),
            ];
            ends.into_iter().try_for_each(|end| end.join().expect("an end's thread"))
        })
        .with_context(|| format!("with {to}"))
    }

    fn was_bad(&self, direction: &LinkStats) -> Result<()> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let happened = [
            (self.link.loss > 0.0, count(&direction.lost)),
            (self.link.reorder > 0.0, count(&direction.reordered)),
            (self.link.duplicate > 0.0, count(&direction.duplicated)),
        ];
        ensure!(happened.iter().all(|&(wanted, count)| (count > 0) == wanted), "{direction:?}");
        ensure!(count(&direction.carried) > 400, "super-segments, or another way: {direction:?}");
        Ok(())
    }
}

fn octets(seed: u64) -> Vec<u8> {
    let mut octets = vec![0; LENGTH];
    fastrand::Rng::with_seed(seed).fill(&mut octets);
    octets
}

/// Sends all of `ours` and reads all of `theirs` at the same time, each to its end.
fn swap(stream: &TcpStream, ours: &[u8], theirs: &[u8]) -> Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<()> {
            let mut stream = stream;
            stream.write_all(ours).context("send")?;
            stream.shutdown(Shutdown::Write).context("shutdown")
        });
        let mut received = Vec::with_capacity(theirs.len());
        let outcome = { stream }.read_to_end(&mut received).context("receive");
        sending.join().expect("the sending thread")?;
        outcome?;
        let differs = received.iter().zip(theirs).position(|(got, sent)| got != sent);
        ensure!(differs.is_none(), "octet {differs:?} is wrong");
        ensure!(received.len() == theirs.len(), "{} octets of {}", received.len(), theirs.len());
        Ok(())
    })
}
