//! The routed path and ours, in alternating rounds of the same run on the same machine.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tunproxy_testkit::process::run as run_command;
use tunproxy_testkit::{
    AgentOptions, AgentProcess, Attachment, CniNetwork, Host, Interrupt, MainPlugin, Namespace, PodIdentity,
    Program, Topology, Wire,
};

use crate::client::Measured;
use crate::report::{Aim, Report, Row, Side, Unit};

const PORT: u16 = 7000;
const PTP: &str = "ptp";
const IDLE_MEMORY: &str = "agent memory per idle flow";

#[derive(Clone, Debug)]
pub struct Plan {
    pub rounds: usize,
    pub seconds: f64,
    pub idle: usize,
    pub attachments: usize,
    pub json: Option<PathBuf>,
    /// Only rows whose name holds it.
    pub only: String,
    pub ours: bool,
}

impl Plan {
    fn wants(&self, row: &str) -> bool {
        row.contains(&self.only)
    }
}

/// Which load a row runs, and what it aims at.
struct LoadRow {
    name: &'static str,
    load: &'static str,
    unit: Unit,
    aim: Option<Aim>,
}

const LOADS: [LoadRow; 8] = [
    LoadRow { name: "TCP up, 1 stream", load: "bulk up 1", unit: Unit::Gbit, aim: Some(Aim::Ratio(0.75)) },
    LoadRow {
        name: "TCP down, 1 stream",
        load: "bulk down 1",
        unit: Unit::Gbit,
        aim: Some(Aim::Ratio(0.55)),
    },
    LoadRow { name: "TCP up, 8 streams", load: "bulk up 8", unit: Unit::Gbit, aim: Some(Aim::Ratio(0.5)) },
    LoadRow {
        name: "TCP down, 8 streams",
        load: "bulk down 8",
        unit: Unit::Gbit,
        aim: Some(Aim::Ratio(0.5)),
    },
    LoadRow {
        name: "connections, 32 at once",
        load: "connect 32",
        unit: Unit::PerSecond,
        aim: Some(Aim::Ratio(0.65)),
    },
    LoadRow {
        name: "1-byte round trip",
        load: "round-trip",
        unit: Unit::Micros,
        aim: Some(Aim::Added(35.0)),
    },
    LoadRow {
        name: "UDP 64 B, 32 under way",
        load: "datagrams 32",
        unit: Unit::PerSecond,
        aim: Some(Aim::Ratio(0.5)),
    },
    LoadRow {
        name: "UDP 1400 B up, 1 flow",
        load: "flood",
        unit: Unit::PerSecond,
        aim: Some(Aim::Ratio(0.5)),
    },
];

/// Fields are dropped in this order: pods, agent, server, namespaces.
struct Bench {
    routed: Pod,
    ours: Option<Pod>,
    agent: Option<AgentProcess>,
    server: Child,
    topology: Topology,
    address: SocketAddr,
}

struct Pod {
    _attachment: Attachment,
    namespace: Arc<Namespace>,
}

