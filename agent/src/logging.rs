//! The agent's own log, on standard error: text for people, JSON for collectors.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// Whether to colour what goes to `stream`.
pub fn colours(stream: &impl IsTerminal, no_color: bool) -> bool {
    let forbidden = no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !forbidden && stream.is_terminal()
}

/// Starts logging what `filter` lets through.
pub fn start(filter: &str, format: LogFormat, no_color: bool) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("log filter {filter:?}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
        LogFormat::Text => {
            builder.with_ansi(colours(&std::io::stderr(), no_color)).with_target(false).finish().try_init()
        }
    };
    started.context("logging was started before")
}
