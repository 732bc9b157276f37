//! `--print-config`: what is in force, as a file one could use, with where each value comes from.

use std::fmt;

use super::{KEYS, Loaded, Origin};

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<(String, Option<&Origin>)> = self.lines();
        let width =
            lines.iter().filter(|(_, origin)| origin.is_some()).map(|(text, _)| text.chars().count()).max();
        let width = width.unwrap_or(0).min(60);
        for (text, origin) in lines {
            match origin {
                Some(origin) => writeln!(f, "{text:<width$}  # {origin}")?,
                None => writeln!(f, "{text}")?,
            }
        }
        Ok(())
    }
}

impl Loaded {
    fn lines(&self) -> Vec<(String, Option<&Origin>)> {
        let mut lines = Vec::new();
        let mut group = "";
        for (key, origin) in KEYS.iter().zip(&self.origins) {
            let (parent, name) = key.path.split_once('.').unwrap_or(("", key.path));
            if parent != group && !parent.is_empty() {
                lines.push((format!("{parent}:"), None));
            }
            group = parent;
            let indent = if parent.is_empty() { "" } else { "  " };
            let values: Vec<String> = (key.show)(&self.config).iter().map(|value| scalar(value)).collect();
            let value = if key.is_list { format!("[{}]", values.join(", ")) } else { values.concat() };
            lines.push((format!("{indent}{name}: {value}"), Some(origin)));
        }
        lines
    }
}

/// Quoted where plain YAML would read it as something else.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-=".contains(c) || c == ':')
        && !text.contains(": ")
        && !text.ends_with(':')
        // A colon after digits may be a base-60 number to a YAML 1.1 reader.
        && !(text.contains(':') && text.starts_with(|first: char| first.is_ascii_digit()));
    if plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}
