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
            "{:<6} {:<38} {:<9} {:<44} {:<60} {:>8}",
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
            "{:<6} {:<38} {verdict} {:<44} {:<60} {:>5} ms",
            outcome.pod,
            outcome.asked,
            outcome.rule,
            shortened(&outcome.saw, 60),
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

/// Without its middle: an error's beginning names the program, its end the cause.
fn shortened(text: &str, width: usize) -> String {
    let letters: Vec<char> = text.chars().collect();
    if letters.len() <= width {
        return text.to_owned();
    }
    let (head, tail) = (width / 3, width - width / 3 - 1);
    letters[..head].iter().chain(&['…']).chain(&letters[letters.len() - tail..]).collect()
}
