//! `--print-config`: what is in force, as a file one could use, with where each value comes from.

use std::fmt;

use super::{KEYS, Loaded, Origin};

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        let width =
            lines.iter().filter(|line| line.remark.is_some()).map(|line| line.text.chars().count()).max();
        let width = width.unwrap_or(0).min(60);
        for Line { text, remark } in lines {
            match remark {
                Some(remark) => writeln!(f, "{text:<width$}  # {remark}")?,
                None => writeln!(f, "{text}")?,
            }
        }
        Ok(())
    }
}

struct Line {
    text: String,
    /// Absent for the head of a group.
    remark: Option<String>,
}

impl Loaded {
    /// Keys that somebody set although they change nothing, with the reason.
    pub fn idle(&self) -> impl Iterator<Item = (&'static str, &'static str)> + '_ {
        let set = KEYS.iter().zip(&self.origins).filter(|(_, origin)| **origin != Origin::Default);
        set.filter_map(|(key, _)| Some((key.path, key.idle?)))
    }

    fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut group = "";
        for (key, origin) in KEYS.iter().zip(&self.origins) {
            let (parent, name) = key.path.split_once('.').unwrap_or(("", key.path));
            if parent != group && !parent.is_empty() {
                lines.push(Line { text: format!("{parent}:"), remark: None });
            }
            group = parent;
            let indent = if parent.is_empty() { "" } else { "  " };
            let values: Vec<String> = (key.show)(&self.config).iter().map(|value| scalar(value)).collect();
            let value = if key.is_list { format!("[{}]", values.join(", ")) } else { values.concat() };
            let remark = match key.idle {
                Some(reason) => format!("{origin}; {reason}"),
                None => origin.to_string(),
            };
            lines.push(Line { text: format!("{indent}{name}: {value}"), remark: Some(remark) });
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
