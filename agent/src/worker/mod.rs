//! The data plane's threads: each owns some pods, their TUNs and their upstream sockets, and moves bytes between them.
//!
//! A worker is one event loop. It turns readiness into calls of the pods' [`tunproxy_datapath::Stack`]s and their
//! actions into system calls; it decides nothing. What takes more than a plain connect (a proxy's handshake) is done
//! elsewhere, by the [`Dialer`], and comes back as a connected socket.

mod clock;
mod datagram_run;
mod descriptors;
mod event_loop;
mod handover;
mod icmp_io;
mod mailbox;
mod pod;
mod queues;
mod socket;
mod tap;
mod tcp_io;
mod token;
mod tun_io;
mod turn;
mod udp_io;
mod young;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::{fmt, io};

use tunproxy_datapath::{
    Account, Counters, DialFailure, DnsAlias, FlowBegin, FlowId, FlowRecord, Limits, Memory, PacketBuf,
    Stack, StackConfig, Target, UpstreamFailure,
};
use tunproxy_policy::{Permit, UpstreamRef, Workload, WorkloadPolicy};

use descriptors::{Descriptors, Lease, Share};
pub use descriptors::{descriptors_for_pods, raise_descriptor_limit};
use event_loop::EventLoop;
use handover::{Siblings, Waiting};
use mailbox::{Handle, Inbox};
pub use queues::attach_queue_program;
use queues::{Hand, Spreading};
pub use socket::probe_echo;
pub(crate) use socket::set_traffic_class;
pub use tap::Probe;

use crate::sync::AtomicUsize;

/// Workers that serve one pod, and queues that its TUN should have: more of them cost descriptors and win little.
pub const MAX_SHARDS: usize = 8;

#[derive(Clone, Debug)]
pub struct WorkersConfig {
    /// Threads; each serves a part of a pod's flows (see [`MAX_SHARDS`]).
    pub workers: usize,
    pub limits: Limits,
    /// Tell the sink of flows when they begin too.
    pub record_begin: bool,
    /// `SO_MARK` of every upstream socket, for a node whose routes lead into the TUN otherwise.
    pub mark: Option<u32>,
}

/// An attached pod, for as long as this agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId(pub u64);

/// What a worker needs to serve a pod.
#[derive(Debug)]
pub struct PodConfig {
    pub id: PodId,
    pub workload: Arc<Workload>,
    /// The TUN's queues, non-blocking.
    pub queues: Vec<OwnedFd>,
    /// Packets carry a virtio header: checksums and segmentation are the kernel's.
    pub vnet_header: bool,
    /// Sources the pod may use; empty: any.
    pub addresses: Vec<IpAddr>,
    /// Addresses of its networks that no host has.
    pub broadcasts: Vec<IpAddr>,
    pub mtu: u16,
    pub rules: PodRules,
    pub dns_alias: Option<DnsAlias>,
}

/// What the documents say for a pod.
#[derive(Clone, Debug)]
pub struct PodRules {
    pub policy: Arc<WorkloadPolicy>,
    /// Their answers bind names.
    pub resolvers: Arc<[IpAddr]>,
    /// Upstreams of type Direct: they carry UDP and ICMP too.
    pub direct: Arc<HashSet<UpstreamRef>>,
}

/// A pod's counters at one moment.
#[derive(Clone, Debug)]
pub struct PodSnapshot {
    pub id: PodId,
    pub counters: Counters,
    /// TCP flows, UDP mappings and ICMP echo flows.
    pub flows: usize,
}

/// Takes the records of flows that ended. Must not block.
pub trait FlowSink: Send + Sync {
    /// Only called where [`WorkersConfig::record_begin`] asks for it.
    fn begin(&self, workload: &Arc<Workload>, begin: FlowBegin);
    fn record(&self, workload: &Arc<Workload>, record: FlowRecord);
}

/// Connects flows whose upstream is not `direct`.
pub trait Dialer: Send + Sync {
    /// Returns at once; `done` is finished later, from any thread. Dropping what is returned gives the connect up.
    fn dial(&self, request: DialRequest, done: Completion) -> Dialing;
}

/// A connect under way; given up when it is dropped. That one is over already does no harm.
pub struct Dialing(Option<Box<dyn FnOnce() + Send>>);

impl Dialing {
    pub fn new(give_up: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(give_up)))
    }

    /// Of a connect that was refused at once.
    pub fn over() -> Self {
        Self(None)
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        if let Some(give_up) = self.0.take() {
            give_up();
        }
    }
}

impl fmt::Debug for Dialing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialing").finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub struct DialRequest {
    /// Whose flow it is.
    pub pod: PodId,
    pub permit: Permit,
    pub target: Target,
}

