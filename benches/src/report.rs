//! Samples of both sides, and the table of their medians.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Routed,
    Ours,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    Gbit,
    PerSecond,
    Micros,
    Millis,
    Kib,
}

impl Unit {
    /// From what the load generator gives (bits a second, or the unit itself).
    pub fn scale(self, value: f64) -> f64 {
        match self {
            Self::Gbit => value / 1e9,
            Self::PerSecond | Self::Micros | Self::Millis | Self::Kib => value,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Gbit => "Gbit/s",
            Self::PerSecond => "/s",
            Self::Micros => "us",
            Self::Millis => "ms",
            Self::Kib => "KiB",
        }
    }
}

/// What a row's median is to reach. Only the ratio and the difference say something about us alone; the absolute ones
/// are promises to users all the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Aim {
    /// Of ours to routed, at least.
    Ratio(f64),
    /// Of ours over routed, at most, in the row's unit.
    Added(f64),
    /// Of ours, at most, in the row's unit.
    AtMost(f64),
}

impl Aim {
    /// `None` while a side has no sample.
    fn reached(self, routed: Option<f64>, ours: Option<f64>) -> Option<bool> {
        let both = routed.zip(ours);
        match self {
            Self::Ratio(least) => both.map(|(routed, ours)| ours / routed >= least),
            Self::Added(most) => both.map(|(routed, ours)| ours - routed <= most),
            Self::AtMost(most) => ours.map(|ours| ours <= most),
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ratio(least) => write!(out, "ratio >= {least:.2}"),
            Self::Added(most) => write!(out, "added <= {most}"),
            Self::AtMost(most) => write!(out, "ours <= {most}"),
        }
    }
}

/// What a row is called, and what it aims at.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub unit: Unit,
    pub aim: Option<Aim>,
}

#[derive(Clone, Debug, Serialize)]
struct Samples {
    order: usize,
    unit: Unit,
    aim: Option<Aim>,
    reached: Option<bool>,
    routed: Vec<f64>,
    ours: Vec<f64>,
    routed_median: Option<f64>,
    ours_median: Option<f64>,
    ratio: Option<f64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    rows: BTreeMap<String, Samples>,
}

impl Report {
    pub fn add(&mut self, row: &Row, side: Side, value: f64) {
        let order = self.rows.len();
        let samples = self.rows.entry(row.name.clone()).or_insert_with(|| Samples::new(order, row));
        match side {
            Side::Routed => samples.routed.push(value),
            Side::Ours => samples.ours.push(value),
        }
        samples.routed_median = median(&samples.routed);
        samples.ours_median = median(&samples.ours);
        samples.ratio = samples.routed_median.zip(samples.ours_median).map(|(routed, ours)| ours / routed);
        samples.reached = samples.aim.and_then(|aim| aim.reached(samples.routed_median, samples.ours_median));
    }
}

impl Samples {
    fn new(order: usize, row: &Row) -> Self {
        Self {
            order,
            unit: row.unit,
            aim: row.aim,
            reached: None,
            routed: Vec::new(),
            ours: Vec::new(),
            routed_median: None,
            ours_median: None,
            ratio: None,
        }
    }

    fn goal(&self) -> String {
        match (self.aim, self.reached) {
            (None, _) => String::new(),
            (Some(aim), Some(false)) => format!("{aim} (missed)"),
            (Some(aim), _) => aim.to_string(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by_key(|(_, samples)| samples.order);
        writeln!(out, "{:<44} {:>10} {:>10} {:<7} {:>6}  aim", "", "routed", "ours", "", "ratio")?;
        for (name, samples) in rows {
            let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), figure);
            writeln!(
                out,
                "{name:<44} {:>10} {:>10} {:<7} {:>6}  {}",
                cell(samples.routed_median),
                cell(samples.ours_median),
                samples.unit.label(),
                samples.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
                samples.goal(),
            )?;
        }
        Ok(())
    }
}

/// Three or four significant digits.
fn figure(value: f64) -> String {
    match value {
        value if value >= 1000.0 => format!("{value:.0}"),
        value if value >= 100.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
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

    #[test]
    fn medians_ratios_and_the_order_of_rows() {
        let mut report = Report::default();
        let row = |name: &str| Row { name: name.to_owned(), unit: Unit::Gbit, aim: Some(Aim::Ratio(0.5)) };
        for (side, value) in
            [(Side::Routed, 3.0), (Side::Routed, 1.0), (Side::Routed, 2.0), (Side::Ours, 1.0)]
        {
            report.add(&row("z first"), side, value);
        }
        report.add(&row("a second"), Side::Routed, 5.0);
        let text = report.to_string();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["z", "first", "2.00", "1.00", "Gbit/s", "0.50", "ratio", ">=", "0.50"]);
        assert_eq!(lines[2], ["a", "second", "5.00", "-", "Gbit/s", "-", "ratio", ">=", "0.50"]);
        report.add(&row("z first"), Side::Ours, 0.5);
        assert!(report.to_string().contains("ratio >= 0.50 (missed)"), "{report}");
        assert_eq!(Aim::Added(35.0).reached(Some(10.0), Some(45.0)), Some(true));
        assert_eq!(Aim::Added(35.0).reached(Some(10.0), Some(45.1)), Some(false));
        assert_eq!(Aim::AtMost(10.0).reached(None, Some(10.1)), Some(false));
        assert_eq!(Aim::AtMost(10.0).reached(None, None), None);
        assert_eq!(median(&[4.0, 2.0]), Some(3.0));
        assert_eq!(median(&[]), None);
    }
}
