//! The main job, shown: three pods, their policies, real programs, and for each what was decided and what it saw.

mod scenario;
mod table;

use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tunproxy_testkit::process::output;
use tunproxy_testkit::{Interrupt, PodIdentity};

pub use scenario::{Check, Expected, PodRole, Row, rows};
pub use table::Table;

use crate::world::{Pod, World, WorldOptions};

/// What became of one row.
#[derive(Debug)]
pub struct Outcome {
    pub pod: &'static str,
    pub asked: &'static str,
    pub verdict: String,
    pub rule: String,
    pub saw: String,
    pub took: Duration,
    /// Why the row did not come out as meant.
    pub wrong: Option<String>,
}

/// Runs every row; `show` is called for each as soon as it is known. Rows whose flow ends by an idle time-out (UDP, ICMP)
/// are known when their pod has gone.
pub fn run(interrupt: &Interrupt, mut show: impl FnMut(&Outcome)) -> Result<Vec<Outcome>> {
    let mut options = WorldOptions { agent: true, ..WorldOptions::for_path(crate::Path::AfterPtp) };
    for document in scenario::POLICIES {
        options = options.with_policy(document);
    }
    let world = World::new(&options)?;
    let pods = PodRole::ALL
        .map(|role| world.pod_as(role.path(), &identity(role)).map(|pod| (role, pod)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let mut outcomes = Vec::new();
    let mut later = Vec::new();
    for row in rows() {
        let pod =
            pods.iter().find(|(role, _)| *role == row.pod).map(|(_, pod)| pod).context("no such pod")?;
        let attempt = attempt(&world, pod, row)?;
        interrupt.check()?;
        if attempt.row.ends_with_its_pod {
            later.push(attempt);
            continue;
        }
        let outcome = judge(&world, attempt);
        show(&outcome);
        outcomes.push(outcome);
    }
    interrupt.check()?;
    for (_, pod) in pods {
        pod.detach()?;
    }
    for attempt in later {
        let outcome = judge(&world, attempt);
        show(&outcome);
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

fn identity(role: PodRole) -> PodIdentity {
    PodIdentity::new(role.namespace(), role.name(), &[("app", role.name())])
}

/// A row's program has run.
struct Attempt {
    row: Row,
    /// Flow records from before the row.
    records_before: usize,
    output: Output,
    took: Duration,
}

fn attempt(world: &World, pod: &Pod, row: Row) -> Result<Attempt> {
    let records_before = world.agent().flows().len();
    let line = row.command.replace("CA", &world.nginx.ca().display().to_string());
    let mut words = line.split_whitespace();
    let mut command = pod.command_with_resolver(words.next().context("an empty command")?);
    let began = Instant::now();
    let output = output(command.args(words))?;
    Ok(Attempt { row, records_before, output, took: began.elapsed() })
}

fn judge(world: &World, attempt: Attempt) -> Outcome {
    let Attempt { row, records_before, output, took } = attempt;
    let saw = seen(&output);
    let record = world.agent().wait_for_flow(row.asked, |flow| {
        flow["pod"]["name"] == row.pod.name()
            && flow["destination"].as_str().is_some_and(|destination| destination.contains(row.destination))
            && position(world, flow).is_some_and(|at| at >= records_before || row.ends_with_its_pod)
    });
    let text = |record: &Value, key: &str| record[key].as_str().unwrap_or_default().to_owned();
    let (verdict, rule) = match &record {
        Ok(record) => {
            (text(record, "verdict"), format!("{} {}", text(record, "policy"), text(record, "rule")))
        }
        Err(_) => ("none".to_owned(), String::new()),
    };
    let wrong = record
        .err()
        .map(|error| error.to_string())
        .or_else(|| row.expected.mismatch(&verdict, &rule, &saw))
        .or_else(|| row.check.and_then(|check| check(world).err()).map(|error| format!("{error:#}")));
    Outcome { pod: row.pod.name(), asked: row.asked, verdict, rule, saw, took, wrong }
}

fn position(world: &World, flow: &Value) -> Option<usize> {
    world.agent().flows().iter().position(|other| other == flow)
}

/// The one line that a person would look for: what a successful program printed, or the error of one that failed.
fn seen(output: &Output) -> String {
    let (first, second) = if output.status.success() {
        (&output.stdout, &output.stderr)
    } else {
        (&output.stderr, &output.stdout)
    };
    let line = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
        // ping's first line only repeats the question.
        lines().find(|line| line.contains("received")).or_else(|| lines().next()).map(ToOwned::to_owned)
    };
    line(first).or_else(|| line(second)).unwrap_or_else(|| output.status.to_string())
}
