//! The rows that are one load on either side, and what they are to reach.

use crate::report::{Goal, Measure, Unit};

/// Which road a row's load takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// Straight to the server.
    Nothing,
    /// A SOCKS5 server on the node: ours asks it for the pod, routed programs ask it themselves.
    Socks,
}

#[derive(Clone, Copy, Debug)]
pub struct LoadRow {
    pub name: &'static str,
    /// For the load generator, without its seconds.
    pub load: &'static str,
    pub through: Through,
    pub unit: Unit,
    pub goal: Option<Goal>,
    /// For the 99th percentile, where the load has one.
    pub p99: Option<Goal>,
}

const fn row(name: &'static str, load: &'static str, unit: Unit, goal: Goal) -> LoadRow {
    LoadRow { name, load, through: Through::Nothing, unit, goal: Some(goal), p99: None }
}

const fn ratio(bar: f64, aim: f64) -> Goal {
    Goal::new(Measure::Ratio, bar, aim)
}

const fn socks(name: &'static str, load: &'static str, unit: Unit, goal: Option<Goal>) -> LoadRow {
    LoadRow { name, load, through: Through::Socks, unit, goal, p99: None }
}

pub const LOADS: [LoadRow; 14] = [
    row("TCP up, 1 stream", "bulk up 1", Unit::Gbit, ratio(0.8, 0.9)),
    row("TCP down, 1 stream", "bulk down 1", Unit::Gbit, ratio(0.55, 0.75)),
    row("TCP up, 8 streams", "bulk up 8", Unit::Gbit, ratio(0.55, 0.7)),
    row("TCP down, 8 streams", "bulk down 8", Unit::Gbit, ratio(0.45, 0.6)),
    row("connections, 32 at once", "connect 32", Unit::PerSecond, ratio(0.65, 0.75)),
    LoadRow {
        p99: Some(Goal::new(Measure::Added, 150.0, 100.0)),
        ..row("1-byte round trip", "round-trip", Unit::Micros, Goal::new(Measure::Added, 30.0, 20.0))
    },
    row("UDP 64 B, 32 under way", "datagrams 32", Unit::PerSecond, ratio(0.5, 0.8)),
    row("UDP 1400 B up, 1 flow", "flood", Unit::PerSecond, ratio(0.5, 0.8)),
    socks("SOCKS5: TCP up, 1 stream", "bulk up 1", Unit::Gbit, Some(ratio(0.75, 0.9))),
    socks("SOCKS5: TCP down, 1 stream", "bulk down 1", Unit::Gbit, Some(ratio(0.75, 0.9))),
    socks("SOCKS5: TCP up, 8 streams", "bulk up 8", Unit::Gbit, Some(ratio(0.75, 0.9))),
    socks("SOCKS5: TCP down, 8 streams", "bulk down 8", Unit::Gbit, Some(ratio(0.75, 0.9))),
    socks("SOCKS5: connections, 32 at once", "connect 32", Unit::PerSecond, None),
    socks("SOCKS5: 1-byte round trip", "round-trip", Unit::Micros, None),
];
