//! The verbs, one file each.

mod add;
mod check;
mod del;
mod gc;
mod status;
mod version;

use tunproxy_ipc::Settings;
use tunproxy_linux_net::NetNs;
use tunproxy_linux_net::steering::ChainedPlan;

use crate::config::Config;
use crate::deadline::Deadline;
use crate::error::PluginError;
use crate::invocation::{Command, Environment, Invocation};
use crate::ipam::Ipam;
use crate::log::Log;

/// Runs a verb; the text is what goes to standard output.
pub fn run(command: Command, environment: &Environment, input: &[u8]) -> Result<String, PluginError> {
    let log = Log::new(environment, input);
    let outcome = match command {
        Command::Add => add::run(environment, input, &log),
        Command::Del => del::run(environment, input, &log),
        Command::Check => check::run(environment, input),
        Command::Gc => gc::run(environment, input, &log),
        Command::Status => status::run(environment, input),
        Command::Version => version::run(input),
    };
    outcome.inspect_err(|error| log.line(&format!("failed with code {}: {error}", error.code())))
}

/// What most verbs answer: nothing.
const SILENCE: String = String::new();

/// What a verb works with.
#[derive(Debug)]
struct Context<'a> {
    environment: &'a Environment,
    /// The network configuration as it came, for delegation.
    input: &'a [u8],
    config: Config,
    deadline: Deadline,
}

impl<'a> Context<'a> {
    fn parse(environment: &'a Environment, input: &'a [u8]) -> Result<Self, PluginError> {
        let config = Config::parse(input)?;
        let deadline = Deadline::after(config.timeout);
        Ok(Self { environment, input, config, deadline })
    }

    /// The pod is in a namespace that the configuration leaves alone.
    fn is_excluded(&self, invocation: &Invocation) -> bool {
        self.config.exclude.contains(&invocation.pod.namespace)
    }

    fn ipam<'n>(&'n self, name: &'n str) -> Result<Ipam<'n>, PluginError> {
        Ipam::find(self.environment, name, self.input, &self.config.state_dir)
    }
}

/// The pod's namespace, unless it is the host's.
fn open_namespace(invocation: &Invocation) -> Result<NetNs, PluginError> {
    let path = invocation.netns.clone().unwrap_or_default();
    let namespace = NetNs::open(&path)?;
    if namespace.is_host() && !invocation.allow_host_namespace {
        return Err(PluginError::HostNamespace { path });
    }
    Ok(namespace)
}

fn chained_plan(invocation: &Invocation, settings: &Settings) -> ChainedPlan {
    ChainedPlan {
        owner: invocation.owner(),
        queues: settings.queues,
        mtu: settings.mtu,
        mark: settings.mark,
        cluster: settings.pods.iter().chain(&settings.services).copied().collect(),
    }
}
