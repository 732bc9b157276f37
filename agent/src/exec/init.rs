//! The child of `exec`: one thread, from the agent's program to the command's.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::process::{Signal, set_parent_process_death_signal};
use tunproxy_linux_net::sandbox::{self, SandboxPlan};
use tunproxy_linux_net::tun::Tun;

use super::channel::{Init, Plan};
use super::quiet::hide_resolvers;
use super::{FAILED, RESOLV_CONF};

/// As shells say it.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Becomes the command, or says why not.
pub fn run(command: &[OsString]) -> ExitCode {
    match set_up() {
        Ok(()) => become_command(command),
        // The parent is told over the channel; without one, a person called this by hand.
        Err(SetUp::Told) => ExitCode::from(FAILED),
        Err(SetUp::NoParent(error)) => {
            eprintln!("tunproxy-agent: exec-init is started by `tunproxy-agent exec` only: {error}");
            ExitCode::from(FAILED)
        }
    }
}

enum SetUp {
    Told,
    NoParent(io::Error),
}

impl From<io::Error> for SetUp {
    fn from(error: io::Error) -> Self {
        Self::NoParent(error)
    }
}

fn set_up() -> Result<(), SetUp> {
    // A command whose TUN nobody serves is of no use, and nothing is to be left behind.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)?;
    // The copy is closed when the command starts; standard input itself is replaced by the real one.
    let init = Init::new(io::stdin().as_fd().try_clone_to_owned()?);
    let (plan, stdin) = init.plan()?;
    rustix::stdio::dup2_stdin(stdin).map_err(io::Error::from)?;
    match isolate(plan) {
        Ok(tun) => init.ready(&tun.queues)?,
        Err(message) => {
            init.failed(message)?;
            return Err(SetUp::Told);
        }
    }
    init.wait()?;
    Ok(())
}

/// Leaves the host's network, and what resolves names beside it.
fn isolate(plan: Plan) -> Result<Tun, String> {
    let tun = sandbox::enter(&sandbox_plan(plan)).map_err(|error| error.to_string())?;
    // After the command's resolv.conf is in place, which may lie in a folder that is hidden.
    hide_resolvers(Path::new(RESOLV_CONF)).map_err(|error| error.to_string())?;
    Ok(tun)
}

fn sandbox_plan(plan: Plan) -> SandboxPlan {
    SandboxPlan {
        tun_name: plan.tun_name,
        queues: plan.queues,
        mtu: plan.mtu,
        addresses: plan.addresses,
        resolv_conf: Some(plan.resolv_conf),
    }
}

fn become_command(command: &[OsString]) -> ExitCode {
    let [program, arguments @ ..] = command else { return ExitCode::from(FAILED) };
    let error = Command::new(program).args(arguments).exec();
    if error.kind() == io::ErrorKind::NotFound {
        // The kernel says the same of a script whose interpreter is missing.
        let hint = if Path::new(program).exists() { "its interpreter" } else { "it" };
        eprintln!("tunproxy-agent: {} cannot be run: {hint} is not there", program.display());
        return ExitCode::from(NOT_FOUND);
    }
    eprintln!("tunproxy-agent: {} cannot be run: {error}", program.display());
    ExitCode::from(NOT_EXECUTABLE)
}
