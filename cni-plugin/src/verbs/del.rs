//! DEL: removes whatever is there of an attachment, however far its ADD came. A pod that is gone, an agent that is
//! down, a result that makes no sense: all success. Keyed on the container, so that a late DEL spares a successor.

use tunproxy_ipc::{ClientError, Tombstones};
use tunproxy_linux_net::steering;

use super::{Context, SILENCE, open_namespace};
use crate::agent::Agent;
use crate::config::ConfigMode;
use crate::error::PluginError;
use crate::invocation::{Command, Environment, Invocation};
use crate::ipam::Call;
use crate::log::Log;

pub fn run(environment: &Environment, input: &[u8], log: &Log) -> Result<String, PluginError> {
    let invocation = Invocation::parse(environment, Command::Del)?;
    let context = Context::parse(environment, input)?;
    detach(&context, &invocation, log);
    // Both are tried, whatever becomes of the other.
    let unplumbed = unplumb(&invocation, log);
    let released = release(&context, &invocation);
    unplumbed.and(released)?;
    log.line("detached");
    Ok(SILENCE)
}

/// The agent goes first: it closes its queues before the device vanishes under them.
fn detach(context: &Context<'_>, invocation: &Invocation, log: &Log) {
    let outcome = Agent::connect(&context.config, context.deadline.part(2))
        .map_err(PluginError::from)
        .and_then(|mut agent| agent.detach(&invocation.key));
    let Err(error) = outcome else { return };
    // Excluded pods have no attachment: no agent need ever hear of them.
    if context.is_excluded(invocation) && matches!(error, PluginError::Agent(ClientError::Unreachable { .. }))
    {
        return;
    }
    log.line(&format!("the agent was not told, a tombstone is left for it: {error}"));
    if let Err(error) = Tombstones::new(&context.config.state_dir).write(&invocation.key) {
        log.line(&format!("no tombstone: {error}"));
    }
}

fn unplumb(invocation: &Invocation, log: &Log) -> Result<(), PluginError> {
    if invocation.netns.is_none() {
        return Ok(());
    }
    match open_namespace(invocation) {
        Ok(namespace) => Ok(steering::unplumb_promptly(&namespace, &invocation.owner())?),
        Err(PluginError::NetNs(error)) if error.is_gone() => Ok(()),
        Err(PluginError::HostNamespace { path }) => {
            log.line(&format!("nothing is removed from {}: it is the host's", path.display()));
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn release(context: &Context<'_>, invocation: &Invocation) -> Result<(), PluginError> {
    let ConfigMode::Standalone { ipam } = &context.config.mode else { return Ok(()) };
    context.ipam(ipam)?.call(Call::Del(&invocation.key), &context.deadline.extended()).map(drop)
}
