//! The routed path and ours, in alternating rounds of the same run on the same machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tunproxy_testkit::{AgentProcess, Interrupt, Namespace, PodIdentity};

use crate::lab::{Lab, Start};
use crate::peers::Peer;
use crate::report::{Goal, Measure, Report, Row, Side, Unit};
use crate::rows::{LOADS, LoadRow, Through};
use crate::{floods, growth, link, peers, policy_change};

const PTP: &str = "ptp";
const IDLE_MEMORY: &str = "memory per idle flow";
/// No peer is asked for more: one of them has a few thousand at most.
const PEER_IDLE: usize = 1_000;
/// Over so many pods idle connections are held: no pod may take more descriptors of the node than are still free, and of
/// 20,000, the least hard limit that is found in the field, 15,000 are to be held.
pub const IDLE_PODS: usize = 12;

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
    /// Shows that everything runs, with as little of it as can be.
    pub quick: bool,
    /// Where the programs are that are measured beside us, if they are.
    pub peers: Option<PathBuf>,
}

impl Plan {
    pub fn wants(&self, row: &str) -> bool {
        row.contains(&self.only)
    }

    /// Both sides, of which neither always goes first.
    pub fn sides(&self, turn: usize) -> Vec<Side> {
        let mut sides = vec![Side::Routed, Side::Ours];
        sides.truncate(if self.ours { 2 } else { 1 });
        if turn.is_multiple_of(2) {
            sides.reverse();
        }
        sides
    }

    /// `value`, or the little that shows that everything runs.
    pub fn quick<T: Copy>(&self, value: T, short: T) -> T {
        if self.quick { short } else { value }
    }
}

pub fn run(interrupt: &Interrupt, plan: &Plan) -> Result<()> {
    let mut report = Report::default();
    if plan.ours && plan.wants(IDLE_MEMORY) {
        // In a lab of its own: memory that other rows needed would be there already.
        idle_memory(plan, &mut report)?;
    }
    let failed = loads(interrupt, plan, &mut report)?;
    // Peers have the rows of one load, and the memory of an idle flow.
    if plan.peers.is_none() {
        if plan.ours {
            growth::measure(interrupt, plan, &mut report)?;
            floods::measure(interrupt, plan, &mut report)?;
            policy_change::measure(interrupt, plan, &mut report)?;
        }
        link::measure(interrupt, plan, &mut report)?;
        if plan.wants("ADD, DEL") {
            eprintln!("{} attachments", plan.attachments);
            attachments(interrupt, plan, &mut report)?;
        }
    }
    print!("{report}");
    write_json(plan, &report)?;
    ensure!(failed.is_empty(), "peers that failed:\n{}", failed.join("\n"));
    Ok(())
}

fn write_json(plan: &Plan, report: &Report) -> Result<()> {
    if let Some(file) = &plan.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report.document())?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        println!("everything measured: {}", file.display());
    }
    Ok(())
}

/// Gives what peers could not do; the two sides that are ours to mend end the run instead.
fn loads(interrupt: &Interrupt, plan: &Plan, report: &mut Report) -> Result<Vec<String>> {
    let rows: Vec<&LoadRow> = LOADS.iter().filter(|row| plan.wants(row.name)).collect();
    let mut failed = Vec::new();
    if rows.is_empty() && (plan.peers.is_none() || !plan.wants(IDLE_MEMORY)) {
        return Ok(failed);
    }
    let lab = Lab::new(plan.ours)?;
    let peers = start_peers(plan, &lab, &mut failed);
    if plan.wants(IDLE_MEMORY) {
        for peer in peers.iter().filter(|peer| peer.through == Through::Nothing) {
            interrupt.check()?;
            eprintln!("memory of idle connections, {}", peer.name);
            match peer_memory(&lab, peer, plan.idle.min(PEER_IDLE)) {
                Ok(kib) => report.add(&idle_row(), peer.side(), kib),
                Err(error) => failed.push(format!("{}, {IDLE_MEMORY}: {error:#}", peer.name)),
            }
        }
    }
    for round in 1..=plan.rounds {
        for (index, row) in rows.iter().enumerate() {
            eprintln!("round {round}/{}: {}", plan.rounds, row.name);
            for side in plan.sides(round + index) {
                interrupt.check()?;
                let start = lab.start(side, row.through).context("no such side")?;
                let cpu = || lab.agent().map_or(Ok(Duration::ZERO), AgentProcess::cpu_time);
                measure(&lab, row, side, &start, &cpu, plan.seconds, report)?;
            }
            for peer in peers.iter().filter(|peer| peer.through == row.through) {
                interrupt.check()?;
                let (start, cpu) = (peer.starting_point(), || peer.cpu_time());
                let what = format!("{}, {}: ", peer.name, row.name);
                // What broke off once would take as long to break off again.
                if failed.iter().any(|failure: &String| failure.starts_with(&what)) {
                    continue;
                }
                if let Err(error) = measure(&lab, row, peer.side(), &start, &cpu, plan.seconds, report) {
                    failed.push(format!("{what}{error:#}"));
                }
            }
        }
    }
    Ok(failed)
}

