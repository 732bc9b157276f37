//! One mistake, one line.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};

/// `FILE:LINE: KEY: MESSAGE`; the message names the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub file: PathBuf,
    /// From 1; 0 for what is wrong with the file as a whole.
    pub line: usize,
    /// As in `rules[0].to[1].networks[0]`; empty for what no key is to blame for.
    pub key: String,
    pub message: String,
}

/// Collects the mistakes of one file.
#[derive(Debug)]
pub struct Sink {
    file: PathBuf,
    mistakes: RefCell<Vec<Mistake>>,
}

impl Sink {
    pub fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), mistakes: RefCell::default() }
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn add(&self, line: usize, key: impl Into<String>, message: impl Into<String>) {
        let (key, message) = (key.into(), message.into());
        self.mistakes.borrow_mut().push(Mistake { file: self.file.clone(), line, key, message });
    }

    /// How many so far; a reader that compares before and after knows whether a part was sound.
    pub fn count(&self) -> usize {
        self.mistakes.borrow().len()
    }

    /// In the order of the file.
    pub fn into_mistakes(self) -> Vec<Mistake> {
        let mut mistakes = self.mistakes.into_inner();
        mistakes.sort_by_key(|mistake| mistake.line);
        mistakes
    }
}

impl Mistake {
    /// `FILE:LINE:`, as far as there is a line.
    pub fn place(&self) -> String {
        match self.line {
            0 => format!("{}:", self.file.display()),
            line => format!("{}:{line}:", self.file.display()),
        }
    }

    /// What follows the place.
    pub fn said(&self) -> impl fmt::Display + '_ {
        Said(self)
    }
}

struct Said<'a>(&'a Mistake);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.key.is_empty() {
            write!(f, " {}:", self.0.key)?;
        }
        write!(f, " {}", self.0.message)
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.place(), self.said())
    }
}
