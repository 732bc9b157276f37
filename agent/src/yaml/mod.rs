//! YAML with places: the tree of a file in which everything knows its line, and a walker that turns each mistake into a line
//! with file, line, key and remedy. The policy documents and agent.yaml are read through it.
//!
//! What a stranger's file could do is bounded: its size (by the caller), its depth, and what its aliases expand to.

mod cursor;
mod mistake;
mod nearest;
mod parse;

pub use cursor::{Cursor, Fields, Recorded};
pub use mistake::{Mistake, Sink};
pub use nearest::nearest;
pub use parse::{SyntaxError, parse};

/// A value and where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// From 1.
    pub line: usize,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    Bool(bool),
    /// As written.
    Number(String),
    Text(String),
    Sequence(Vec<Node>),
    /// In the order written, repeated keys included.
    Mapping(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    /// Of the key.
    pub line: usize,
    pub value: Node,
}

impl Value {
    /// For "expected a list, found ...". Never the value itself: it may be a secret under a mistyped key.
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::Sequence(_) => "a list",
            Self::Mapping(_) => "a mapping",
        }
    }
}

#[cfg(test)]
mod tests;
