//! A pod in a namespace of its own, served by the agent's datapath, and the outside that it talks to.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use ipnet::IpNet;
use rustix::fs::{MemfdFlags, memfd_create};
use tunproxy_linux_net::naming::Owner;
use tunproxy_linux_net::netlink::TunInfo;
use tunproxy_linux_net::steering::{
    Plumbed, StandalonePlan, SteeringError, plumb_standalone, verify_standalone,
};
use tunproxy_linux_net::{NetNs, Netlink, TunError, sysctl};
use tunproxy_policy::Workload;

use super::node::EchoSockets;
use super::outside::{self, Outside};
use super::report::{LOOK, Privilege, Row, Status};
use super::traffic;
use crate::causes::told;
use crate::config::{self, DefaultAction, Resolver};
use crate::flowlog::Recorder;
use crate::policies::{Outcome, Policies};
use crate::session::{Governed, Session, Wire};
use crate::worker::{self, FlowSink, MAX_SHARDS};

const MTU: u16 = 1_500;
const IFNAME: &str = "eth0";
const NAMESPACE: &str = "self-test";
/// Of the range for benchmarks (RFC 2544) and of this program's ULA prefix.
const POD: [&str; 2] = ["198.19.253.2/24", "fdb4:7c1e:52a9:253::2/64"];

/// A pod whose TUN is open.
#[derive(Debug)]
pub struct Pod {
    namespace: NetNs,
    plumbed: Plumbed,
}

impl Pod {
    /// Plumbs a pod as the CNI plugin does without another; the row says why that is not possible.
    pub fn plumb() -> Result<Self, Row> {
        let addresses = POD.into_iter().take(if sysctl::has_ipv6() { 2 } else { 1 });
        let plan = StandalonePlan {
            owner: Owner { container_id: NAMESPACE.to_owned(), ifname: IFNAME.to_owned() },
            queues: queues(),
            mtu: u32::from(MTU),
            addresses: addresses.map(|text| text.parse().expect("a constant")).collect(),
        };
        let namespace = NetNs::create().map_err(|error| no_tun(&error.into()))?;
        let plumbed = plumb_standalone(&namespace, &plan).map_err(|error| no_tun(&error))?;
        match verify_standalone(&namespace, &plan.owner, &plumbed.addresses) {
            Ok(problems) if problems.is_empty() => Ok(Self { namespace, plumbed }),
            Ok(problems) => Err(Row::failed("tun", problems.join("; "), LOOK)),
            Err(error) => Err(no_tun(&error)),
        }
    }

    /// What the kernel made of the TUN, and what it does with it.
    pub fn rows(&self, privilege: Privilege) -> Vec<Row> {
        vec![self.device(), self.offload(), self.queue_program(privilege)]
    }

    fn device(&self) -> Row {
        const CHECK: &str = "tun";
        let wanted = u32::from(queues());
        match self.seen_by_the_kernel() {
            Ok(TunInfo { multi_queue: true, vnet_header: true, queues, .. }) if queues == wanted => {
                Row::ok(CHECK, format!("{queues} queues, each packet with a virtio header"))
            }
            Ok(other) => Row::failed(CHECK, format!("asked for {wanted} queues and got {other:?}"), LOOK),
            Err(error) => Row::failed(CHECK, told(&error), LOOK),
        }
    }

    fn seen_by_the_kernel(&self) -> anyhow::Result<TunInfo> {
        let link = Netlink::open_in(&self.namespace)??.link(IFNAME)?.context("the TUN is gone")?;
        link.tun.context("the kernel does not tell what the TUN is")
    }

    fn offload(&self) -> Row {
        const CHECK: &str = "offload";
        if self.plumbed.tun.udp_offload {
            return Row::ok(CHECK, "checksums and segments of TCP and UDP are left to the kernel");
        }
        let found = "for TCP only: each UDP datagram is a packet and a call of its own";
        Row::degraded(CHECK, found, "Linux 6.2 or newer")
    }

    fn queue_program(&self, privilege: Privilege) -> Row {
        const CHECK: &str = "queue-program";
        let attached = self.plumbed.tun.queues.first().map(worker::attach_queue_program);
        match (attached, privilege) {
            (Some(Ok(())), _) => Row::ok(CHECK, "the kernel spreads TCP flows over the workers' queues"),
            (Some(Err(error)), Privilege::Root) => Row::degraded(
                CHECK,
                format!("the kernel does not take it ({error}): workers hand packets to each other"),
                "CAP_BPF for the agent, on a kernel with CONFIG_BPF_SYSCALL",
            ),
            (Some(Err(_)) | None, _) => {
                Row::skipped(CHECK, "an ordinary user may not load it; the agent may, with CAP_BPF")
            }
        }
    }
}

/// Why no pod can be plumbed.
fn no_tun(error: &SteeringError) -> Row {
    let remedy = match &error {
        SteeringError::Tun(TunError::NoDriver { .. }) => {
            "load the module with `modprobe tun`; hand /dev/net/tun to the agent's container"
        }
        SteeringError::Tun(TunError::Permission { .. }) => "chmod 0666 /dev/net/tun, or run it as root",
        SteeringError::Sysctl(_) => "make /proc/sys/net writable for the agent",
        _ => LOOK,
    };
    Row::failed("tun", error.to_string(), remedy)
}

/// The agent at work.
#[derive(Debug)]
pub struct Lab {
    namespace: NetNs,
    // Ends before the outside does, whose connections it holds.
    session: Session,
    recorder: Arc<Recorder>,
    outside: Outside,
    /// Why pings cannot be tried.
    no_ping: Option<String>,
}

