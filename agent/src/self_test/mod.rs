//! `tunproxy-agent self-test`: can this kernel and this build do the job?
//!
//! The process moves into a network namespace of its own, which is the node: the outside is a stack of our own on a TUN
//! there, and the pod is a second namespace, served by the agent's datapath. Nothing of it has a name; it all ends with
//! the process, however that ends.

mod dns;
mod lab;
mod node;
mod outside;
mod report;
mod steering;
mod traffic;

use std::io::Write;
use std::time::Instant;

use clap::Args;
use tunproxy_linux_net::{sandbox, sysctl};

use crate::causes::told;
use crate::commands::Output;
use crate::config::LogFormat;
use crate::logging;
use crate::paint::Paint;
use lab::{Lab, Pod};
use node::EchoSockets;
use report::{LOOK, Privilege, Report, Row, Status};

/// Find out whether this kernel and this build can do the job.
///
/// Makes a pod, a node and an outside host in network namespaces of its own, starts the datapath with a policy of its own,
/// and sends real traffic: what must pass, what must be refused, and what the node has to offer for it. It takes a few
/// seconds, works beside a running agent, and leaves nothing behind. As an ordinary user it needs user namespaces.
///
/// Exit status: 0 when all works (a degraded row says what it costs), 1 when something failed, 2 when it cannot run here.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  tunproxy-agent self-test
  tunproxy-agent self-test -o json | jq -e '.result != \"failed\"'
  tunproxy-agent self-test --log-level debug")]
pub struct SelfTestArgs {
    /// How to print what was found.
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
    /// How much the agent itself says on standard error: off, error, warn, info, debug, trace.
    #[arg(
        long,
        default_value = "error",
        value_name = "FILTER",
        hide_env_values = true,
        env = "TUNPROXY_LOG_LEVEL"
    )]
    pub log_level: String,
}

/// Runs every check, prints them and gives the exit status; an error means that nothing could be tested.
pub fn run(args: &SelfTestArgs, no_color: bool, out: &mut dyn Write, paint: Paint) -> anyhow::Result<u8> {
    logging::start(&args.log_level, LogFormat::Text, no_color)?;
    let report = test()?;
    match args.output {
        Output::Text => report.write_text(out, paint)?,
        Output::Json => report.write_json(out)?,
    }
    Ok(report.exit_status())
}

/// Every check in the order in which they are told. A report has a row for each of them.
const CHECKS: [&str; 23] = [
    "kernel",
    "descriptors",
    "conntrack",
    "ephemeral-ports",
    "icmp-sockets",
    "ipv6",
    "tun",
    "offload",
    "queue-program",
    "steering",
    "host-routes",
    "datapath",
    "tcp-v4",
    "tcp-v6",
    "tcp-denied",
    "tcp-closed-port",
    "udp-v4",
    "udp-v6",
    "ping-v4",
    "ping-v6",
    "name-allowed",
    "name-denied",
    "verdicts",
];

/// Moves this process away for good: it has one thread until then.
fn test() -> anyhow::Result<Report> {
    let started = Instant::now();
    let root = rustix::process::geteuid().is_root();
    let privilege = if root { Privilege::Root } else { Privilege::User };
    let mut rows = node::rows();
    let (echo_sockets, row) = node::echo_sockets();
    rows.extend([row, ipv6()]);
    if node::has_descriptors() {
        sandbox::enter_empty()?;
        rows.extend(network(privilege, echo_sockets));
    }
    let rows = complete(&rows);
    Ok(Report { kernel: node::kernel_release(), privilege, rows, elapsed: started.elapsed() })
}

fn ipv6() -> Row {
    const CHECK: &str = "ipv6";
    if sysctl::has_ipv6() {
        return Row::ok(CHECK, "the kernel has it");
    }
    Row::degraded(
        CHECK,
        "the kernel has none: pods have IPv4 only",
        "boot without ipv6.disable=1; CONFIG_IPV6",
    )
}

/// Each step needs those before it.
fn network(privilege: Privilege, echo_sockets: EchoSockets) -> Vec<Row> {
    let pod = match Pod::plumb() {
        Ok(pod) => pod,
        Err(failed) => return vec![failed],
    };
    let mut rows = pod.rows(privilege);
    rows.extend(steering::rows());
    match Lab::start(pod, echo_sockets).and_then(Lab::run) {
        Ok(seen) => {
            rows.push(Row::ok("datapath", "the agent's workers serve a pod"));
            rows.extend(seen);
        }
        Err(error) => rows.push(Row::failed("datapath", told(&error), LOOK)),
    }
    rows
}

/// A row for every check, in their order. What is missing was not tried, because of what failed.
fn complete(rows: &[Row]) -> Vec<Row> {
    let failed = rows.iter().find(|row| row.status == Status::Failed).map_or("", |row| row.check);
    let of = |check| rows.iter().find(|row| row.check == check).cloned();
    let skipped = |check| Row::skipped(check, format!("not tried, see {failed}"));
    CHECKS.map(|check| of(check).unwrap_or_else(|| skipped(check))).into()
}