fn start_peers(plan: &Plan, lab: &Lab, failed: &mut Vec<String>) -> Vec<Peer> {
    let Some(programs) = &plan.peers else { return Vec::new() };
    let direct = peers::NAMES.map(|name| (name, Through::Nothing));
    let mut running = Vec::new();
    for (name, through) in direct.into_iter().chain([(peers::TUN2PROXY, Through::Socks)]) {
        match Peer::start(lab, programs, name, through) {
            Ok(peer) => running.push(peer),
            Err(error) => failed.push(format!("{name}: {error:#}")),
        }
    }
    for name in peers::NAMES {
        println!("{name}: {}", peers::version(programs, name));
    }
    running
}

fn measure(
    lab: &Lab,
    row: &LoadRow,
    side: Side,
    start: &Start,
    cpu: &dyn Fn() -> Result<Duration>,
    seconds: f64,
    report: &mut Report,
) -> Result<()> {
    let before = cpu()?;
    // tun2proxy does not pass a half-closed connection's end on.
    let peer = matches!(side, Side::Peer(_)) && row.load.starts_with("bulk");
    let more = if peer { " --unconfirmed" } else { "" };
    let measured = lab.load(start, &[], &format!("{} {seconds}{more}", row.load))?;
    report.add(&Row::new(row.name, row.unit).with_goal(row.goal), side, row.unit.scale(measured.value));
    if let Some(p99) = measured.p99 {
        let row = Row::new(format!("{}, p99", row.name), row.unit).with_goal(row.p99);
        report.add(&row, side, p99);
    }
    if side != Side::Routed && row.unit == Unit::Gbit {
        let gigabits = measured.bytes as f64 * 8.0 / 1e9;
        let row = Row::new(format!("CPU per Gbit, {}", row.name), Unit::Millis);
        report.add(&row, side, millis(cpu()?.saturating_sub(before)) / gigabits);
    }
    Ok(())
}

fn idle_memory(plan: &Plan, report: &mut Report) -> Result<()> {
    eprintln!("memory of {} idle connections", plan.idle);
    let mut lab = Lab::new(true)?;
    let pods = lab.grow(plan.quick(IDLE_PODS, 2))?;
    let grown = idle_growth(&lab, &pods, plan.idle)?;
    report.add(&idle_row(), Side::Ours, grown);
    Ok(())
}

fn idle_row() -> Row {
    Row::new(IDLE_MEMORY, Unit::Kib).with_goal(Goal::new(Measure::AtMost, 1.0, 0.3))
}

fn peer_memory(lab: &Lab, peer: &Peer, count: usize) -> Result<f64> {
    let before = peer.rss_kib()?;
    let held = lab.hold(&peer.starting_point(), &[], count)?;
    let grown = peer.rss_kib()?.saturating_sub(before);
    held.close()?;
    Ok(grown as f64 / count as f64)
}

/// KiB of the agent's resident memory for each of `count` connections that are opened over `pods`.
fn idle_growth(lab: &Lab, pods: &[Arc<Namespace>], count: usize) -> Result<f64> {
    let agent = lab.agent().context("no agent")?;
    let start = lab.start(Side::Ours, Through::Nothing).context("no agent")?;
    let before = agent.rss_kib()?;
    let held = lab.hold(&start, pods, count)?;
    let grown = agent.rss_kib()?.saturating_sub(before);
    held.close()?;
    Ok(grown as f64 / count as f64)
}

/// ADD and DEL as whole processes; ptp's own are those of the same chains.
fn attachments(interrupt: &Interrupt, plan: &Plan, report: &mut Report) -> Result<()> {
    let lab = Lab::new(plan.ours)?;
    let network = lab.network("calls", 4)?;
    for number in 0..plan.attachments {
        interrupt.check()?;
        let namespace = lab.topology.pod_namespace(&format!("calls{number}"))?;
        let identity = PodIdentity::new("default", &format!("calls{number}"), &[]);
        let mut attachment = network.attach(&lab.topology.node, &namespace, &identity)?;
        attachment.detach()?;
        for call in attachment.calls() {
            let side = if call.plugin == PTP { Side::Routed } else { Side::Ours };
            let row = Row::new(format!("{} (routed: ptp's own)", call.verb), Unit::Millis)
                .with_goal(Goal::only(Measure::AtMost, 10.0));
            report.add(&row, side, millis(call.took));
        }
    }
    Ok(())
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}
