//! The demo's table, line by line as rows come in.

use std::env;
use std::io::{IsTerminal, stdout};

use super::Outcome;

const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";

#[derive(Clone, Copy, Debug)]
pub struct Table {
    colour: bool,
}

impl Table {
    /// Coloured on a terminal, unless NO_COLOR is set.
    pub fn for_stdout() -> Self {
        Self { colour: stdout().is_terminal() && env::var_os("NO_COLOR").is_none() }
    }

    pub fn header(self) -> String {
        format!(
            "{:<6} {:<36} {:<9} {:<44} {:<44} {:>8}",
            "POD", "ASKED", "VERDICT", "RULE", "THE PROGRAM SAW", "TIME"
        )
    }

    /// The row, and below it what was wrong.
    pub fn line(self, outcome: &Outcome) -> String {
        let colour = match (outcome.wrong.is_some(), outcome.verdict.as_str()) {
            (true, _) => RED,
            (false, "allowed") => GREEN,
            (false, _) => YELLOW,
        };
        let verdict = self.paint(colour, &format!("{:<9}", outcome.verdict));
        let line = format!(
            "{:<6} {:<36} {verdict} {:<44} {:<44} {:>5} ms",
            outcome.pod,
            outcome.asked,
            outcome.rule,
            shortened(&outcome.saw, 44),
            outcome.took.as_millis()
        );
        match &outcome.wrong {
            Some(wrong) => format!("{line}\n       {}", self.paint(RED, &format!("NOT AS MEANT: {wrong}"))),
            None => line,
        }
    }

    fn paint(self, colour: &str, text: &str) -> String {
        if self.colour { format!("{colour}{text}{PLAIN}") } else { text.to_owned() }
    }
}

fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}
