//! `pcap`: what passes between a pod and its agent, as a pcapng file.

mod client;

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::ByteSize;
use crate::pcap::{self, Block, Blocks, Filter};
use client::Capture;

/// An agent that was asked to end a capture sends the rest of the file within this time.
const PATIENCE: Duration = Duration::from_secs(5);

/// Capture a pod's packets, with the decision on each flow as a comment.
///
/// Asks the running agent on its admin socket, so it takes root; the pod notices nothing. The file is pcapng, for Wireshark
/// and tshark. The first packet of each flow, and each packet that was refused, has a comment: the verdict, the rule, the
/// upstream and the name, in the words of the flow log. Ends at Ctrl-C, at a bound, or when the pod or the agent goes.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  tunproxy-agent pcap --pod shop/web-1 -w web.pcapng
  tunproxy-agent pcap --pod shop/web-1 --flow 'tcp and port 443' -w web.pcapng
  tunproxy-agent pcap --pod shop/web-1 -w - | tshark -r -
  tunproxy-agent pcap --pod shop/web-1 -w - | wireshark -k -i -
  tunproxy-agent pcap --pod shop/web-1 --bytes 10Mi --seconds 60 -w web.pcapng

Terms of --flow, joined by `and`, each perhaps behind `not`:
  tcp   udp   icmp   host ADDRESS   net NETWORK   port NUMBER")]
pub struct PcapArgs {
    /// The pod, or the id of its container.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub pod: String,
    /// Where the capture goes; - is standard output. A file that is there is replaced.
    #[arg(long, short, value_name = "FILE")]
    pub write: PathBuf,
    /// Which packets; as for tcpdump, but for what is said below. An ICMP error counts with the flow it is about.
    #[arg(long, value_name = "FILTER", default_value_t)]
    pub flow: Filter,
    /// End when the file has this size: bytes, or with Ki, Mi, Gi.
    #[arg(long, value_name = "N", default_value_t = ByteSize(pcap::DEFAULT_BYTES))]
    pub bytes: ByteSize,
    /// End after so many packets.
    #[arg(long, short = 'c', value_name = "N")]
    pub packets: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "N")]
    pub seconds: Option<u64>,
    /// Octets kept of each packet.
    #[arg(long, short, value_name = "N", default_value_t = pcap::DEFAULT_SNAPLEN)]
    pub snaplen: u32,
    /// The agent's admin socket.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/tunproxy/admin.sock",
        hide_env_values = true,
        env = "TUNPROXY_ADMIN_SOCKET"
    )]
    pub socket: PathBuf,
}

/// What has come so far.
#[derive(Debug, Default)]
struct Tally {
    packets: u64,
    /// Of the packets as they were, not of the file.
    octets: u64,
    lost: u64,
    /// Why the agent ended the file; `None`: it has not.
    end: Option<String>,
}

/// Runs until the capture is over, and says on standard error what it came to.
pub fn run(args: &PcapArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(capture(args))
}

async fn capture(args: &PcapArgs) -> anyhow::Result<ExitCode> {
    let to_stdout = args.write == Path::new("-");
    anyhow::ensure!(
        !to_stdout || !io::stdout().is_terminal(),
        "a capture is nothing for a terminal; give -w FILE, or lead standard output into tshark -r -"
    );
    // Caught before anything is captured: no signal leaves half a block.
    let mut signals = Signals::listen()?;
    let mut capture = Capture::begin(&args.socket, &args.request()).await?;
    let mut output = Output::open(&args.write, to_stdout)?;
    eprintln!("capturing {} to {}; Ctrl-C ends it", args.pod, output.name);
    let began = Instant::now();
    let (mut tally, mut blocks) = (Tally::default(), Blocks::default());
    let mut patience = None;
    loop {
        let impatient = async {
            match patience {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            piece = capture.read() => match piece.context("the agent's answer broke off")? {
                Some(piece) => blocks.push(&piece),
                None => break,
            },
            () = signals.next() => {
                // The second time it is meant to end at once.
                if patience.is_some() {
                    break;
                }
                patience = Some(tokio::time::Instant::now() + PATIENCE);
                capture.end().await?;
            }
            () = impatient => break,
        }
        while let Some((block, octets)) = blocks.next_block()? {
            if !output.write(&octets)? {
                return Ok(ExitCode::SUCCESS);
            }
            tally.note(block);
        }
    }
    eprintln!("{}", tally.told(args, &output.name, began.elapsed()));
    Ok(if tally.end.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl PcapArgs {
    fn request(&self) -> pcap::Request {
        pcap::Request {
            pod: self.pod.clone(),
            flow: self.flow.to_string(),
            bytes: self.bytes.bytes(),
            packets: self.packets,
            seconds: self.seconds,
            snaplen: self.snaplen,
        }
    }
}

impl Tally {
    fn note(&mut self, block: Block) {
        match block {
            Block::Packet(length) => {
                self.packets += 1;
                self.octets += u64::from(length);
            }
            Block::Statistics { lost, comment } => {
                self.lost += lost;
                self.end = Some(comment);
            }
            Block::Other => {}
        }
    }

    fn told(&self, args: &PcapArgs, file: &str, took: Duration) -> String {
        let end = self.end.as_deref().unwrap_or("the agent went away before the file was whole");
        format!(
            "{} packets ({} bytes) of {} in {file}, {} lost, {:.1} s; ended: {end}",
            self.packets,
            self.octets,
            args.pod,
            self.lost,
            took.as_secs_f64()
        )
    }
}

/// INT and TERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Where the file goes.
struct Output {
    name: String,
    to: Box<dyn Write>,
}

impl Output {
    fn open(path: &Path, to_stdout: bool) -> anyhow::Result<Self> {
        if to_stdout {
            return Ok(Self { name: "standard output".to_owned(), to: Box::new(io::stdout().lock()) });
        }
        let name = path.display().to_string();
        // What pods send is nobody else's to read.
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("{name}: it cannot be opened for writing"))?;
        Ok(Self { name, to: Box::new(file) })
    }

    /// `false`: the reader has seen enough.
    fn write(&mut self, octets: &[u8]) -> anyhow::Result<bool> {
        match self.to.write_all(octets).and_then(|()| self.to.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(error).with_context(|| format!("{}: it cannot be written", self.name)),
        }
    }
}
