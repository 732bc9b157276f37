//! What the checks found: rows for people and for programs, and the exit status.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use crate::paint::{Paint, Painted};

/// The remedy where the failure itself names none.
pub const LOOK: &str = "run it again with --log-level debug: the agent names the call that failed";

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// It works at a price, which the row names.
    Degraded,
    /// What pods would ask for does not work.
    Failed,
    /// Nothing can be said here; the row says why.
    Skipped,
}

impl Status {
    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its name, which stays the same from release to release.
    pub check: &'static str,
    pub status: Status,
    /// What was found, and what a degraded row costs.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Row {
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, found: found.into(), remedy: None }
    }

    pub fn degraded(check: &'static str, found: impl Into<String>, remedy: &str) -> Self {
        Self { check, status: Status::Degraded, found: found.into(), remedy: Some(remedy.to_owned()) }
    }

    pub fn failed(check: &'static str, found: impl Into<String>, remedy: &str) -> Self {
        Self { check, status: Status::Failed, found: found.into(), remedy: Some(remedy.to_owned()) }
    }

    pub fn skipped(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, status: Status::Skipped, found: found.into(), remedy: None }
    }
}

/// Who ran the test: an ordinary user sees less of the kernel than the agent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Privilege {
    Root,
    User,
}

/// Everything that was found.
#[derive(Clone, Debug)]
pub struct Report {
    pub kernel: String,
    pub privilege: Privilege,
    pub rows: Vec<Row>,
    pub elapsed: Duration,
}

/// The JSON document. Fields are added, never renamed or removed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    result: Status,
    version: &'static str,
    kernel: &'a str,
    privilege: Privilege,
    elapsed_ms: u64,
    rows: &'a [Row],
}

impl Report {
    /// The worst of the rows. A row that was skipped says nothing.
    pub fn result(&self) -> Status {
        let is = |status| self.count(status) > 0;
        match (is(Status::Failed), is(Status::Degraded)) {
            (true, _) => Status::Failed,
            (false, true) => Status::Degraded,
            (false, false) => Status::Ok,
        }
    }

    /// 0, or 1 when a check failed.
    pub fn exit_status(&self) -> u8 {
        u8::from(self.result() == Status::Failed)
    }

    /// One JSON document.
    pub fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        let document = Document {
            result: self.result(),
            version: env!("CARGO_PKG_VERSION"),
            kernel: &self.kernel,
            privilege: self.privilege,
            elapsed_ms: u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX),
            rows: &self.rows,
        };
        serde_json::to_writer_pretty(&mut *out, &document)?;
        writeln!(out)
    }

    /// A line for each row, the remedy below where there is one, and the sum.
    pub fn write_text(&self, out: &mut dyn Write, paint: Paint) -> io::Result<()> {
        let width = self.rows.iter().map(|row| row.check.len()).max().unwrap_or(0);
        for row in &self.rows {
            let label = format!("{:8}", row.status.label());
            writeln!(out, "{}  {:width$}  {}", painted(&label, row.status, paint), row.check, row.found)?;
            if let Some(remedy) = &row.remedy {
                writeln!(out, "{:8}  {:width$}  {} {remedy}", "", "", paint.strong("remedy:"))?;
            }
        }
        let counts = [Status::Ok, Status::Degraded, Status::Failed, Status::Skipped]
            .map(|status| format!("{} {}", self.count(status), status.label().to_lowercase()));
        writeln!(out, "\n{} in {:.1} s", counts.join(", "), self.elapsed.as_secs_f64())
    }

    fn count(&self, status: Status) -> usize {
        self.rows.iter().filter(|row| row.status == status).count()
    }
}

fn painted(label: &str, status: Status, paint: Paint) -> Painted<&str> {
    match status {
        Status::Ok => paint.good(label),
        Status::Degraded => paint.warning(label),
        Status::Failed => paint.bad(label),
        Status::Skipped => paint.faint(label),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rows: Vec<Row>) -> Report {
        let elapsed = Duration::from_millis(1_250);
        Report { kernel: "6.18.0".into(), privilege: Privilege::User, rows, elapsed }
    }

    fn rows() -> Vec<Row> {
        vec![
            Row::ok("tun", "two queues"),
            Row::degraded("offload", "one call each", "a newer kernel"),
            Row::skipped("ping-v6", "no IPv6"),
        ]
    }

    #[test]
    fn only_a_failure_fails() {
        assert_eq!((report(Vec::new()).result(), report(Vec::new()).exit_status()), (Status::Ok, 0));
        let mut rows = rows();
        assert_eq!(
            (report(rows.clone()).result(), report(rows.clone()).exit_status()),
            (Status::Degraded, 0)
        );
        rows.push(Row::failed("udp-v4", "no answer", "look"));
        assert_eq!((report(rows.clone()).result(), report(rows).exit_status()), (Status::Failed, 1));
    }

    #[test]
    fn text_is_aligned_and_names_the_remedy() {
        let mut text = Vec::new();
        report(rows()).write_text(&mut text, Paint::PLAIN).unwrap();
        let expected = "\
ok        tun      two queues
degraded  offload  one call each
                   remedy: a newer kernel
skipped   ping-v6  no IPv6

1 ok, 1 degraded, 0 failed, 1 skipped in 1.2 s
";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn json_has_the_documented_fields() {
        let mut text = Vec::new();
        report(rows()).write_json(&mut text).unwrap();
        let found: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let expected = serde_json::json!({
            "result": "degraded", "version": env!("CARGO_PKG_VERSION"), "kernel": "6.18.0", "privilege": "user",
            "elapsedMs": 1250,
            "rows": [
                {"check": "tun", "status": "ok", "found": "two queues"},
                {"check": "offload", "status": "degraded", "found": "one call each", "remedy": "a newer kernel"},
                {"check": "ping-v6", "status": "skipped", "found": "no IPv6"},
            ],
        });
        assert_eq!(found, expected);
    }
}
