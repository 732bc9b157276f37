//! A TCP client inside the stack: sends standard input to a listener on the host and prints what comes back.
//!
//! ```sh
//! nc -l 7000                                                                          # as anybody
//! cargo run --package tunproxy-tun-stack --example connect -- --to 198.19.77.1:7000   # as root
//! ```

mod sample;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunproxy_tun_stack::{Stack, Stream};

#[derive(Debug, Parser)]
#[command(
    about = "A TCP client on a user-space network stack: standard input to the peer, the peer to standard output"
)]
struct Cli {
    #[command(flatten)]
    network: sample::Network,
    /// Where to connect: an address of the kernel's side, or one the kernel routes
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "198.19.77.1:7000")]
    to: SocketAddr,
    /// Seconds to wait for an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = sample::run(&cli.network, |stack| connect(stack, &cli));
    // As a shell shows a program that a signal has cut short.
    sample::report(outcome, |signal| ExitCode::from(128 + signal))
}

async fn connect(stack: Stack, cli: &Cli) -> anyhow::Result<()> {
    let stream = stack.dialer().with_timeout(Duration::from_secs(cli.timeout)).dial(cli.to).await?;
    eprintln!("connect: {} to {}", stream.local_addr(), stream.peer_addr());
    converse(stream).await
}

/// Until the peer's end; the end of standard input is passed on before.
async fn converse(stream: Stream) -> anyhow::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let send = async {
        tokio::io::copy(&mut tokio::io::stdin(), &mut writer).await?;
        writer.shutdown().await?;
        // The rest is the peer's.
        std::future::pending().await
    };
    tokio::select! {
        sent = send => sent,
        printed = print(&mut reader) => printed,
    }
}

async fn print(reader: &mut (impl AsyncReadExt + Unpin)) -> anyhow::Result<()> {
    let mut stdout = tokio::io::stdout();
    let mut buffer = vec![0; 65_536];
    loop {
        let length = reader.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stdout.write_all(&buffer[..length]).await.context("standard output")?;
        stdout.flush().await.context("standard output")?;
    }
}
