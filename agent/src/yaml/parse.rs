//! From text to [`Node`]s, one document at a time, so that a syntax error costs its own document only.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

use super::{Entry, Node, Value};

/// Deeper than any document; the walkers recurse.
const DEPTH: usize = 64;
/// What all aliases of a document may add up to.
const ALIASED_NODES: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    pub line: usize,
    pub message: String,
}

/// Each document of `text`; empty ones are left out.
pub fn parse(text: &str) -> Vec<Result<Node, SyntaxError>> {
    let mut documents = Vec::new();
    for (lines_before, chunk) in chunks(text) {
        let mut builder = Builder::new(chunk, lines_before);
        loop {
            match builder.document() {
                Ok(Some(node)) if node.value == Value::Null => {}
                Ok(Some(node)) => documents.push(Ok(node)),
                Ok(None) => break,
                Err(error) => {
                    documents.push(Err(error));
                    break;
                }
            }
        }
    }
    documents
}

/// Cuts before each `---`, which at the start of a line is a document's beginning wherever it stands, and says how many
/// lines come before each piece. Directives and comments stay with the document they precede.
fn chunks(text: &str) -> Vec<(usize, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut chunks = Vec::new();
    let (mut start, mut start_line, mut has_content, mut offset) = (0, 0, false, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let begins = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if begins && has_content {
            chunks.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, number);
        }
        has_content |= begins || !(line.trim().is_empty() || line.starts_with(['#', '%']));
        offset += line.len();
    }
    chunks.push((start_line, &text[start..]));
    chunks
}

struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    lines_before: usize,
    anchors: HashMap<usize, (Node, usize)>,
    aliased: usize,
}

/// A collection that is not finished.
struct Open {
    line: usize,
    anchor: usize,
    content: Content,
}

enum Content {
    Sequence(Vec<Node>),
    Mapping { entries: Vec<Entry>, key: Option<(String, usize)> },
}

impl<'a> Builder<'a> {
    fn new(chunk: &'a str, lines_before: usize) -> Self {
        Self { parser: Parser::new_from_str(chunk), lines_before, anchors: HashMap::new(), aliased: 0 }
    }

    /// The next document, or `None` at the end.
    fn document(&mut self) -> Result<Option<Node>, SyntaxError> {
        let mut open: Vec<Open> = Vec::new();
        loop {
            let Some(event) = self.parser.next_event() else { return Ok(None) };
            let (event, span) = event.map_err(|error| self.scan_error(&error))?;
            let line = self.lines_before + span.start.line();
            let finished = match event {
                Event::Scalar(text, style, anchor, tag) => {
                    refuse_tag(tag.as_deref(), line)?;
                    let value = scalar(text, style, tag.as_deref());
                    self.remember(anchor, Node { line, value })
                }
                Event::Alias(anchor) => self.alias(anchor, line)?,
                Event::SequenceStart(anchor, tag) => {
                    refuse_tag(tag.as_deref(), line)?;
                    begin(&mut open, Open { line, anchor, content: Content::Sequence(Vec::new()) })?;
                    continue;
                }
                Event::MappingStart(anchor, tag) => {
                    let content = Content::Mapping { entries: Vec::new(), key: None };
                    refuse_tag(tag.as_deref(), line)?;
                    begin(&mut open, Open { line, anchor, content })?;
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    let Some(collection) = open.pop() else { return Err(self.misplaced(span)) };
                    let anchor = collection.anchor;
                    self.remember(anchor, collection.finish())
                }
                Event::DocumentStart(_) => {
                    self.anchors.clear();
                    self.aliased = 0;
                    continue;
                }
                Event::StreamEnd => return Ok(None),
                Event::Nothing | Event::StreamStart | Event::DocumentEnd => continue,
            };
            match open.last_mut() {
                Some(collection) => collection.add(finished)?,
                None => return Ok(Some(finished)),
            }
        }
    }

    fn remember(&mut self, anchor: usize, node: Node) -> Node {
        if anchor > 0 {
            let size = node.size();
            self.anchors.insert(anchor, (node.clone(), size));
        }
        node
    }

