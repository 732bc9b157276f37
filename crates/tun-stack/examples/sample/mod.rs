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
    fn start(&self) -> anyhow::Result<Stack> {
        let device = TunDevice::create(&self.device, self.mtu, &self.host)
            .with_context(|| format!("--device {}", self.device))?;
        Stack::new(device, StackConfig::new(self.address.clone())).context("the stack cannot start")
    }
}

/// How a sample ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Done,
    /// SIGINT or SIGTERM came, its number.
    Signal(u8),
}

/// Runs `work` on a stack until it ends or a signal comes, then closes the stack: what was written is delivered, open
/// connections are reset, and the TUN is gone.
pub fn run<W>(network: &Network, work: impl FnOnce(Stack) -> W) -> anyhow::Result<End>
where
    W: Future<Output = anyhow::Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let stack = network.start()?;
        let outcome = until_signal(work(stack.clone())).await;
        stack.close().await;
        outcome
    });
    // A read of standard input cannot be taken back; nobody waits for it.
    runtime.shutdown_background();
    outcome
}

/// The exit status, and the error for people.
pub fn report(outcome: anyhow::Result<End>, of_signal: impl FnOnce(u8) -> ExitCode) -> ExitCode {
    match outcome {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Signal(number)) => of_signal(number),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn until_signal(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<End> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = work => done.map(|()| End::Done),
        _ = interrupt.recv() => Ok(End::Signal(2)),
        _ = terminate.recv() => Ok(End::Signal(15)),
    }
}
