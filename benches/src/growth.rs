//! What a connection costs the agent beside few and many flows, and with few and many pods: it is to cost the same.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tunproxy_testkit::{Interrupt, Namespace};

use crate::compare::{IDLE_PODS, Plan};
use crate::lab::{Lab, Start};
use crate::report::{Goal, Measure, Report, Row, Side, Unit};
use crate::rows::Through;

/// Within 15 %: the rest is the scheduler's and the caches'.
const FLAT: f64 = 1.15;

const POD_STEPS: [(usize, &str); 3] = [
    (1, "growth: agent CPU a connection, 1 pod"),
    (10, "growth: agent CPU a connection, 10 pods"),
    (100, "growth: agent CPU a connection, 100 pods"),
];

/// Open flows, the row of a new connection beside them, and that of a round trip on one of them.
const FLOW_STEPS: [(usize, &str, &str); 3] = [
    (10, "growth: agent CPU a connection, 10 flows", "growth: agent CPU a round trip, 10 flows"),
    (1_000, "growth: agent CPU a connection, 1,000 flows", "growth: agent CPU a round trip, 1,000 flows"),
    (15_000, "growth: agent CPU a connection, 15,000 flows", "growth: agent CPU a round trip, 15,000 flows"),
];

const IDLE: &str = "growth: idle agent, 100 pods";

pub fn measure(interrupt: &Interrupt, plan: &Plan, report: &mut Report) -> Result<()> {
    let pods = POD_STEPS.iter().any(|(_, row)| plan.wants(row));
    let flows = FLOW_STEPS.iter().any(|(_, connect, trip)| plan.wants(connect) || plan.wants(trip));
    if !pods && !flows && !plan.wants(IDLE) {
        return Ok(());
    }
    let mut lab = Lab::new(true)?;
    let start = lab.start(Side::Ours, Through::Nothing).context("no agent")?;
    // Whatever grows once is to have grown.
    cost(&lab, &start, &[], "connect 32", plan.seconds)?;
    if pods || plan.wants(IDLE) {
        by_pods(interrupt, plan, &mut lab, &start, report)?;
    }
    if flows {
        by_flows(interrupt, plan, &mut lab, &start, report)?;
    }
    Ok(())
}

/// Connections from all pods in turn, and at last nothing at all.
fn by_pods(
    interrupt: &Interrupt,
    plan: &Plan,
    lab: &mut Lab,
    start: &Start,
    report: &mut Report,
) -> Result<()> {
    for (count, name) in POD_STEPS {
        let pods = lab.grow(plan.quick(count, count.min(3)))?;
        for round in 1..=plan.rounds {
            interrupt.check()?;
            eprintln!("round {round}/{}: {name}", plan.rounds);
            let micros = cost(lab, start, &pods, "connect 32", plan.seconds)?;
            report.add(&row(name, POD_STEPS[0].1), Side::Ours, micros);
        }
    }
    for round in 1..=plan.rounds {
        interrupt.check()?;
        eprintln!("round {round}/{}: {IDLE}", plan.rounds);
        let agent = lab.agent().context("no agent")?;
        let time = Duration::from_secs_f64(plan.seconds * plan.quick(5.0, 1.0));
        let before = agent.cpu_time()?;
        std::thread::sleep(time);
        let used = agent.cpu_time()?.saturating_sub(before);
        let row = Row::new(IDLE, Unit::Percent).with_goal(Goal::only(Measure::AtMost, 0.1));
        report.add(&row, Side::Ours, used.as_secs_f64() / time.as_secs_f64() * 100.0);
    }
    Ok(())
}

fn by_flows(
    interrupt: &Interrupt,
    plan: &Plan,
    lab: &mut Lab,
    start: &Start,
    report: &mut Report,
) -> Result<()> {
    let pods = lab.grow(plan.quick(IDLE_PODS, 2))?;
    for round in 1..=plan.rounds {
        for (count, connect, trip) in FLOW_STEPS {
            interrupt.check()?;
            eprintln!("round {round}/{}: growth, {count} flows", plan.rounds);
            let held = lab.hold(start, &pods, plan.quick(count, count.min(20)))?;
            for (name, first, load) in
                [(connect, FLOW_STEPS[0].1, "connect 32"), (trip, FLOW_STEPS[0].2, "round-trip")]
            {
                if plan.wants(name) || plan.wants(first) {
                    report.add(&row(name, first), Side::Ours, cost(lab, start, &[], load, plan.seconds)?);
                }
            }
            held.close()?;
        }
    }
    Ok(())
}

/// The first row of a group is what the others have grown from.
fn row(name: &'static str, first: &'static str) -> Row {
    let goal = (name != first).then(|| Goal::only(Measure::GrownFrom(first), FLAT));
    Row::new(name, Unit::Micros).with_goal(goal)
}

/// Microseconds of the agent's processor time for each connection, or round trip, of a load.
fn cost(lab: &Lab, start: &Start, pods: &[Arc<Namespace>], load: &str, seconds: f64) -> Result<f64> {
    let agent = lab.agent().context("no agent")?;
    let before = agent.cpu_time()?;
    let measured = lab.load(start, pods, &format!("{load} {seconds}"))?;
    let used = agent.cpu_time()?.saturating_sub(before);
    Ok(used.as_secs_f64() * 1e6 / measured.count as f64)
}
