//! Samples of every side, and the table of their medians.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

/// Whose measurement a sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The kernel alone: what everybody else is compared with.
    Routed,
    Ours,
    /// Another program that does the same work.
    Peer(&'static str),
}

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Ours => "ours",
            Self::Peer(name) => name,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Gbit,
    Mbit,
    PerSecond,
    Micros,
    Millis,
    Kib,
    Percent,
}

impl Unit {
    /// From what the load generator gives (bits a second, or the unit itself).
    pub fn scale(self, value: f64) -> f64 {
        match self {
            Self::Gbit => value / 1e9,
            Self::Mbit => value / 1e6,
            Self::PerSecond | Self::Micros | Self::Millis | Self::Kib | Self::Percent => value,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Gbit => "Gbit/s",
            Self::Mbit => "Mbit/s",
            Self::PerSecond => "/s",
            Self::Micros => "us",
            Self::Millis => "ms",
            Self::Kib => "KiB",
            Self::Percent => "%",
        }
    }

    /// Rates are the better the more, times and sizes the less.
    const fn more_is_better(self) -> bool {
        matches!(self, Self::Gbit | Self::Mbit | Self::PerSecond)
    }
}

/// What a row's medians are judged by. Only what is compared says something about us alone; the absolute ones are
/// promises to users all the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measure {
    /// Ours to routed, at least.
    Ratio,
    /// Ours over routed, at most, in the row's unit.
    Added,
    /// Ours, at most, in the row's unit.
    AtMost,
    /// Ours to ours of the named row, at most.
    GrownFrom(&'static str),
}

/// The bar is what must be reached, the aim what is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    pub measure: Measure,
    pub bar: f64,
    pub aim: f64,
}

impl Goal {
    pub const fn new(measure: Measure, bar: f64, aim: f64) -> Self {
        Self { measure, bar, aim }
    }

    /// Whose aim is the bar itself.
    pub const fn only(measure: Measure, bar: f64) -> Self {
        Self { measure, bar, aim: bar }
    }

    fn level(&self, value: f64) -> Level {
        let reaches = |limit: f64| match self.measure {
            Measure::Ratio => value >= limit,
            Measure::Added | Measure::AtMost | Measure::GrownFrom(_) => value <= limit,
        };
        match (reaches(self.aim), reaches(self.bar)) {
            (true, _) => Level::Aim,
            (false, true) => Level::Bar,
            (false, false) => Level::Missed,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.measure {
            Measure::Ratio => write!(out, "ratio >= {:.2}", self.bar)?,
            Measure::Added => write!(out, "added <= {}", self.bar)?,
            Measure::AtMost => write!(out, "ours <= {}", self.bar)?,
            Measure::GrownFrom(row) => write!(out, "ours <= {} x \"{row}\"", self.bar)?,
        }
        if (self.aim - self.bar).abs() > f64::EPSILON {
            write!(out, ", aim {}", self.aim)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Level {
    Missed,
    Bar,
    Aim,
}

/// What a row is called, and what it is to reach.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub unit: Unit,
    pub goal: Option<Goal>,
}

impl Row {
    pub fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self { name: name.into(), unit, goal: None }
    }

    pub fn with_goal(mut self, goal: impl Into<Option<Goal>>) -> Self {
        self.goal = goal.into();
        self
    }
}

#[derive(Clone, Debug)]
struct Samples {
    row: Row,
    sides: BTreeMap<Side, Vec<f64>>,
}

impl Samples {
    fn median(&self, side: Side) -> Option<f64> {
        median(self.sides.get(&side)?)
    }

    /// Of `side` to routed.
    fn ratio(&self, side: Side) -> Option<f64> {
        Some(self.median(side)? / self.median(Side::Routed)?)
    }

    fn peers(&self) -> impl Iterator<Item = &'static str> {
        self.sides.keys().filter_map(|side| match side {
            Side::Peer(name) => Some(*name),
            Side::Routed | Side::Ours => None,
        })
    }

    /// Peers that are not behind ours.
    fn behind(&self) -> Vec<&'static str> {
        let Some(ours) = self.median(Side::Ours) else { return Vec::new() };
        let ahead = |value: f64| if self.row.unit.more_is_better() { value >= ours } else { value <= ours };
        self.peers().filter(|peer| self.median(Side::Peer(peer)).is_some_and(ahead)).collect()
    }
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order in which they were first measured.
    rows: Vec<Samples>,
}

