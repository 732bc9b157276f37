//! What happened, for people: standard error, and a file of bounded size where one is configured. A log that cannot be
//! written never fails a verb.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::invocation::Environment;

/// The file is renamed to `NAME.1` when it exceeds this many bytes, so that both together stay below twice of it.
const MAX_FILE: u64 = 1 << 20;

/// Where lines go, and what every line begins with.
#[derive(Debug, Clone)]
pub struct Log {
    file: Option<PathBuf>,
    subject: String,
}

impl Log {
    /// Reads what it needs by itself: a configuration that is refused is logged too.
    pub fn new(environment: &Environment, input: &[u8]) -> Self {
        let document: Value = serde_json::from_slice(input).unwrap_or_default();
        let file = document.get("logFile").and_then(Value::as_str).filter(|text| text.starts_with('/'));
        Self { file: file.map(PathBuf::from), subject: environment.subject() }
    }

    pub fn line(&self, text: &str) {
        // One line each, whatever an error message holds.
        let line = format!("{} {}", self.subject, text.replace('\n', " "));
        eprintln!("tunproxy: {line}");
        if let Some(path) = &self.file {
            let _ = append(path, &line);
        }
    }
}

fn append(path: &Path, line: &str) -> std::io::Result<()> {
    if fs::metadata(path).is_ok_and(|found| found.len() > MAX_FILE) {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        fs::rename(path, old)?;
    }
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // One write: lines of plugins that run at once do not mix.
    file.write_all(format!("{}.{:03} {line}\n", since.as_secs(), since.subsec_millis()).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cni.log");
        let log = Log { file: Some(path.clone()), subject: "ADD c1/eth0".into() };
        fs::write(&path, vec![b'x'; MAX_FILE as usize + 1]).unwrap();
        log.line("first\nsecond");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.ends_with(" ADD c1/eth0 first second\n"), "{text}");
        assert_eq!(text.lines().count(), 1);
        assert_eq!(fs::metadata(dir.path().join("cni.log.1")).unwrap().len(), MAX_FILE + 1);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_no_error() {
        let log = Log { file: Some("/proc/absent/cni.log".into()), subject: "ADD".into() };
        log.line("goes to standard error");
    }
}
