//! CHECK: is the pod's network as ADD made it, and does the agent serve it?

use ipnet::IpNet;
use serde_json::Value;
use tunproxy_linux_net::NetNs;
use tunproxy_linux_net::steering;

use super::{Context, SILENCE, chained_plan, open_namespace};
use crate::agent::Agent;
use crate::config::ConfigMode;
use crate::error::PluginError;
use crate::invocation::{Command, Environment, Invocation};
use crate::ipam::Call;

pub fn run(environment: &Environment, input: &[u8]) -> Result<String, PluginError> {
    let invocation = Invocation::parse(environment, Command::Check)?;
    let context = Context::parse(environment, input)?;
    let version = context.config.version;
    if !version.has_check() {
        return Err(PluginError::VerbVersion { verb: "CHECK", since: "0.4.0", found: version });
    }
    let previous = addresses(&context)?;
    if context.is_excluded(&invocation) {
        return Ok(SILENCE);
    }
    let namespace = open_namespace(&invocation).map_err(|error| match error {
        PluginError::NetNs(gone) if gone.is_gone() => {
            PluginError::ContainerGone { path: invocation.netns.clone().unwrap_or_default() }
        }
        other => other,
    })?;
    let problems = match &context.config.mode {
        ConfigMode::Chained => chained(&context, &invocation, &namespace)?,
        ConfigMode::Standalone { ipam } => {
            context.ipam(ipam)?.call(Call::Check, &context.deadline)?;
            standalone(&context, &invocation, &namespace, &previous)?
        }
    };
    if problems.is_empty() { Ok(SILENCE) } else { Err(PluginError::CheckFailed { problems }) }
}

fn chained(
    context: &Context<'_>,
    invocation: &Invocation,
    netns: &NetNs,
) -> Result<Vec<String>, PluginError> {
    let mut agent = Agent::connect(&context.config, context.deadline.end())?;
    let settings = agent.prepare(&context.config, invocation)?;
    if !settings.enrolled {
        return Ok(Vec::new());
    }
    let mut problems = steering::verify_chained(netns, &chained_plan(invocation, &settings))?;
    problems.extend(agent.check(&invocation.key)?);
    Ok(problems)
}

fn standalone(
    context: &Context<'_>,
    invocation: &Invocation,
    netns: &NetNs,
    addresses: &[IpNet],
) -> Result<Vec<String>, PluginError> {
    let mut problems = steering::verify_standalone(netns, &invocation.owner(), addresses)?;
    let mut agent = Agent::connect(&context.config, context.deadline.end())?;
    problems.extend(agent.check(&invocation.key)?);
    Ok(problems)
}

/// The addresses of the result that ADD gave.
fn addresses(context: &Context<'_>) -> Result<Vec<IpNet>, PluginError> {
    let Some(Value::Array(list)) = context.config.previous()?.get("ips") else { return Ok(Vec::new()) };
    let address = |(index, entry): (usize, &Value)| {
        let text = entry.get("address").and_then(Value::as_str).unwrap_or_default();
        text.parse().map_err(|_| {
            PluginError::config(
                format!("prevResult.ips[{index}].address"),
                format!("{text:?} is not an address"),
            )
        })
    };
    list.iter().enumerate().map(address).collect()
}