impl Report {
    pub fn add(&mut self, row: &Row, side: Side, value: f64) {
        let at = self.rows.iter().position(|known| known.row.name == row.name).unwrap_or_else(|| {
            self.rows.push(Samples { row: row.clone(), sides: BTreeMap::new() });
            self.rows.len() - 1
        });
        self.rows[at].sides.entry(side).or_default().push(value);
    }

    /// `None` without a goal, and while a sample that it needs is missing.
    fn level(&self, samples: &Samples) -> Option<Level> {
        let goal = samples.row.goal?;
        let value = match goal.measure {
            Measure::Ratio => samples.ratio(Side::Ours)?,
            Measure::Added => samples.median(Side::Ours)? - samples.median(Side::Routed)?,
            Measure::AtMost => samples.median(Side::Ours)?,
            Measure::GrownFrom(name) => {
                let from = self.rows.iter().find(|other| other.row.name == name)?;
                samples.median(Side::Ours)? / from.median(Side::Ours)?
            }
        };
        Some(goal.level(value))
    }

    fn verdict(&self, samples: &Samples) -> String {
        let text = match (samples.row.goal, self.level(samples)) {
            (None, _) => String::new(),
            (Some(goal), None) => goal.to_string(),
            (Some(goal), Some(Level::Missed)) => format!("{goal} (missed)"),
            (Some(goal), Some(Level::Bar)) => format!("{goal} (bar reached)"),
            (Some(goal), Some(Level::Aim)) => format!("{goal} (reached)"),
        };
        let behind = samples.behind();
        if behind.is_empty() { text } else { format!("{text} behind {}", behind.join(", ")) }
    }

    /// Everything measured: for each row its samples and medians by side.
    pub fn document(&self) -> Value {
        let row = |(order, samples): (usize, &Samples)| {
            let sides = || samples.sides.iter();
            let values: BTreeMap<_, _> = sides().map(|(side, values)| (side.name(), values)).collect();
            let medians: BTreeMap<_, _> =
                sides().map(|(side, values)| (side.name(), median(values))).collect();
            let value = json!({
                "order": order,
                "unit": samples.row.unit.label(),
                "goal": samples.row.goal.map(|goal| goal.to_string()),
                "level": self.level(samples),
                "samples": values,
                "medians": medians,
                "ratio": samples.ratio(Side::Ours),
                "behind": samples.behind(),
            });
            (samples.row.name.clone(), value)
        };
        let rows: serde_json::Map<_, _> = self.rows.iter().enumerate().map(row).collect();
        json!({ "rows": rows })
    }

    fn peers(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.rows.iter().flat_map(Samples::peers).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl fmt::Display for Report {
    /// Of peers only the ratio is shown, or the figure itself where there is nothing routed to compare it with.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers = self.peers();
        write!(out, "{:<44} {:>10} {:>10} {:<7} {:>6}", "", "routed", "ours", "", "ratio")?;
        peers.iter().try_for_each(|peer| write!(out, " {peer:>12}"))?;
        writeln!(out, "  bar")?;
        for samples in &self.rows {
            let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), figure);
            let ratio = |side| samples.ratio(side).map(|ratio| format!("{ratio:.2}"));
            write!(
                out,
                "{:<44} {:>10} {:>10} {:<7} {:>6}",
                samples.row.name,
                cell(samples.median(Side::Routed)),
                cell(samples.median(Side::Ours)),
                samples.row.unit.label(),
                ratio(Side::Ours).unwrap_or_else(|| "-".to_owned()),
            )?;
            for peer in &peers {
                let side = Side::Peer(peer);
                write!(out, " {:>12}", ratio(side).unwrap_or_else(|| cell(samples.median(side))))?;
            }
            writeln!(out, "  {}", self.verdict(samples))?;
        }
        Ok(())
    }
}

