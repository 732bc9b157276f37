//! What holds for this node whatever the datapath does: looked at before the test moves into a network of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::process::{Resource, getrlimit};
use tunproxy_datapath::Limits;
use tunproxy_linux_net::sysctl;

use super::report::Row;
use crate::worker;

/// What the self-test itself opens, with room.
const FEWEST_DESCRIPTORS: u64 = 256;
/// The oldest kernel that the project claims to run on.
const OLDEST_KERNEL: (u32, u32) = (5, 16);

const RAISE_LIMIT: &str = "raise the hard limit: LimitNOFILE=1048576 in the agent's unit, or ulimit -Hn";

/// The kernel's release as `uname -r` prints it.
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// How the agent pings for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EchoSockets {
    /// `net.ipv4.ping_group_range` allows them.
    Ping,
    /// `CAP_NET_RAW` allows them.
    Raw,
    Neither,
}

pub fn rows() -> Vec<Row> {
    vec![kernel(&kernel_release()), descriptors(), conntrack(), ephemeral_ports()]
}

/// Enough of them to go on with the test.
pub fn has_descriptors() -> bool {
    descriptor_limit().is_none_or(|limit| limit >= FEWEST_DESCRIPTORS)
}

/// `None`: no limit.
fn descriptor_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

fn kernel(release: &str) -> Row {
    const CHECK: &str = "kernel";
    let (major, minor) = OLDEST_KERNEL;
    let known = version(release).is_none_or(|version| version >= OLDEST_KERNEL);
    if known {
        return Row::ok(CHECK, format!("Linux {release}"));
    }
    let found = format!("Linux {release}, which the project is not tested on");
    Row::degraded(CHECK, found, &format!("Linux {major}.{minor} or newer"))
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Each flow takes one; the agent raises its limit to the hard one.
fn descriptors() -> Row {
    judge_descriptors(descriptor_limit())
}

fn judge_descriptors(limit: Option<u64>) -> Row {
    const CHECK: &str = "descriptors";
    let wanted = Limits::default().flows;
    let shared = worker::descriptors_for_pods(limit);
    let of = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("a hard limit of {limit}"));
    if limit.is_some_and(|limit| limit < FEWEST_DESCRIPTORS) {
        return Row::failed(CHECK, format!("{of}: the agent cannot work with so few"), RAISE_LIMIT);
    }
    // Alone, a pod gets half of them.
    if shared / 2 < wanted {
        let found = format!(
            "{of}: {shared} flows for all pods, {} of one pod where it may have {wanted}",
            shared / 2
        );
        return Row::degraded(CHECK, found, RAISE_LIMIT);
    }
    Row::ok(CHECK, format!("{of}: {shared} flows for all pods"))
}

/// The agent's connections are tracked by the node like any others, where a firewall tracks at all.
fn conntrack() -> Row {
    let number = |name| sysctl::read(name).ok()?.parse().ok();
    judge_conntrack(number("netfilter/nf_conntrack_count").zip(number("netfilter/nf_conntrack_max")))
}

fn judge_conntrack(count_and_most: Option<(u64, u64)>) -> Row {
    const CHECK: &str = "conntrack";
    const RAISE: &str = "sysctl -w net.netfilter.nf_conntrack_max=262144";
    let Some((count, most)) = count_and_most else {
        return Row::ok(CHECK, "the kernel tracks no connections");
    };
    let found = format!("{count} of {most} entries in use");
    if most < Limits::default().flows as u64 {
        let found =
            format!("{found}: fewer than one pod may have flows; beyond them the node drops new ones");
        return Row::degraded(CHECK, found, RAISE);
    }
    if count > most / 4 * 3 {
        let found = format!("{found}: when the table is full the node drops new flows");
        return Row::degraded(CHECK, found, RAISE);
    }
    Row::ok(CHECK, found)
}

/// All pods' connections to one address and port leave from the node's addresses.
fn ephemeral_ports() -> Row {
    const CHECK: &str = "ephemeral-ports";
    match sysctl::read("ipv4/ip_local_port_range") {
        Ok(range) => judge_ports(&range),
        Err(error) => Row::skipped(CHECK, error.to_string()),
    }
}

fn judge_ports(range: &str) -> Row {
    const CHECK: &str = "ephemeral-ports";
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<u16>().ok());
    let (Some(first), Some(last)) = (ends.next(), ends.next()) else {
        return Row::skipped(CHECK, format!("net.ipv4.ip_local_port_range is {range:?}"));
    };
    let count = usize::from(last.saturating_sub(first)) + 1;
    let found = format!("{first} to {last}: {count} connections to one address and port");
    if count < Limits::default().flows {
        let remedy = "sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"";
        return Row::degraded(CHECK, format!("{found}, of all pods together"), remedy);
    }
    Row::ok(CHECK, found)
}

/// Tries how the agent would ping for pods, in the node's own network. Nothing is sent.
pub fn echo_sockets() -> (EchoSockets, Row) {
    const CHECK: &str = "icmp-sockets";
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let families = loopback.into_iter().take(if sysctl::has_ipv6() { 2 } else { 1 });
    let opened: Result<Vec<bool>, _> = families.map(worker::probe_echo).collect();
    match opened {
        Ok(raw) if raw.contains(&true) => {
            (EchoSockets::Raw, Row::ok(CHECK, "raw sockets, as CAP_NET_RAW allows"))
        }
        Ok(_) => (EchoSockets::Ping, Row::ok(CHECK, "ping sockets, as net.ipv4.ping_group_range allows")),
        Err(error) => {
            let found = format!("neither ping nor raw sockets ({error}): pings of pods fail");
            let remedy = "CAP_NET_RAW for the agent, or sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"";
            (EchoSockets::Neither, Row::degraded(CHECK, found, remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;

    #[test]
    fn old_kernels_are_told() {
        assert_eq!(kernel("6.18.44-fc-v657").status, Status::Ok);
        assert_eq!(kernel("5.16.0").status, Status::Ok);
        assert_eq!(kernel("5.15.0-91-generic").status, Status::Degraded);
        assert_eq!(kernel("odd").status, Status::Ok, "nothing is known against it");
    }

    #[test]
    fn few_descriptors_cost_flows_and_too_few_everything() {
        assert_eq!(judge_descriptors(None).status, Status::Ok);
        assert_eq!(judge_descriptors(Some(1 << 20)).status, Status::Ok);
        let few = judge_descriptors(Some(4_096));
        assert_eq!(few.status, Status::Degraded);
        assert!(
            few.found.contains("3072 flows for all pods, 1536 of one pod where it may have 10000"),
            "{few:?}"
        );
        assert_eq!(judge_descriptors(Some(64)).status, Status::Failed);
    }

    #[test]
    fn a_small_or_full_conntrack_table_is_told() {
        assert_eq!(judge_conntrack(None).status, Status::Ok);
        assert_eq!(judge_conntrack(Some((10, 262_144))).status, Status::Ok);
        assert_eq!(judge_conntrack(Some((10, 4_096))).status, Status::Degraded);
        assert_eq!(judge_conntrack(Some((250_000, 262_144))).status, Status::Degraded);
    }

    #[test]
    fn a_narrow_range_of_ports_is_told() {
        assert_eq!(judge_ports("32768\t60999").status, Status::Ok);
        assert_eq!(judge_ports("60000\t60999").status, Status::Degraded);
        assert_eq!(judge_ports("what").status, Status::Skipped);
    }
}