/// Takes the outcome of a dial back to the worker that asked. Dropped unfinished, it reports a failure.
pub struct Completion {
    worker: Handle,
    pod: PodId,
    flow: FlowId,
    /// The flow's place among the node's sockets. It travels with the dial, whose socket may outlive the flow.
    lease: Option<Lease>,
}

impl Completion {
    fn new(worker: Handle, pod: PodId, flow: FlowId, lease: Lease) -> Self {
        Self { worker, pod, flow, lease: Some(lease) }
    }

    /// `Ok`: a connected stream socket, non-blocking.
    pub fn finish(mut self, result: Result<OwnedFd, UpstreamFailure>) {
        self.send(result);
    }

    fn send(&mut self, result: Result<OwnedFd, UpstreamFailure>) {
        if let Some(lease) = self.lease.take() {
            self.worker.send(Command::Dialed(Dialed { pod: self.pod, flow: self.flow, result, lease }));
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        self.send(Err(DialFailure::Failed.into()));
    }
}

/// A dial that is over. The socket is declared before its place, and so closed before.
struct Dialed {
    pod: PodId,
    flow: FlowId,
    result: Result<OwnedFd, UpstreamFailure>,
    lease: Lease,
}

/// A worker's part of a pod.
struct ShardConfig {
    id: PodId,
    workload: Arc<Workload>,
    stack: Stack,
    hand: Hand,
    vnet_header: bool,
    descriptors: Arc<Share>,
    siblings: Arc<Siblings>,
    account: Account,
}

enum Command {
    Attach(Box<ShardConfig>, Sender<io::Result<()>>),
    Detach(PodId, Sender<()>),
    ReplaceQueues(PodId, Hand, Sender<io::Result<()>>),
    SetRules(PodId, Box<PodRules>),
    Snapshot(Sender<Vec<PodSnapshot>>),
    Dialed(Dialed),
    Capture(PodId, Box<Probe>, Sender<()>),
    /// A packet that another worker has read.
    Handover(PodId, PacketBuf, Waiting),
    Stop,
}

/// Pods without a worker have no network, and nothing would tell: the agent ends instead and is started again, and the
/// TUNs wait for it.
struct EndsTheAgent;

impl Drop for EndsTheAgent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a worker panicked; the agent ends");
            std::process::abort();
        }
    }
}

impl Handle {
    /// Sends a command; the answer comes later.
    fn post<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Receiver<T> {
        let (answer, wait) = mpsc::channel();
        self.send(command(answer));
        wait
    }

    /// Sends a command and waits for what came of it.
    fn ask(&self, command: impl FnOnce(Sender<io::Result<()>>) -> Command) -> io::Result<()> {
        self.post(command).recv().map_err(|_| io::Error::other("the worker has ended"))?
    }
}

/// The running workers. Dropping it stops them.
pub struct Workers {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    config: WorkersConfig,
    descriptors: Arc<Descriptors>,
    spreading: Spreading,
    /// Packets of all pods that wait for another worker.
    handed_over: Arc<AtomicUsize>,
    /// One budget for all.
    memory: Arc<Memory>,
}

impl Workers {
    pub fn start(
        config: &WorkersConfig,
        dialer: &Arc<dyn Dialer>,
        sink: &Arc<dyn FlowSink>,
    ) -> io::Result<Self> {
        let count = config.workers.max(1);
        let mut workers = Self {
            handles: Vec::new(),
            threads: Vec::new(),
            config: config.clone(),
            descriptors: Descriptors::new(),
            spreading: Spreading::start(count),
            handed_over: Arc::default(),
            memory: Memory::new(config.limits.memory, count),
        };
        for number in 0..count {
            let (commands, receiver) = crate::sync::mpsc::channel();
            let (event_loop, waker) =
                EventLoop::new(config, &workers.memory, Inbox::new(receiver), dialer.clone(), sink.clone())?;
            let handle = Handle { commands, waker: Arc::new(waker) };
            let own = handle.clone();
            let name = format!("worker-{number}");
            let run = move || {
                let _guard = EndsTheAgent;
                event_loop.run(&own);
            };
            workers.threads.push(std::thread::Builder::new().name(name).spawn(run)?);
            workers.handles.push(handle);
        }
        Ok(workers)
    }

    /// The workers that serve a pod, one for each shard.
    fn shards_of(&self, pod: PodId) -> impl Iterator<Item = &Handle> {
        let count = self.handles.len();
        // The first has all but TCP: every worker is the first of some pods.
        let first = (pod.0 % count as u64) as usize;
        self.handles.iter().cycle().skip(first).take(count.min(MAX_SHARDS))
    }