impl Lab {
    /// Starts the outside host in this process's network namespace, and the datapath on the pod's TUN.
    pub fn start(pod: Pod, echo_sockets: EchoSockets) -> anyhow::Result<Self> {
        // Off where an administrator switched it off for new interfaces; here it is on trial.
        sysctl::write_if_present("ipv6/conf/default/disable_ipv6", "0")?;
        let no_ping = allow_pings(&pod.namespace, echo_sockets).err();
        let outside = Outside::start()?;
        let recorder = Arc::new(Recorder::new(None));
        let sink: Arc<dyn FlowSink> = recorder.clone();
        let wire = Wire {
            queues: pod.plumbed.tun.queues,
            vnet_header: true,
            addresses: pod.plumbed.addresses.iter().map(IpNet::addr).collect(),
            mtu: MTU,
            dns_alias: None,
            record_begin: false,
            mark: None,
        };
        let session = Session::start(&governed()?, wire, &sink)?;
        Ok(Self { namespace: pod.namespace, session, recorder, outside, no_ping })
    }

    /// Lets the pod's programs run, and judges by what they, the outside and the records say.
    pub fn run(self) -> anyhow::Result<Vec<Row>> {
        let mut rows = self.namespace.run(|| traffic::rows(self.no_ping.as_deref()))?;
        let drops = self.session.drops();
        // Every flow has its record then.
        self.session.stop();
        let mut verdicts = verdicts(&self.recorder, self.outside.uninvited());
        if rows.iter().chain([&verdicts]).any(|row| row.status == Status::Failed) {
            verdicts.found.push_str(&shown(&drops));
        }
        rows.push(verdicts);
        Ok(rows)
    }
}

/// New namespaces allow nobody to open ping sockets: the pod's program may, and the agent if the node lets it.
fn allow_pings(pod: &NetNs, agent: EchoSockets) -> Result<(), String> {
    let pod = || pod.run(sysctl::allow_ping_sockets).map_err(|error| error.to_string());
    let allowed = match agent {
        EchoSockets::Neither => return Err("the agent has no socket for it, see icmp-sockets".to_owned()),
        EchoSockets::Ping => sysctl::allow_ping_sockets().and(pod()?),
        EchoSockets::Raw => pod()?,
    };
    allowed.map_err(|error| format!("not allowed to programs here: {error}"))
}

/// Both ends may say what they like: nothing refused may have arrived, and what was refused is on record.
fn verdicts(recorder: &Recorder, uninvited: usize) -> Row {
    const CHECK: &str = "verdicts";
    let (mut allowed, mut denied) = (0, 0);
    for (verdict, _, count) in recorder.flows() {
        match verdict {
            "denied" => denied += count,
            _ => allowed += count,
        }
    }
    let found =
        format!("on record: {allowed} allowed, {denied} refused; {uninvited} refused ones arrived outside");
    if uninvited > 0 || denied < traffic::REFUSALS || allowed == 0 {
        return Row::failed(CHECK, found, "do not serve pods with this build on this kernel, and report it");
    }
    Row::ok(CHECK, found)
}

/// For whoever looks for the cause of a failure.
fn shown(drops: &BTreeMap<&'static str, u64>) -> String {
    let told: Vec<String> = drops.iter().map(|(reason, count)| format!("{count} as {reason}")).collect();
    if told.is_empty() { String::new() } else { format!("; the datapath dropped {}", told.join(", ")) }
}

/// At least two, so that the workers have to share a pod.
fn queues() -> u16 {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, MAX_SHARDS) as u16)
}

/// The policy on trial, from a file without a name.
fn governed() -> anyhow::Result<Governed> {
    let file = memfd_create("self-test.yaml", MemfdFlags::CLOEXEC).context("no memory for the policy")?;
    let mut file = std::fs::File::from(file);
    file.write_all(policy().as_bytes()).context("the policy cannot be written")?;
    let policies = Policies::new(config::Policy {
        paths: vec![PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))],
        default: DefaultAction::Deny,
        upstream: "direct".to_owned(),
        resolvers: vec![Resolver::Address(IpAddr::V4(outside::HOST_V4))],
    });
    if let Outcome::Broken(mistakes) = policies.reload() {
        bail!("the self-test's policy: {}", mistakes.join("; "));
    }
    let workload = Workload { namespace: NAMESPACE.to_owned(), ..Workload::default() };
    Ok(Governed { policies: Arc::new(policies), workload: Arc::new(workload) })
}

fn policy() -> String {
    use outside::{ALLOWED_NAME, CLOSED, ECHO, HOST_V4, HOST_V6};
    format!(
        "apiVersion: tunproxy.io/v1alpha1
kind: EgressPolicy
metadata: {{name: self-test, namespace: {NAMESPACE}}}
spec:
  rules:
  - name: by-address
    action: Allow
    to: [{{networks: [\"{HOST_V4}/32\", \"{HOST_V6}/128\"]}}]
    ports:
    - {{protocol: TCP, port: {ECHO}}}
    - {{protocol: TCP, port: {CLOSED}}}
    - {{protocol: UDP, port: {ECHO}}}
    - {{protocol: ICMP}}
  - name: by-name
    action: Allow
    to: [{{domains: [{ALLOWED_NAME}]}}]
    ports: [{{protocol: TCP, port: {ECHO}}}]
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_has_no_mistake() {
        let governed = governed().unwrap();
        assert_eq!(&*governed.resolvers(), [IpAddr::V4(outside::HOST_V4)]);
    }

    #[test]
    fn drops_are_told_by_their_reasons() {
        assert_eq!(shown(&BTreeMap::new()), "");
        let drops = BTreeMap::from([("bad-checksum", 2), ("foreign-source", 18)]);
        assert_eq!(shown(&drops), "; the datapath dropped 2 as bad-checksum, 18 as foreign-source");
    }
}
