//! STATUS: could an ADD be served now?

use tunproxy_ipc::ClientError;

use super::{Context, SILENCE};
use crate::agent::Agent;
use crate::config::ConfigMode;
use crate::error::PluginError;
use crate::invocation::Environment;
use crate::ipam::Call;

pub fn run(environment: &Environment, input: &[u8]) -> Result<String, PluginError> {
    let context = Context::parse(environment, input)?;
    let version = context.config.version;
    if !version.has_gc_and_status() {
        return Err(PluginError::VerbVersion { verb: "STATUS", since: "1.1.0", found: version });
    }
    let status = Agent::connect(&context.config, context.deadline.end())
        .map_err(PluginError::from)
        .and_then(|mut agent| agent.status())
        .map_err(|error| unavailable(&error))?;
    if !status.ready {
        let message = status.message;
        return Err(if status.degraded {
            PluginError::Degraded { message }
        } else {
            PluginError::NotReady { message }
        });
    }
    if let ConfigMode::Standalone { ipam } = &context.config.mode {
        context.ipam(ipam)?.call(Call::Status, &context.deadline)?;
    }
    Ok(SILENCE)
}

/// An agent that is gone serves no running pod either. One that answers does, even if it is of another release and the
/// plugin does not understand it.
fn unavailable(error: &PluginError) -> PluginError {
    let message = error.to_string();
    match error {
        PluginError::Answer { .. }
        | PluginError::Agent(ClientError::Frame { .. } | ClientError::Refused(_)) => {
            PluginError::NotReady { message }
        }
        _ => PluginError::Degraded { message },
    }
}
