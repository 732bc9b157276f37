//! The echo service (RFC 862) inside the stack: what comes to port 7 of its addresses goes back, TCP and UDP.
//!
//! ```sh
//! cargo run --package tunproxy-tun-stack --example echo     # as root
//! nc 198.19.77.2 7                                          # in another terminal
//! ```

mod sample;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tunproxy_tun_stack::{Listener, Stack, Stream, UdpSocket};

#[derive(Debug, Parser)]
#[command(about = "A TCP and UDP echo server on a user-space network stack")]
struct Cli {
    #[command(flatten)]
    network: sample::Network,
    /// Port of the service
    #[arg(long, value_name = "PORT", default_value_t = 7)]
    port: u16,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = sample::run(&cli.network, |stack| serve(stack, &cli));
    // A signal is the way to end a server.
    sample::report(outcome, |_| ExitCode::SUCCESS)
}

/// Until the TUN is gone.
async fn serve(stack: Stack, cli: &Cli) -> anyhow::Result<()> {
    let mut services = JoinSet::new();
    for network in &cli.network.address {
        let address = SocketAddr::new(network.addr(), cli.port);
        start(&stack, address, &mut services).context("the service cannot start")?;
        eprintln!("echo: TCP and UDP on {address}");
    }
    let ended = services.join_next().await.context("no address to serve")?;
    ended.context("a service has panicked")?.context("the service has ended")
}

fn start(stack: &Stack, address: SocketAddr, services: &mut JoinSet<io::Result<()>>) -> io::Result<()> {
    services.spawn(serve_tcp(stack.listen(address)?));
    services.spawn(serve_udp(stack.bind_udp(address)?));
    Ok(())
}

async fn serve_tcp(listener: Listener) -> io::Result<()> {
    loop {
        let (stream, peer) = listener.accept().await?;
        tokio::spawn(async move {
            if let Err(error) = echo(stream).await {
                eprintln!("echo: {peer}: {error}");
            }
        });
    }
}

/// The peer's end is answered with ours, after everything has gone back.
async fn echo(stream: Stream) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}

async fn serve_udp(socket: UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; 65_535];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).await?;
        socket.send_to(&buffer[..length], peer).await?;
    }
}
