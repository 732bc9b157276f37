//! ADD: ask the agent, plumb the pod, hand it over, answer. Returns only when the pod is served; when anything fails,
//! nothing of it stays.

use tunproxy_ipc::Settings;
use tunproxy_linux_net::steering::{self, StandalonePlan};
use tunproxy_linux_net::tun::TunError;
use tunproxy_linux_net::{NetNs, NetNsError, Netlink};

use super::{Context, chained_plan, open_namespace};
use crate::agent::Agent;
use crate::config::ConfigMode;
use crate::document;
use crate::error::PluginError;
use crate::invocation::{Command, Environment, Invocation};
use crate::ipam::{Call, Ipam};
use crate::log::Log;

/// MTU of a standalone pod for which the agent names none: that of Ethernet.
const DEFAULT_MTU: u32 = 1500;

pub fn run(environment: &Environment, input: &[u8], log: &Log) -> Result<String, PluginError> {
    let invocation = Invocation::parse(environment, Command::Add)?;
    let context = Context::parse(environment, input)?;
    match &context.config.mode {
        ConfigMode::Chained => chained(&context, &invocation, log),
        ConfigMode::Standalone { ipam } => {
            if context.config.prev_result.is_some() {
                let reason = "tunproxy stands behind another plugin here (prevResult is set): remove ipam";
                return Err(PluginError::config("ipam", reason));
            }
            standalone(&context, &invocation, &context.ipam(ipam)?, log)
        }
    }
}

fn chained(context: &Context<'_>, invocation: &Invocation, log: &Log) -> Result<String, PluginError> {
    let config = &context.config;
    let answer = document::pass_through(config.previous()?, config.version).to_string();
    if context.is_excluded(invocation) {
        log.line("passed through: its namespace is excluded");
        return Ok(answer);
    }
    let namespace = namespace_of_pod(invocation)?;
    let mut agent = Agent::connect(config, context.deadline.end())?;
    let settings = agent.prepare(config, invocation)?;
    if !settings.enrolled {
        log.line("passed through: not enrolled");
        return Ok(answer);
    }
    // A repeated ADD that fails leaves the running pod as it was: taken apart, it would be steered no more.
    let existed = steering::is_plumbed(&namespace, &invocation.owner())?;
    let undo = |_: &PluginError| {
        if !existed {
            take_apart(context, invocation, &namespace);
        }
    };
    let plumbed = steering::plumb_chained(&namespace, &chained_plan(invocation, &settings))
        .map_err(PluginError::from)
        .inspect_err(undo)?;
    let attached = agent.attach(config, invocation, &namespace, &plumbed);
    // The agent takes back what it cannot tell anybody: this connection ends before another one asks to detach.
    drop(agent);
    attached.inspect_err(undo)?;
    log.line("attached");
    Ok(answer)
}

fn standalone(
    context: &Context<'_>,
    invocation: &Invocation,
    ipam: &Ipam<'_>,
    log: &Log,
) -> Result<String, PluginError> {
    let config = &context.config;
    let namespace = namespace_of_pod(invocation)?;
    refuse_existing(&namespace, &invocation.key.ifname)?;
    let mut agent = Agent::connect(config, context.deadline.end())?;
    let settings = agent.prepare(config, invocation)?;
    if !settings.enrolled {
        return Err(PluginError::NotEnrolled);
    }
    let undo = |_: &PluginError| {
        take_apart(context, invocation, &namespace);
        release(context, invocation, ipam, log);
    };
    let lease = ipam.add(&invocation.key, &context.deadline).inspect_err(undo)?;
    let plan = standalone_plan(invocation, &settings, lease.addresses);
    let plumbed =
        steering::plumb_standalone(&namespace, &plan).map_err(PluginError::from).inspect_err(undo)?;
    let attached = agent.attach(config, invocation, &namespace, &plumbed);
    // The agent takes back what it cannot tell anybody: this connection ends before another one asks to detach.
    drop(agent);
    attached.inspect_err(undo)?;
    log.line("attached");
    let (ifname, addresses) = (&invocation.key.ifname, &plumbed.addresses);
    Ok(document::standalone(config.version, ifname, namespace.path(), addresses, lease.dns.as_ref())
        .to_string())
}

fn standalone_plan(
    invocation: &Invocation,
    settings: &Settings,
    addresses: Vec<ipnet::IpNet>,
) -> StandalonePlan {
    StandalonePlan {
        owner: invocation.owner(),
        queues: settings.queues,
        mtu: settings.mtu.unwrap_or(DEFAULT_MTU),
        addresses,
    }
}

/// A path that leads nowhere is a bad variable: nothing was made that would need removal.
fn namespace_of_pod(invocation: &Invocation) -> Result<NetNs, PluginError> {
    open_namespace(invocation).map_err(|error| match error {
        PluginError::NetNs(gone) if NetNsError::is_gone(&gone) => {
            PluginError::Environment { problems: vec![("CNI_NETNS", gone.to_string())] }
        }
        other => other,
    })
}

/// SPEC.md: an interface of that name exists. Said before anybody is asked for an address.
fn refuse_existing(namespace: &NetNs, ifname: &str) -> Result<(), PluginError> {
    let found = Netlink::open_in(namespace)?.and_then(|mut netlink| netlink.link(ifname));
    match found.map_err(steering::SteeringError::from)? {
        Some(_) => Err(steering::SteeringError::from(TunError::Exists { name: ifname.to_owned() }).into()),
        None => Ok(()),
    }
}

/// Leaves nothing of an ADD that failed, neither with the agent nor in the pod. What cannot be undone now is undone by
/// the runtime's DEL.
fn take_apart(context: &Context<'_>, invocation: &Invocation, namespace: &NetNs) {
    if let Ok(mut agent) = Agent::connect(&context.config, context.deadline.grace()) {
        let _ = agent.detach(&invocation.key);
    }
    let _ = steering::unplumb(namespace, &invocation.owner());
}

/// Gives the addresses back. The runtime's DEL does it again when this fails.
fn release(context: &Context<'_>, invocation: &Invocation, ipam: &Ipam<'_>, log: &Log) {
    if let Err(error) = ipam.call(Call::Del(&invocation.key), &context.deadline.extended()) {
        log.line(&format!("the addresses were not given back: {error}"));
    }
}
