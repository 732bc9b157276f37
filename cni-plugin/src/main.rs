//! `tunproxy`, a CNI plugin that puts a TUN before a pod's egress and hands it to the node agent.
//!
//! One straight line per verb, in [`verbs`]: parse, ask the agent, plumb, hand over, answer. Everything the verbs share
//! is a value: [`invocation::Invocation`] (environment), [`config::Config`] (standard input), [`deadline::Deadline`].
//! Errors become CNI error documents in one place, [`error`].
//!
//! Architecture invariant: no task, no thread pool, no kube client, no token; the only peer is the agent's Unix socket.
//! The one runtime is inside `Netlink`, where it drives rtnetlink.

mod about;
mod agent;
mod config;
mod deadline;
mod document;
mod error;
mod invocation;
mod ipam;
mod log;
#[cfg(test)]
mod testing;
mod verbs;
mod version;

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use crate::error::PluginError;
use crate::invocation::Environment;
use crate::version::CniVersion;

fn main() -> ExitCode {
    let environment = Environment::from_process();
    if environment.command().is_none() {
        return about::introduce(std::io::stdin().is_terminal());
    }
    let (version, outcome) = run(&environment);
    let (text, code) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (error.document(&version), ExitCode::FAILURE),
    };
    match print(&text) {
        Ok(()) => code,
        Err(error) => {
            eprintln!("tunproxy: cannot write the result: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The version the answer has to name, and the answer: nothing, or a document.
fn run(environment: &Environment) -> (String, Result<String, PluginError>) {
    let input = match read_input() {
        Ok(input) => input,
        Err(error) => return (CniVersion::LATEST.to_string(), Err(error)),
    };
    let version = document::version_of(&input);
    let outcome = environment.parse_command().and_then(|command| verbs::run(command, environment, &input));
    (version, outcome)
}

fn read_input() -> Result<Vec<u8>, PluginError> {
    /// A network configuration with the results of a long chain is a few KiB.
    const MAX_INPUT: u64 = 4 << 20;
    let mut input = Vec::new();
    std::io::stdin()
        .lock()
        .take(MAX_INPUT)
        .read_to_end(&mut input)
        .map_err(|source| PluginError::ReadInput { source })?;
    Ok(input)
}

fn print(text: &str) -> std::io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}