    /// Puts a pod's TUN into service.
    pub fn attach(&self, pod: PodConfig) -> io::Result<()> {
        let handles: Vec<Handle> = self.shards_of(pod.id).cloned().collect();
        let id = pod.id;
        let hands = self.spreading.deal(pod.queues, handles.len())?;
        let descriptors = self.descriptors.share();
        let mut seed = [0; 16];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
        let PodRules { policy, resolvers, direct } = pod.rules;
        let stack = StackConfig {
            addresses: pod.addresses,
            broadcasts: pod.broadcasts,
            mtu: pod.mtu,
            offload: pod.vnet_header,
            limits: self.config.limits.clone(),
            record_begin: self.config.record_begin,
            resolvers,
            dns_alias: pod.dns_alias,
            policy,
            direct,
            seed,
        };
        let stacks = Stack::shards(&stack, handles.len());
        let siblings = Arc::new(Siblings::new(handles.clone(), &self.handed_over));
        let account = Account::default();
        let shard = |(hand, stack)| ShardConfig {
            id,
            workload: pod.workload.clone(),
            stack,
            hand,
            vnet_header: pod.vnet_header,
            descriptors: descriptors.clone(),
            siblings: siblings.clone(),
            account: account.sibling(),
        };
        let shards: Vec<_> = hands.into_iter().zip(stacks).map(shard).collect();
        // The first comes last: it is the one that hands packets over.
        let attached =
            handles.iter().zip(shards).rev().try_for_each(|(handle, shard)| {
                handle.ask(|answer| Command::Attach(Box::new(shard), answer))
            });
        if attached.is_err() {
            self.detach(id);
        }
        attached
    }

    /// Ends a pod's flows and closes its TUN. Returns when that is done.
    pub fn detach(&self, pod: PodId) {
        let handles: Vec<&Handle> = self.shards_of(pod).collect();
        // In reverse, as in `replace_queues`: the next who serves the pod may have opened its queues already.
        for handle in handles.into_iter().rev() {
            let _ = handle.post(|answer| Command::Detach(pod, answer)).recv();
        }
    }

    /// Serves the pod's TUN through other queues of it; the flows go on. What waits in the old ones is lost, as in a queue
    /// that overflows. On an error some of the old ones may stay.
    pub fn replace_queues(&self, pod: PodId, queues: Vec<OwnedFd>) -> io::Result<()> {
        let handles: Vec<&Handle> = self.shards_of(pod).collect();
        let hands = self.spreading.deal(queues, handles.len())?;
        let mut replaced = Ok(());
        // The kernel gives the number of a queue that is closed to the last one that is open. Closed from the last to the
        // first, the old ones leave their numbers to the new ones in their order.
        for (handle, hand) in handles.into_iter().zip(hands).rev() {
            let result = handle.ask(|answer| Command::ReplaceQueues(pod, hand, answer));
            replaced = replaced.and(result);
        }
        replaced
    }

    /// Puts other rules in force; what is no longer allowed is reset.
    pub fn set_rules(&self, pod: PodId, rules: &PodRules) {
        for handle in self.shards_of(pod) {
            handle.send(Command::SetRules(pod, Box::new(rules.clone())));
        }
    }

    /// The counters of every pod, those of its shards together.
    pub fn snapshot(&self) -> Vec<PodSnapshot> {
        let waits: Vec<_> = self.handles.iter().map(|handle| handle.post(Command::Snapshot)).collect();
        let mut pods: BTreeMap<PodId, PodSnapshot> = BTreeMap::new();
        for shard in waits.into_iter().flat_map(|wait| wait.recv().unwrap_or_default()) {
            match pods.entry(shard.id) {
                Entry::Vacant(entry) => drop(entry.insert(shard)),
                Entry::Occupied(mut entry) => {
                    entry.get_mut().flows += shard.flows;
                    entry.get_mut().counters.add(&shard.counters);
                }
            }
        }
        pods.into_values().collect()
    }

    /// Octets of packet memory that flows hold, and what workers have drawn beside them ([`Memory::drawn`]).
    pub fn packet_memory(&self) -> usize {
        self.memory.drawn()
    }

    /// Has every worker that serves the pod capture its packets until nobody reads from the probe's channel. Returns when
    /// all of them do.
    pub fn capture(&self, pod: PodId, probe: &Probe) {
        let ask =
            |handle: &Handle| handle.post(|answer| Command::Capture(pod, Box::new(probe.clone()), answer));
        let waits: Vec<_> = self.shards_of(pod).map(ask).collect();
        for wait in waits {
            let _ = wait.recv();
        }
    }

    /// Ends every flow and waits for the threads.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        for handle in &self.handles {
            handle.send(Command::Stop);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker ended in a panic");
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