/// Three or four significant digits.
fn figure(value: f64) -> String {
    match value {
        value if value >= 1000.0 => format!("{value:.0}"),
        value if value >= 100.0 => format!("{value:.1}"),
        value if value >= 1.0 || value == 0.0 => format!("{value:.2}"),
        value => format!("{value:.3}"),
    }
}

fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(report: &Report) -> Vec<Vec<String>> {
        let words = |line: &str| line.split_whitespace().map(ToOwned::to_owned).collect();
        report.to_string().lines().map(words).collect()
    }

    #[test]
    fn medians_ratios_and_the_order_of_rows() {
        let mut report = Report::default();
        let row = |name| Row::new(name, Unit::Gbit).with_goal(Goal::new(Measure::Ratio, 0.5, 0.75));
        for (side, value) in
            [(Side::Routed, 3.0), (Side::Routed, 1.0), (Side::Routed, 2.0), (Side::Ours, 1.2)]
        {
            report.add(&row("z first"), side, value);
        }
        report.add(&row("a second"), Side::Routed, 5.0);
        let table = lines(&report);
        assert_eq!(table[1][..6], ["z", "first", "2.00", "1.20", "Gbit/s", "0.60"]);
        assert_eq!(table[1][6..].join(" "), "ratio >= 0.50, aim 0.75 (bar reached)");
        assert_eq!(table[2].join(" "), "a second 5.00 - Gbit/s - ratio >= 0.50, aim 0.75");
        report.add(&row("z first"), Side::Ours, 0.5);
        assert!(report.to_string().contains("aim 0.75 (missed)"), "{report}");
        report.add(&row("a second"), Side::Ours, 5.0);
        assert!(report.to_string().contains("aim 0.75 (reached)"), "{report}");
    }

    #[test]
    fn each_measure_has_its_direction_and_its_edge() {
        let level = |measure, value| Goal::new(measure, 35.0, 20.0).level(value);
        for measure in [Measure::Added, Measure::AtMost, Measure::GrownFrom("x")] {
            assert_eq!(level(measure, 20.0), Level::Aim);
            assert_eq!(level(measure, 20.1), Level::Bar);
            assert_eq!(level(measure, 35.0), Level::Bar);
            assert_eq!(level(measure, 35.1), Level::Missed);
        }
        let ratio = |value| Goal::new(Measure::Ratio, 0.8, 0.9).level(value);
        assert_eq!([0.9, 0.8, 0.79].map(ratio), [Level::Aim, Level::Bar, Level::Missed]);
        assert_eq!(median(&[4.0, 2.0]), Some(3.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn growth_is_judged_by_the_row_it_grew_from() {
        let mut report = Report::default();
        let goal = Goal::only(Measure::GrownFrom("few"), 1.15);
        report.add(&Row::new("many", Unit::Micros).with_goal(goal), Side::Ours, 11.5);
        assert_eq!(report.level(&report.rows[0]), None);
        report.add(&Row::new("few", Unit::Micros), Side::Ours, 10.0);
        assert_eq!(report.level(&report.rows[0]), Some(Level::Aim));
        report.add(&Row::new("few", Unit::Micros), Side::Ours, 8.0);
        assert_eq!(report.level(&report.rows[0]), Some(Level::Missed));
    }

    #[test]
    fn peers_have_their_ratio_and_who_is_not_behind_is_named() {
        let mut report = Report::default();
        for (name, unit) in [("rate", Unit::PerSecond), ("time", Unit::Micros)] {
            for (side, value) in [
                (Side::Routed, 10.0),
                (Side::Ours, 5.0),
                (Side::Peer("slow"), 2.0),
                (Side::Peer("same"), 5.0),
            ] {
                report.add(&Row::new(name, unit), side, value);
            }
        }
        let table = lines(&report);
        assert_eq!(table[0], ["routed", "ours", "ratio", "same", "slow", "bar"]);
        assert_eq!(table[1].join(" "), "rate 10.00 5.00 /s 0.50 0.50 0.20 behind same");
        assert_eq!(table[2].join(" "), "time 10.00 5.00 us 0.50 0.50 0.20 behind same, slow");
        let document = report.document();
        assert_eq!(document["rows"]["rate"]["behind"], json!(["same"]));
        assert_eq!(document["rows"]["rate"]["samples"]["slow"], json!([2.0]));
    }
}
