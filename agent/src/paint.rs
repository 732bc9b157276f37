//! Colours for what people read, and none where they would be in the way.

use std::fmt::{self, Display};
use std::io::IsTerminal;

/// Whether and how to colour one output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint {
    on: bool,
}

/// A text in a colour.
#[derive(Clone, Copy, Debug)]
pub struct Painted<T> {
    text: T,
    /// SGR parameters (ECMA-48); `None` leaves the text as it is.
    sgr: Option<&'static str>,
}

impl Paint {
    pub const PLAIN: Self = Self { on: false };
    pub const COLOURED: Self = Self { on: true };

    /// Colours on a terminal that knows them, unless the user wants none (<https://no-color.org>).
    pub fn of(stream: &impl IsTerminal, no_color: bool) -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let forbidden =
            no_color || set("NO_COLOR").is_some() || set("TERM").is_some_and(|term| term == "dumb");
        Self { on: !forbidden && stream.is_terminal() }
    }

    pub fn is_on(self) -> bool {
        self.on
    }

    pub fn good<T: Display>(self, text: T) -> Painted<T> {
        self.paint(text, "32")
    }

    pub fn warning<T: Display>(self, text: T) -> Painted<T> {
        self.paint(text, "33")
    }

    pub fn bad<T: Display>(self, text: T) -> Painted<T> {
        self.paint(text, "31")
    }

    /// As clap says that something is an error.
    pub fn error<T: Display>(self, text: T) -> Painted<T> {
        self.paint(text, "1;31")
    }

    pub fn strong<T: Display>(self, text: T) -> Painted<T> {
        self.paint(text, "1")
    }

    pub fn faint<T: Display>(self, text: T) -> Painted<T> {
        self.paint(text, "2")
    }

    /// As it is.
    pub fn plain<T: Display>(self, text: T) -> Painted<T> {
        Painted { text, sgr: None }
    }

    fn paint<T: Display>(self, text: T, sgr: &'static str) -> Painted<T> {
        Painted { text, sgr: self.on.then_some(sgr) }
    }
}

impl<T: Display> Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sgr {
            Some(sgr) => write!(f, "\x1b[{sgr}m{}\x1b[0m", self.text),
            None => self.text.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colour_ends_where_the_text_does() {
        assert_eq!(format!("{} x", Paint::COLOURED.good("ok")), "\x1b[32mok\x1b[0m x");
        assert_eq!(format!("{} x", Paint::PLAIN.good("ok")), "ok x");
    }
}
