//! How long after an edit of the policies the last of many flows that are allowed no more is reset, and what a pod that it
//! does not concern feels of it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tunproxy_testkit::{Interrupt, Namespace, wait};

use crate::compare::{IDLE_PODS, Plan};
use crate::lab::{Lab, Start};
use crate::report::{Goal, Measure, Report, Row, Side, Unit};
use crate::rows::Through;
use crate::server::idle_port;

const FLOWS: usize = 15_000;

const FROM_EDIT: &str = "policy change: 15,000 resets, from the edit";
const FROM_READING: &str = "policy change: 15,000 resets, in force";
const BESIDE: &str = "policy change: slowest round trip beside it";

/// For an agent that reads and applies a document.
const LIMIT: Duration = Duration::from_secs(30);

pub fn measure(interrupt: &Interrupt, plan: &Plan, report: &mut Report) -> Result<()> {
    if ![FROM_EDIT, FROM_READING, BESIDE].iter().any(|row| plan.wants(row)) {
        return Ok(());
    }
    let mut lab = Lab::new(true)?;
    let pods = lab.grow(plan.quick(IDLE_PODS, 2))?;
    let start = lab.start(Side::Ours, Through::Nothing).context("no agent")?;
    for round in 1..=plan.rounds {
        interrupt.check()?;
        eprintln!("round {round}/{}: policy change", plan.rounds);
        once(&lab, &start, &pods, plan, report)?;
        // A round trip under way all the time would be in the way of the resets.
        interrupt.check()?;
        beside(&lab, &start, &pods, plan, report)?;
    }
    Ok(())
}

fn once(lab: &Lab, start: &Start, pods: &[Arc<Namespace>], plan: &Plan, report: &mut Report) -> Result<()> {
    forbid(lab, 1)?;
    let doomed = lab.doom(start, pods, plan.quick(FLOWS, 20))?;
    let edited = millis(SystemTime::now());
    write(lab, idle_port(lab.address).port())?;
    let last = doomed.last_reset()?;
    ensure_recorded(lab)?;
    let row = |name, goal| Row::new(name, Unit::Millis).with_goal(goal);
    report.add(&row(FROM_EDIT, None), Side::Ours, last - edited);
    let goal = Goal::only(Measure::AtMost, 100.0);
    report.add(&row(FROM_READING, Some(goal)), Side::Ours, last - loaded(lab)?);
    Ok(())
}

fn beside(lab: &Lab, start: &Start, pods: &[Arc<Namespace>], plan: &Plan, report: &mut Report) -> Result<()> {
    forbid(lab, 1)?;
    let doomed = lab.doom(start, pods, plan.quick(FLOWS, 20))?;
    let trips = thread::scope(|scope| {
        let trips = scope.spawn(|| lab.load(start, &[], "round-trip 1"));
        // The round trips are under way by then; were they not, the slowest one would be one that nothing was beside.
        thread::sleep(Duration::from_millis(300));
        write(lab, idle_port(lab.address).port())?;
        doomed.last_reset()?;
        trips.join().expect("the round trips' thread")
    })?;
    let slowest = trips.slowest.context("no slowest round trip")?;
    report.add(&Row::new(BESIDE, Unit::Millis), Side::Ours, slowest / 1e3);
    Ok(())
}

/// Forbids a port, and nothing else, and waits until that is in force.
fn forbid(lab: &Lab, port: u16) -> Result<()> {
    let agent = lab.agent().context("no agent")?;
    let times_said = || agent.log().matches("policies in force").count();
    let before = times_said();
    write(lab, port)?;
    wait::until_true("the policies", LIMIT, || times_said() > before)
}

fn write(lab: &Lab, port: u16) -> Result<()> {
    let text = format!(
        "apiVersion: tunproxy.io/v1alpha1\nkind: ClusterEgressPolicy\nmetadata: {{name: change}}\n\
         spec:\n  subject: {{namespaces: {{}}}}\n  tier: Admin\n  rules:\n\
         \x20 - {{name: change, action: Deny, ports: [{{protocol: TCP, port: {port}}}]}}\n"
    );
    lab.agent().context("no agent")?.write_policy("change.yaml", &text)
}

fn status(lab: &Lab) -> Result<Value> {
    Ok(serde_json::from_str(&lab.agent().context("no agent")?.admin("/status")?)?)
}

/// When the policies in force had been read: before the first flow was judged by them.
fn loaded(lab: &Lab) -> Result<f64> {
    let status = status(lab)?;
    let text = status["policies"]["loaded"].as_str().context("no policies")?;
    let time = OffsetDateTime::parse(text, &Rfc3339).with_context(|| format!("loaded: {text:?}"))?;
    Ok(millis(time.into()))
}

/// A burst of ends is no reason to lose any of their records.
fn ensure_recorded(lab: &Lab) -> Result<()> {
    let lost = &status(lab)?["flowLog"]["dropped"];
    ensure!(lost == 0, "{lost} records of flows were lost");
    Ok(())
}

/// Since 1970. The load generator is another process, and this clock is the one they share with the agent's status page.
fn millis(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e3
}