pub fn run(interrupt: &Interrupt, plan: Plan) -> Result<()> {
    let mut report = Report::default();
    let bench = Bench::new(plan.ours)?;
    // First of all: later, memory that other rows needed would be there already.
    if let Some(agent) = bench.agent.as_ref().filter(|_| plan.wants(IDLE_MEMORY)) {
        eprintln!("memory of {} idle connections", plan.idle);
        bench.idle_memory(agent, plan.idle, &mut report)?;
    }
    for round in 1..=plan.rounds {
        for (index, row) in LOADS.iter().enumerate().filter(|(_, row)| plan.wants(row.name)) {
            eprintln!("round {round}/{}: {}", plan.rounds, row.name);
            // Neither side always goes first.
            let mut sides = [Side::Routed, Side::Ours];
            if (round + index) % 2 == 0 {
                sides.reverse();
            }
            for side in sides {
                interrupt.check()?;
                bench.measure(row, side, plan.seconds, &mut report)?;
            }
        }
    }
    if plan.wants("ADD, DEL") {
        eprintln!("{} attachments", plan.attachments);
        bench.attachments(interrupt, plan.attachments, &mut report)?;
    }
    drop(bench);
    print!("{report}");
    if let Some(file) = plan.json {
        std::fs::write(&file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        println!("everything measured: {}", file.display());
    }
    Ok(())
}

impl Bench {
    fn new(with_ours: bool) -> Result<Self> {
        let topology = Topology::new(Wire::Veth)?;
        let address = SocketAddr::new(Host::Iperf.v4().into(), PORT);
        let server = start_server(&topology.outside, address)?;
        let agent =
            with_ours.then(|| AgentProcess::start(&topology.node, &AgentOptions::default())).transpose()?;
        let routed = pod(&topology, &network("routed", 1, None)?)?;
        let ours =
            agent.as_ref().map(|agent| pod(&topology, &network("ours", 2, Some(agent))?)).transpose()?;
        for end in [&routed].into_iter().chain(&ours) {
            // A measurement opens more connections than there are ports a minute.
            end.namespace.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
            end.namespace.sysctl("net.ipv4.ip_local_port_range", "1024 65000")?;
        }
        topology.node.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
        topology.node.sysctl("net.ipv4.ip_local_port_range", "1024 65000")?;
        Ok(Self { routed, ours, agent, server, topology, address })
    }

    fn measure(&self, row: &LoadRow, side: Side, seconds: f64, report: &mut Report) -> Result<()> {
        let pod = match side {
            Side::Routed => &self.routed,
            Side::Ours => match &self.ours {
                Some(pod) => pod,
                None => return Ok(()),
            },
        };
        let cpu = || self.agent.as_ref().map(AgentProcess::cpu_time).transpose();
        let before = cpu()?;
        let measured = self.load(&pod.namespace, &format!("{} {seconds}", row.load))?;
        report.add(
            &Row { name: row.name.to_owned(), unit: row.unit, aim: row.aim },
            side,
            row.unit.scale(measured.value),
        );
        if let Some(p99) = measured.p99 {
            let row = Row { name: format!("{}, p99", row.name), unit: row.unit, aim: None };
            report.add(&row, side, p99);
        }
        if let (Side::Ours, Unit::Gbit, Some(before), Some(after)) = (side, row.unit, before, cpu()?) {
            let gigabits = measured.bytes as f64 * 8.0 / 1e9;
            let row =
                Row { name: format!("agent CPU per Gbit, {}", row.name), unit: Unit::Millis, aim: None };
            report.add(&row, side, (after.saturating_sub(before)).as_secs_f64() * 1e3 / gigabits);
        }
        Ok(())
    }

    fn load(&self, pod: &Namespace, arguments: &str) -> Result<Measured> {
        let text = run_command(self.client(pod).args(arguments.split_whitespace()))?;
        serde_json::from_str(&text).with_context(|| format!("the load generator printed {text:?}"))
    }

    fn client(&self, pod: &Namespace) -> Command {
        let mut command = pod.command(std::env::current_exe().unwrap_or_default());
        command.args(["load", &self.address.to_string()]);
        command
    }

    fn idle_memory(&self, agent: &AgentProcess, count: usize, report: &mut Report) -> Result<()> {
        let Some(pod) = &self.ours else { return Ok(()) };
        let before = agent.rss_kib()?;
        let mut command = self.client(&pod.namespace);
        let mut holder = command
            .args(["idle", &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        wait_for_ready(&mut holder)?;
        let grown = agent.rss_kib()?.saturating_sub(before);
        drop(holder.stdin.take());
        ensure!(holder.wait()?.success(), "the holder of idle connections failed");
        let row = Row { name: IDLE_MEMORY.to_owned(), unit: Unit::Kib, aim: Some(Aim::AtMost(1.0)) };
        report.add(&row, Side::Ours, grown as f64 / count as f64);
        Ok(())
    }

    /// ADD and DEL as whole processes; ptp's own are those of the same chains.
    fn attachments(&self, interrupt: &Interrupt, count: usize, report: &mut Report) -> Result<()> {
        let network = network("calls", 3, self.agent.as_ref())?;
        for number in 0..count {
            interrupt.check()?;
            let namespace = self.topology.pod_namespace(&format!("calls{number}"))?;
            let identity = PodIdentity::new("default", &format!("calls{number}"), &[]);
            let mut attachment = network.attach(&self.topology.node, &namespace, &identity)?;
            attachment.detach()?;
            for call in attachment.calls() {
                let side = if call.plugin == PTP { Side::Routed } else { Side::Ours };
                let row = Row {
                    name: format!("{} (routed: ptp's own)", call.verb),
                    unit: Unit::Millis,
                    aim: Some(Aim::AtMost(10.0)),
                };
                report.add(&row, side, millis(call.took));
            }
        }
        Ok(())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn network(name: &str, index: u8, agent: Option<&AgentProcess>) -> Result<Arc<CniNetwork>> {
    let name = format!("bench-{name}-{}", std::process::id());
    let Some(agent) = agent else {
        return Ok(Arc::new(CniNetwork::new(&name, None)?.with_main(MainPlugin::Ptp, index)));
    };
    let plugin = Program::Plugin.path()?;
    let network = CniNetwork::new(&name, plugin.parent())?.with_main(MainPlugin::Ptp, index);
    Ok(Arc::new(network.with_plugin(agent.plugin_configuration())))
}

fn pod(topology: &Topology, network: &Arc<CniNetwork>) -> Result<Pod> {
    let namespace = topology.pod_namespace("bench")?;
    let attachment =
        network.attach(&topology.node, &namespace, &PodIdentity::new("default", "bench", &[]))?;
    Ok(Pod { _attachment: attachment, namespace })
}

fn start_server(outside: &Namespace, address: SocketAddr) -> Result<Child> {
    let mut command = outside.command(std::env::current_exe()?);
    let mut server = command.args(["serve", &address.to_string()]).stdout(Stdio::piped()).spawn()?;
    wait_for_ready(&mut server)?;
    Ok(server)
}

fn wait_for_ready(child: &mut Child) -> Result<()> {
    let output = child.stdout.take().context("no standard output")?;
    let mut line = String::new();
    let mut reader = BufReader::new(output);
    reader.read_line(&mut line)?;
    ensure!(line.trim() == "ready", "the load generator said {line:?} instead of ready");
    // The pipe stays open: a later line must not end the child.
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    Ok(())
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}