    fn alias(&mut self, anchor: usize, line: usize) -> Result<Node, SyntaxError> {
        let Some((node, size)) = self.anchors.get(&anchor) else {
            return Err(SyntaxError { line, message: "an alias stands inside what it refers to".to_owned() });
        };
        self.aliased += size;
        if self.aliased > ALIASED_NODES {
            let message =
                format!("the document's aliases expand to more than {ALIASED_NODES} values; write them out");
            return Err(SyntaxError { line, message });
        }
        Ok(node.clone())
    }

    fn scan_error(&self, error: &ScanError) -> SyntaxError {
        let remedy = if error.info().starts_with("tabs") { "; indent with spaces" } else { "" };
        let message = format!("is not YAML: {}{remedy}", error.info());
        SyntaxError { line: self.lines_before + error.marker().line(), message }
    }

    fn misplaced(&self, span: Span) -> SyntaxError {
        let line = self.lines_before + span.start.line();
        SyntaxError { line, message: "is not YAML: a collection ends that did not begin".to_owned() }
    }
}

impl Open {
    fn add(&mut self, node: Node) -> Result<(), SyntaxError> {
        match &mut self.content {
            Content::Sequence(items) => items.push(node),
            Content::Mapping { entries, key } => match key.take() {
                Some((key, line)) => entries.push(Entry { key, line, value: node }),
                None => *key = Some((key_text(node.value, node.line)?, node.line)),
            },
        }
        Ok(())
    }

    fn finish(self) -> Node {
        let value = match self.content {
            Content::Sequence(items) => Value::Sequence(items),
            Content::Mapping { entries, key: _ } => Value::Mapping(entries),
        };
        Node { line: self.line, value }
    }
}

impl Node {
    /// Values in it, itself included.
    fn size(&self) -> usize {
        match &self.value {
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => 1,
            Value::Sequence(items) => 1 + items.iter().map(Self::size).sum::<usize>(),
            Value::Mapping(entries) => 1 + entries.iter().map(|entry| entry.value.size()).sum::<usize>(),
        }
    }
}

fn key_text(value: Value, line: usize) -> Result<String, SyntaxError> {
    match value {
        Value::Text(text) | Value::Number(text) => Ok(text),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Null | Value::Sequence(_) | Value::Mapping(_) => Err(SyntaxError {
            line,
            message: format!("a key has to be a text, and this one is {}", value.kind()),
        }),
    }
}

/// Tags of the core schema say what the value is anyway; others ask for a type that no document has.
fn refuse_tag(tag: Option<&Tag>, line: usize) -> Result<(), SyntaxError> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() => {
            Err(SyntaxError { line, message: format!("the tag {tag} means nothing here; remove it") })
        }
        Some(_) | None => Ok(()),
    }
}

fn begin(open: &mut Vec<Open>, collection: Open) -> Result<(), SyntaxError> {
    if open.len() == DEPTH {
        let message = format!("is nested more than {DEPTH} deep");
        return Err(SyntaxError { line: collection.line, message });
    }
    open.push(collection);
    Ok(())
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let is_text = tag.is_some_and(|tag| tag.suffix == "str");
    if is_text || style != ScalarStyle::Plain { Value::Text(text.into_owned()) } else { plain(text) }
}

/// The core schema of YAML 1.2, as far as documents here have use for it.
fn plain(text: Cow<'_, str>) -> Value {
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        number if is_number(number) => Value::Number(text.into_owned()),
        _ => Value::Text(text.into_owned()),
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    digits.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        && (digits.parse::<f64>().is_ok() || radix(digits).is_some())
}

fn radix(digits: &str) -> Option<u64> {
    let hexadecimal = digits.strip_prefix("0x").map(|rest| u64::from_str_radix(rest, 16));
    let octal = || digits.strip_prefix("0o").map(|rest| u64::from_str_radix(rest, 8));
    hexadecimal.or_else(octal)?.ok()
}
