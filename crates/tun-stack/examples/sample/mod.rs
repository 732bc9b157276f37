//! What both samples have in common: the TUN, the stack on it, the signals.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tunproxy_tun_stack::{Stack, StackConfig, TunDevice};

/// The kernel's side and the stack's: of the range for benchmarks (RFC 2544), which nobody routes, and a ULA prefix.
const HOST: [&str; 2] = ["198.19.77.1/24", "fdb4:7c1e:52a9:77::1/64"];
const STACK: [&str; 2] = ["198.19.77.2/24", "fdb4:7c1e:52a9:77::2/64"];

#[derive(Debug, Args)]
pub struct Network {
    /// Name of the TUN; it is made, and gone when the program ends
    #[arg(long, value_name = "NAME", default_value = "tunstack0")]
    device: String,
    /// Address of the kernel's side of the TUN, with its prefix length; may be given more than once
    #[arg(long, value_name = "NETWORK", default_values = HOST)]
    host: Vec<ipnet::IpNet>,
    /// Address of the stack, with its prefix length; may be given more than once
    #[arg(long, value_name = "NETWORK", default_values = STACK)]
    pub address: Vec<ipnet::IpNet>,
    /// Bytes of the largest packet
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    mtu: u16,
}

impl Network {
    pub fn start(&self) -> anyhow::Result<Stack> {
        let device = TunDevice::create(&self.device, self.mtu, &self.host)
            .with_context(|| format!("--device {}", self.device))?;
        Stack::new(device, StackConfig::new(self.address.clone())).context("the stack cannot start")
    }
}

/// Runs `work` until it ends or a signal comes. What it opened is closed then.
pub fn run(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.context("no tokio runtime").and_then(|runtime| {
        let outcome = runtime.block_on(until_signal(work));
        // A read of standard input cannot be taken back; nobody waits for it.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn until_signal(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = work => done.map(|()| ExitCode::SUCCESS),
        // As a shell shows a program that a signal has ended.
        _ = interrupt.recv() => Ok(ExitCode::from(128 + 2)),
        _ = terminate.recv() => Ok(ExitCode::from(128 + 15)),
    }
}
