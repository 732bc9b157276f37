//! `validate`: every mistake of every document.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::documents::{self, LoadReport};
use crate::paint::Paint;

use super::Output;

const SOUND: u8 = 0;
const MISTAKEN: u8 = 1;

/// Tell every mistake of policy documents, with file, line and key.
///
/// Reads files, and of folders the *.yaml and *.yml in them. All documents count together: an upstream that a rule names
/// has to be among them. Exit status: 0 when there is no mistake, 1 when there is one, 2 when the command itself fails.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  tunproxy-agent validate policy.yaml
  tunproxy-agent validate policies/ upstreams/
  tunproxy-agent validate -o json policies/")]
pub struct ValidateArgs {
    /// Files and folders of policy documents.
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// How to print the mistakes.
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
}

/// Prints what is wrong and gives the exit status.
pub fn run(args: &ValidateArgs, out: &mut dyn Write, paint: Paint) -> anyhow::Result<u8> {
    let report = documents::load(&args.paths);
    match args.output {
        Output::Text => print_text(&report, out, paint)?,
        Output::Json => print_json(&report, out)?,
    }
    Ok(if report.mistakes.is_empty() && !report.files.is_empty() { SOUND } else { MISTAKEN })
}

fn print_text(report: &LoadReport, out: &mut dyn Write, paint: Paint) -> std::io::Result<()> {
    for mistake in &report.mistakes {
        writeln!(out, "{}{}", paint.strong(mistake.place()), mistake.said())?;
    }
    let files = counted(report.files.len(), "file");
    if !report.mistakes.is_empty() {
        let mistaken: BTreeSet<_> = report.mistakes.iter().map(|mistake| &mistake.file).collect();
        let mistakes = counted(report.mistakes.len(), "mistake");
        let summary = format!("{mistakes} in {} of {files}", mistaken.len());
        return writeln!(out, "{}", paint.bad(summary));
    }
    if report.files.is_empty() {
        return writeln!(
            out,
            "there is no *.yaml or *.yml to validate; give a file or a folder that holds some"
        );
    }
    let policies = report.documents.policies.egress.len() + report.documents.policies.cluster.len();
    let policies = match policies {
        1 => "1 policy".to_owned(),
        count => format!("{count} policies"),
    };
    writeln!(
        out,
        "{}: {policies}, {} in {files}",
        paint.good("no mistakes"),
        counted(report.documents.upstreams.len(), "upstream")
    )
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn print_json(report: &LoadReport, out: &mut dyn Write) -> anyhow::Result<()> {
    let mistakes: Vec<_> = report
        .mistakes
        .iter()
        .map(|mistake| {
            json!({
                "file": mistake.file.to_string_lossy(),
                "line": (mistake.line > 0).then_some(mistake.line),
                "key": (!mistake.key.is_empty()).then_some(&mistake.key),
                "message": mistake.message,
            })
        })
        .collect();
    let files: Vec<_> = report.files.iter().map(|file| file.to_string_lossy()).collect();
    serde_json::to_writer_pretty(&mut *out, &json!({"files": files, "mistakes": mistakes}))?;
    writeln!(out)?;
    Ok(())
}

#[cfg(test)]
mod tests;
