//! A place in a document: reads the value there, or says what is wrong with it and goes on.

use std::ops::RangeInclusive;

use super::{Entry, Node, Sink, Value, nearest};

#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    node: &'a Node,
    /// Where to report: the key's line where there is one.
    line: usize,
    key: String,
    /// What children's keys begin with.
    prefix: String,
    sink: &'a Sink,
}

/// A mistake that is in the [`Sink`] already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded;

/// The keys of a mapping, all known and each there once.
#[derive(Debug)]
pub struct Fields<'a> {
    entries: &'a [Entry],
    place: Cursor<'a>,
}

impl<'a> Cursor<'a> {
    pub fn root(node: &'a Node, sink: &'a Sink) -> Self {
        Self { node, line: node.line, key: String::new(), prefix: String::new(), sink }
    }

    /// The same place, whose children's keys are told without its own: `rules[0]` rather than `spec.rules[0]`.
    pub fn as_base(mut self) -> Self {
        self.prefix.clear();
        self
    }

    pub fn line(&self) -> usize {
        self.line
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn value(&self) -> &'a Value {
        &self.node.value
    }

    pub fn sink(&self) -> &'a Sink {
        self.sink
    }

    /// Records a mistake here.
    pub fn wrong(&self, message: impl Into<String>) {
        self.sink.add(self.line, self.key.as_str(), message);
    }

    fn expected(&self, what: &str) {
        self.wrong(format!("expected {what}, found {}", self.node.value.kind()));
    }

    /// The mapping here; unknown and repeated keys are recorded.
    pub fn mapping(&self, known: &[&str]) -> Option<Fields<'a>> {
        let fields = self.any_mapping()?;
        self.known_keys(known);
        Some(fields)
    }

    /// Records the unknown keys of the mapping here, for when the kind of thing shows only after a first look.
    pub fn known_keys(&self, known: &[&str]) {
        let Value::Mapping(entries) = &self.node.value else { return };
        for entry in entries {
            if !known.contains(&entry.key.as_str()) {
                self.sink.add(entry.line, self.key.as_str(), unknown_key(&entry.key, known));
            }
        }
    }

    /// The mapping here, whose keys are checked already.
    pub fn quiet_mapping(&self) -> Option<Fields<'a>> {
        let Value::Mapping(entries) = &self.node.value else { return None };
        Some(Fields { entries, place: self.clone() })
    }

    /// The mapping here, whose keys are free (labels, say); repeated ones are recorded.
    pub fn any_mapping(&self) -> Option<Fields<'a>> {
        let Value::Mapping(entries) = &self.node.value else {
            self.expected("a mapping");
            return None;
        };
        let mut first_lines = std::collections::HashMap::new();
        for entry in entries {
            match first_lines.get(entry.key.as_str()) {
                None => drop(first_lines.insert(entry.key.as_str(), entry.line)),
                Some(first) => {
                    let message =
                        format!("the key `{}` is there twice (first on line {first}); remove one", entry.key);
                    self.sink.add(entry.line, self.key.as_str(), message);
                }
            }
        }
        Some(Fields { entries, place: self.clone() })
    }

    pub fn sequence(&self) -> Option<Vec<Cursor<'a>>> {
        let Value::Sequence(items) = &self.node.value else {
            self.expected("a list");
            return None;
        };
        let item = |(index, node): (usize, &'a Node)| {
            let key = format!("{}[{index}]", self.key);
            Cursor { node, line: node.line, prefix: format!("{key}."), key, sink: self.sink }
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    pub fn text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Bool(_) | Value::Number(_) => {
                self.wrong(format!("expected a text, found {}; put it in quotes", self.node.value.kind()));
                None
            }
            Value::Null | Value::Sequence(_) | Value::Mapping(_) => {
                self.expected("a text");
                None
            }
        }
    }

    /// A whole number; `what` names it in the mistake ("a port").
    pub fn integer(&self, range: RangeInclusive<u64>, what: &str) -> Option<u64> {
        let Value::Number(text) = &self.node.value else {
            let quoted = matches!(&self.node.value, Value::Text(text) if text.parse::<u64>().is_ok());
            let remedy = if quoted { "; remove the quotes" } else { "" };
            let found = self.node.value.kind();
            self.wrong(format!("expected {what} ({}-{}), found {found}{remedy}", range.start(), range.end()));
            return None;
        };
        let number = text.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            self.wrong(format!("{text} is not {what} ({}-{})", range.start(), range.end()));
        }
        number
    }

    pub fn boolean(&self) -> Option<bool> {
        if let Value::Bool(value) = self.node.value {
            return Some(value);
        }
        self.expected("true or false");
        None
    }

    /// One of a few words.
    pub fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(format!("{text:?} is not one of {}{}", known.join(", "), suggestion(text, &known)));
        }
        found.map(|(_, value)| *value)
    }
}

impl<'a> Fields<'a> {
    /// A key that may be absent; one without a value is recorded, as nobody can tell what it was meant to be.
    pub fn get(&self, key: &str) -> Option<Cursor<'a>> {
        let found = self.place(key)?;
        if *found.value() == Value::Null {
            found.wrong("has no value; give it one or remove the key");
            return None;
        }
        Some(found)
    }

    /// A key that may be absent, read by `read`, whose `None` is a mistake.
    pub fn optional<T>(
        &self,
        key: &str,
        read: impl FnOnce(&Cursor<'a>) -> Option<T>,
    ) -> Result<Option<T>, Recorded> {
        if !self.has(key) {
            return Ok(None);
        }
        self.get(key).and_then(|place| read(&place)).map(Some).ok_or(Recorded)
    }

    /// A key that has to be there; `remedy` says what to write.
    pub fn require(&self, key: &str, remedy: &str) -> Option<Cursor<'a>> {
        if self.has(key) {
            return self.get(key);
        }
        self.place.wrong(format!("`{key}` is missing; {remedy}"));
        None
    }

    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    /// All keys, in the order written.
    pub fn each(&self) -> impl Iterator<Item = (&'a str, Cursor<'a>)> {
        self.entries.iter().map(|entry| (entry.key.as_str(), self.child(entry)))
    }

    fn place(&self, key: &str) -> Option<Cursor<'a>> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        Some(self.child(entry))
    }

    fn child(&self, entry: &'a Entry) -> Cursor<'a> {
        let key = format!("{}{}", self.place.prefix, entry.key);
        Cursor { node: &entry.value, line: entry.line, prefix: format!("{key}."), key, sink: self.place.sink }
    }
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    if key == "<<" {
        return "merge keys (`<<`) are not supported; write the keys out".to_owned();
    }
    match nearest(key, known) {
        Some(near) => format!("unknown key `{key}`; did you mean `{near}`?"),
        None => format!("unknown key `{key}` (known are {})", known.join(", ")),
    }
}

fn suggestion(word: &str, known: &[&str]) -> String {
    nearest(word, known).map_or(String::new(), |near| format!("; did you mean {near}?"))
}
