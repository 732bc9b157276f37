//! The agent's own log, on standard error: text for people, JSON for collectors.

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;
use crate::paint::Paint;

/// Starts logging what `filter` lets through.
pub fn start(filter: &str, format: LogFormat, no_color: bool) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("log filter {filter:?}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
        LogFormat::Text => builder
            .with_ansi(Paint::of(&std::io::stderr(), no_color).is_on())
            .with_target(false)
            .finish()
            .try_init(),
    };
    started.context("logging was started before")
}
