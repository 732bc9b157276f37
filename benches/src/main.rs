//! `tunproxy-bench`: compares the routed veth path with ours in the same run, and holds the load generator for it.

mod client;
mod compare;
mod floods;
mod growth;
mod lab;
mod link;
mod peers;
mod policy_change;
mod report;
mod rows;
mod server;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tunproxy_testkit::Interrupt;

#[derive(Debug, Parser)]
#[command(name = "tunproxy-bench", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure both paths in alternating rounds and print the medians (as root).
    Run(RunArgs),
    /// The load generator's server: TCP on the given port and the next two, UDP echo on the given port.
    Serve { address: SocketAddr },
    /// One measurement against a server; prints JSON.
    Load {
        server: SocketAddr,
        /// A SOCKS5 server that is asked for each TCP connection.
        #[arg(long)]
        via: Option<SocketAddr>,
        /// Network namespaces that connections are made from in turn.
        #[arg(long)]
        netns: Vec<PathBuf>,
        #[command(subcommand)]
        load: client::Load,
    },
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Rounds; each measures every row on both paths.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Idle connections held for the memory row, over 12 pods.
    #[arg(long, default_value_t = 15_000)]
    idle: usize,
    /// ADDs and DELs for the plugin rows.
    #[arg(long, default_value_t = 40)]
    attachments: usize,
    /// Write everything measured to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// One short round: shows that everything runs, measures nothing worth keeping.
    #[arg(long)]
    quick: bool,
    /// Measure only rows whose name holds TEXT: "TCP", "SOCKS5", "growth", "quiet pod", "policy change", "link", "idle",
    /// "ADD".
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Measure pasta, tun2proxy and shadowsocks too, in the rows that they can have; FOLDER holds tun2proxy-bin and sslocal.
    #[arg(long, value_name = "FOLDER", conflicts_with = "routed_only")]
    peers: Option<PathBuf>,
    /// Measure the routed path only.
    #[arg(long)]
    routed_only: bool,
}

fn main() -> ExitCode {
    // 15,000 connections are held on either side.
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let outcome = match Cli::parse().command {
        // Only the comparison makes what must be taken away when it is interrupted.
        Command::Run(args) => {
            return Interrupt::run("bench", |interrupt| {
                compare::run(interrupt, &args.into()).map(|()| ExitCode::SUCCESS)
            });
        }
        Command::Serve { address } => server::serve(address),
        Command::Load { server, via, netns, load } => measure(server, via, &netns, &load),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(
    server: SocketAddr,
    via: Option<SocketAddr>,
    netns: &[PathBuf],
    load: &client::Load,
) -> anyhow::Result<()> {
    let measured = load.run(server, &client::Way::new(via, netns)?)?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

impl From<RunArgs> for compare::Plan {
    fn from(args: RunArgs) -> Self {
        let quick = |value: usize, short: usize| if args.quick { value.min(short) } else { value };
        Self {
            rounds: quick(args.rounds, 1),
            seconds: if args.quick { 0.3 } else { args.seconds },
            idle: quick(args.idle, 200),
            attachments: quick(args.attachments, 3),
            json: args.json,
            only: args.only.unwrap_or_default(),
            ours: !args.routed_only,
            quick: args.quick,
            peers: args.peers,
        }
    }
}
