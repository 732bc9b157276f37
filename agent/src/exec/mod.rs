//! `tunproxy-agent exec`: a command in a network of its own, under a policy.
//!
//! The agent starts itself once more as `exec-init`, which has one thread, moves into new namespaces, hands the TUN's
//! queues back, waits until they are served, and becomes the command. The channel between the two is the child's
//! standard input until then; the real one travels over it.

mod channel;
pub mod init;
mod quiet;
mod refusals;
mod signals;

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;

use anyhow::{Context, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tempfile::NamedTempFile;
use tunproxy_datapath::DnsAlias;

use crate::cli::ExecArgs;
use crate::config::LogFormat;
use crate::logging;
use crate::session::{Governed, Session, Wire, open_log};
use crate::worker::FlowSink;
use channel::{Parent, Plan};
use refusals::Refusals;
use signals::Forwarder;

/// As env(1) and others: the command was not started by a fault of ours.
pub const FAILED: u8 = 125;

const TUN: &str = "tun0";
const MTU: u16 = 1500;
/// The sandbox's own network, of the range for benchmarks (RFC 2544), which nobody routes.
const ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 2);
/// In the command's resolv.conf; stands for the node's first resolver, which may be on the node's loopback.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 1);
/// Of a ULA prefix (RFC 4193) drawn once for this program.
const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfdb4, 0x7c1e, 0x52a9, 0, 0, 0, 0, 2);
const RESOLV_CONF: &str = "/etc/resolv.conf";
const DNS_PORT: u16 = 53;

/// Runs the command; its exit status is ours.
pub fn run(args: &ExecArgs, no_color: bool) -> anyhow::Result<ExitCode> {
    logging::start(&args.log_level, LogFormat::Text, no_color)?;
    let governed = Governed::read(&args.policy, Some(RESOLVER.into()))?;
    let resolv_conf =
        write_resolv_conf(Path::new(RESOLV_CONF)).context("the command's resolv.conf cannot be written")?;
    let (mut child, parent) = Guarded::start(args)?;
    // After the child, which inherits the mask, and before the first thread, which has to.
    let mut signals = Forwarder::block().context("signals cannot be caught")?;
    let queues = parent.prepare(&plan(resolv_conf.path()))?;
    // Mounted in the sandbox by now; nothing of it is left behind even if we are killed.
    resolv_conf.close().context("the command's resolv.conf cannot be removed")?;
    let refusals = Arc::new(Refusals::new(open_log(args.record.log.as_deref())?));
    let sink: Arc<dyn FlowSink> = refusals.clone();
    let session = Session::start(&governed, wire(queues, &governed, args.record.log_begin), &sink)?;
    session.follow_documents(&governed);
    parent.go().context("the command cannot be started")?;
    let status = signals.supervise(&mut child.0).context("the command cannot be waited for")?;
    session.stop();
    if !args.quiet {
        refusals.print(&mut std::io::stderr().lock());
    }
    Ok(exit_code(status))
}

/// The child, which does not outlive a failure of ours.
struct Guarded(Child);

impl Guarded {
    fn start(args: &ExecArgs) -> anyhow::Result<(Self, Parent)> {
        let (parent, theirs) = Parent::pair().context("no channel to the command")?;
        let child = Command::new("/proc/self/exe")
            .arg0("tunproxy-agent")
            .args(["exec-init", "--"])
            .args(&args.command)
            .stdin(Stdio::from(theirs))
            .spawn()
            .context("the agent cannot start itself again")?;
        Ok((Self(child), parent))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Both do nothing once the child was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn plan(resolv_conf: &Path) -> Plan {
    let v4 = Ipv4Net::new(ADDRESS_V4, 30).expect("30 is a prefix length");
    let v6 = Ipv6Net::new(ADDRESS_V6, 64).expect("64 is a prefix length");
    Plan {
        tun_name: TUN.to_owned(),
        queues: 1,
        mtu: u32::from(MTU),
        addresses: vec![IpNet::V4(v4), IpNet::V6(v6)],
        resolv_conf: resolv_conf.to_owned(),
    }
}

fn wire(queues: Vec<OwnedFd>, governed: &Governed, record_begin: bool) -> Wire {
    let virtual_address = IpAddr::V4(RESOLVER);
    let resolver = governed.resolvers().iter().copied().find(|address| *address != virtual_address);
    Wire {
        queues,
        vnet_header: true,
        addresses: vec![ADDRESS_V4.into(), ADDRESS_V6.into()],
        mtu: MTU,
        dns_alias: resolver
            .map(|resolver| DnsAlias { virtual_address, resolver: SocketAddr::new(resolver, DNS_PORT) }),
        record_begin,
        mark: None,
    }
}

/// The system's resolv.conf with our resolver in the place of its own; search domains and options stay.
fn write_resolv_conf(system: &Path) -> std::io::Result<NamedTempFile> {
    let text = fs::read_to_string(system).unwrap_or_default();
    let mut file = tempfile::Builder::new().prefix("tunproxy-resolv-").tempfile()?;
    writeln!(file, "nameserver {RESOLVER}")?;
    for line in text.lines().filter(|line| !line.trim_start().starts_with("nameserver")) {
        writeln!(file, "{line}")?;
    }
    // A command that drops its privileges reads it too.
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    Ok(file)
}

/// As shells say it: 128 and the signal's number.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code =
        status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(i32::from(FAILED));
    ExitCode::from(u8::try_from(code).unwrap_or(FAILED))
}

/// The sandbox cannot be set up; said by the child, in its words.
fn refused(message: &str) -> anyhow::Result<Vec<OwnedFd>> {
    bail!("the sandbox cannot be set up: {message}")
}

#[cfg(test)]
mod tests;
