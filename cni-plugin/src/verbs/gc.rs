//! GC: drops what the runtime does not know any more. Without the list of what it knows, nothing is dropped.

use tunproxy_ipc::AttachmentKey;

use super::{Context, SILENCE};
use crate::agent::Agent;
use crate::config::ConfigMode;
use crate::error::PluginError;
use crate::invocation::Environment;
use crate::ipam::{Call, Ipam};
use crate::log::Log;

pub fn run(environment: &Environment, input: &[u8], log: &Log) -> Result<String, PluginError> {
    let context = Context::parse(environment, input)?;
    let version = context.config.version;
    if !version.has_gc_and_status() {
        return Err(PluginError::VerbVersion { verb: "GC", since: "1.1.0", found: version });
    }
    let Some(valid) = &context.config.valid_attachments else {
        log.line("nothing dropped: the runtime did not say which attachments are valid");
        return Ok(SILENCE);
    };
    let collected = Agent::connect(&context.config, context.deadline.end())
        .map_err(PluginError::from)
        .and_then(|mut agent| agent.gc(&context.config.network, valid));
    let removed = collected.as_deref().unwrap_or_default();
    for key in removed {
        log.line(&format!("dropped {key}"));
    }
    // The addresses are released even when the agent could not be asked.
    let released = match &context.config.mode {
        ConfigMode::Chained => Ok(()),
        ConfigMode::Standalone { ipam } => release(&context, &context.ipam(ipam)?, removed, log),
    };
    collected.map(drop).and(released)?;
    Ok(SILENCE)
}

/// Every address by a DEL, because host-local drops nothing on GC, then GC itself. Each is tried; the first failure is
/// what is reported.
fn release(
    context: &Context<'_>,
    ipam: &Ipam<'_>,
    removed: &[AttachmentKey],
    log: &Log,
) -> Result<(), PluginError> {
    let dels = removed.iter().map(Call::DelOf);
    let mut first = Ok(());
    for call in dels.chain([Call::Gc]) {
        if let Err(error) = ipam.call(call, &context.deadline) {
            log.line(&format!("{call:?}: {error}"));
            first = first.and(Err(error));
        }
    }
    first
}
