//! agent.yaml: which keys it sets, and every mistake in its shape. What the values mean is the table's business.

use std::collections::BTreeSet;
use std::path::Path;

use super::KEYS;
use super::value::{Mistake, Origin, Raw};
use crate::yaml::{self, Cursor, Fields, Sink, Value};

/// A configuration of this program has some thirty lines.
const MAX_SIZE: usize = 1 << 20;

/// Everything the file sets, and everything wrong with it.
pub fn read(path: &Path) -> (Vec<Raw>, Vec<Mistake>) {
    let sink = Sink::new(path);
    let raw = match std::fs::read(path).map(String::from_utf8) {
        Err(error) => {
            sink.add(0, "", format!("{error}; give the settings' file with --config, or leave it out"));
            Vec::new()
        }
        Ok(Err(_)) => {
            sink.add(0, "", "is not UTF-8 text");
            Vec::new()
        }
        Ok(Ok(text)) if text.len() > MAX_SIZE => {
            sink.add(0, "", format!("has {} bytes; a configuration has at most {MAX_SIZE}", text.len()));
            Vec::new()
        }
        Ok(Ok(text)) => document(&text, &sink),
    };
    let mistakes = sink.into_mistakes().into_iter().map(Mistake::from).collect();
    (raw, mistakes)
}

fn document(text: &str, sink: &Sink) -> Vec<Raw> {
    let mut documents = yaml::parse(text).into_iter();
    let settings = match documents.next() {
        None => Vec::new(),
        Some(Err(error)) => {
            sink.add(error.line, "", error.message);
            Vec::new()
        }
        Some(Ok(node)) => top_level(&Cursor::root(&node, sink)),
    };
    if let Some(second) = documents.next() {
        let line = second.map_or_else(|error| error.line, |node| node.line);
        sink.add(line, "", "a second document; policy documents go into files of their own (key `policy`)");
    }
    settings
}

fn top_level(root: &Cursor<'_>) -> Vec<Raw> {
    let names: BTreeSet<&str> = KEYS.iter().map(|key| split(key.path).0).collect();
    let Some(fields) = root.mapping(&names.iter().copied().collect::<Vec<_>>()) else { return Vec::new() };
    names
        .into_iter()
        .filter_map(|name| fields.get(name).map(|cursor| (name, cursor)))
        .flat_map(entry)
        .collect()
}

/// A key of its own, or a group of keys.
fn entry((name, cursor): (&str, Cursor<'_>)) -> Vec<Raw> {
    if let Some(key) = KEYS.iter().position(|key| key.path == name) {
        return setting(key, &cursor).into_iter().collect();
    }
    // `flowLog: none` is short for `flowLog: {path: none}`.
    if let ("flowLog", Value::Text(_)) = (name, cursor.value()) {
        let key = KEYS.iter().position(|key| key.path == "flowLog.path");
        return key.and_then(|key| setting(key, &cursor)).into_iter().collect();
    }
    let members: Vec<(usize, &str)> = KEYS
        .iter()
        .enumerate()
        .filter_map(|(key, spec)| {
            split(spec.path).1.filter(|_| split(spec.path).0 == name).map(|member| (key, member))
        })
        .collect();
    let known: Vec<&str> = members.iter().map(|(_, member)| *member).collect();
    let Some(fields) = cursor.mapping(&known) else { return Vec::new() };
    members.into_iter().filter_map(|(key, member)| member_of(&fields, key, member)).collect()
}

fn member_of(fields: &Fields<'_>, key: usize, member: &str) -> Option<Raw> {
    setting(key, &fields.get(member)?)
}

fn setting(key: usize, cursor: &Cursor<'_>) -> Option<Raw> {
    let values = if KEYS[key].is_list {
        cursor.sequence()?.iter().map(scalar).collect::<Option<Vec<_>>>()?
    } else {
        vec![scalar(cursor)?]
    };
    let origin = Origin::File { path: cursor.sink().file().to_owned(), line: cursor.line() };
    Some(Raw { key, values, origin })
}

fn scalar(cursor: &Cursor<'_>) -> Option<String> {
    match cursor.value() {
        Value::Text(text) | Value::Number(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        // `text` words the mistake.
        Value::Null | Value::Sequence(_) | Value::Mapping(_) => cursor.text().map(str::to_owned),
    }
}

fn split(path: &'static str) -> (&'static str, Option<&'static str>) {
    path.split_once('.').map_or((path, None), |(group, member)| (group, Some(member)))
}

impl From<yaml::Mistake> for Mistake {
    fn from(mistake: yaml::Mistake) -> Self {
        let place = Origin::File { path: mistake.file, line: mistake.line };
        Self { place, key: mistake.key, message: mistake.message }
    }
}
