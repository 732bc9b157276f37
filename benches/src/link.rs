//! The pod's kernel TCP over bad links: to the agent, and past it to the server.
//!
//! The link lies behind the pod (`tunproxy_testkit::Behind`): on the routed side the kernels of both ends speak over it, on
//! ours the pod's with the agent's engine. Both sides have a link of the same kind and seed, and are measured at once: no
//! link is so fast that one would take the other's processor.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tunproxy_testkit::link::LinkConfig;
use tunproxy_testkit::{Behind, Interrupt};

use crate::client::Measured;
use crate::compare::Plan;
use crate::lab::{Lab, Pod, Start};
use crate::report::{Goal, Measure, Report, Row, Side, Unit};

/// Streams at once: the luck of a single one decides too much.
const STREAMS: usize = 4;
/// Where no more than a hundredth is lost.
const ALIKE: Goal = Goal::only(Measure::Ratio, 0.8);

struct LinkRow {
    name: &'static str,
    /// There and back alike.
    link: LinkConfig,
    goal: Option<Goal>,
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

const PLAIN: LinkConfig = LinkConfig {
    loss: 0.0,
    duplicate: 0.0,
    reorder: 0.0,
    reorder_by: Duration::ZERO,
    delay: millis(10),
    rate: Some(100_000_000),
};

const LINKS: [LinkRow; 8] = [
    LinkRow { name: "link: 100 Mbit/s, 20 ms", link: PLAIN, goal: Some(ALIKE) },
    LinkRow { name: "link: 0.1 % lost", link: LinkConfig { loss: 0.001, ..PLAIN }, goal: Some(ALIKE) },
    LinkRow { name: "link: 1 % lost", link: LinkConfig { loss: 0.01, ..PLAIN }, goal: Some(ALIKE) },
    LinkRow { name: "link: 5 % lost", link: LinkConfig { loss: 0.05, ..PLAIN }, goal: None },
    LinkRow {
        name: "link: 2 % late by 3 ms",
        link: LinkConfig { reorder: 0.02, reorder_by: millis(3), ..PLAIN },
        goal: Some(ALIKE),
    },
    LinkRow { name: "link: 1 % twice", link: LinkConfig { duplicate: 0.01, ..PLAIN }, goal: Some(ALIKE) },
    LinkRow {
        name: "link: 400 ms, 0.1 % lost",
        link: LinkConfig { delay: millis(200), loss: 0.001, ..PLAIN },
        goal: Some(ALIKE),
    },
    LinkRow {
        name: "link: 10 Mbit/s, 2 ms",
        link: LinkConfig { delay: millis(1), rate: Some(10_000_000), ..PLAIN },
        goal: Some(ALIKE),
    },
];

/// Dropped in this order: the machine behind gives the interfaces back before the pod goes.
struct End {
    behind: Behind,
    _pod: Pod,
}

impl End {
    fn new(lab: &Lab, side: Side, index: u8, link: LinkConfig) -> Result<Self> {
        let pod = lab.pod_of(side, &format!("link{index}"), index)?;
        let links = pod.namespace.links()?;
        // Of a pod's interfaces, `eth0` is the main plugin's veth or, standalone, the TUN.
        anyhow::ensure!(links.contains("eth0"), "no eth0 among {links:?}");
        let addresses = pod.attachment.addresses();
        let behind = Behind::new(&pod.namespace, "eth0", &addresses, [link; 2], index.into())?;
        Ok(Self { behind, _pod: pod })
    }

    fn measure(&self, lab: &Lab, load: &str) -> Result<Measured> {
        let start = Start { namespace: self.behind.namespace.clone(), via: None };
        lab.load(&start, &[], load)
    }
}

pub fn measure(interrupt: &Interrupt, plan: &Plan, report: &mut Report) -> Result<()> {
    let wanted: Vec<&LinkRow> = LINKS
        .iter()
        .filter(|row| ["up", "down"].iter().any(|direction| plan.wants(&name(row, direction))))
        .take(plan.quick(LINKS.len(), 1))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let lab = Lab::new(plan.ours)?;
    for (index, row) in wanted.into_iter().enumerate() {
        let index = 20 + 2 * index as u8;
        let routed = End::new(&lab, Side::Routed, index, row.link)?;
        let ours = plan.ours.then(|| End::new(&lab, Side::Ours, index + 1, row.link)).transpose()?;
        for round in 1..=plan.rounds {
            for direction in ["up", "down"].into_iter().filter(|direction| plan.wants(&name(row, direction)))
            {
                interrupt.check()?;
                let name = name(row, direction);
                eprintln!("round {round}/{}: {name}", plan.rounds);
                // Long round trips take long to fill.
                let seconds = plan.seconds + plan.quick(20.0, 0.0) * row.link.delay.as_secs_f64();
                let load = format!("bulk {direction} {STREAMS} {seconds}");
                let row = Row::new(name, Unit::Mbit).with_goal(row.goal);
                let (first, second) = thread::scope(|scope| {
                    let second = ours.as_ref().map(|end| scope.spawn(|| end.measure(&lab, &load)));
                    let first = routed.measure(&lab, &load);
                    (first, second.map(|second| second.join().expect("a measuring thread")))
                });
                report.add(&row, Side::Routed, Unit::Mbit.scale(first.context("routed")?.value));
                if let Some(second) = second {
                    report.add(&row, Side::Ours, Unit::Mbit.scale(second.context("ours")?.value));
                }
            }
        }
    }
    Ok(())
}

fn name(row: &LinkRow, direction: &str) -> String {
    format!("{}, TCP {direction}", row.name)
}
