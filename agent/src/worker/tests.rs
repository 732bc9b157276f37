//! Pods whose TUN is a socket pair: what a turn is, what becomes of a dial that is given up, and which worker gets what.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mio::{Events, Poll, Waker};
use rustix::io::read;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use socket2::SockRef;
use tunproxy_datapath::{DropReason, Instant, PacketBuf, Pool, vnet};
use tunproxy_policy::model::Policies;
use tunproxy_policy::{NodeDefault, NodeSettings, PolicySet};
use tunproxy_testkit::packet::{self, flags};

use super::datagram_run::DatagramRun;
use super::pod::{Env, Pod};
use super::token::{Source, WAKER, unpack};
use super::*;

/// Keeps what it is given, and notes whether the connect was given up.
#[derive(Default)]
struct Silent {
    dials: Mutex<Vec<Completion>>,
    given_up: Arc<AtomicBool>,
}

impl Dialer for Silent {
    fn dial(&self, _: DialRequest, done: Completion) -> Dialing {
        self.dials.lock().unwrap().push(done);
        let given_up = self.given_up.clone();
        Dialing::new(move || given_up.store(true, Ordering::SeqCst))
    }
}

struct Deaf;

impl FlowSink for Deaf {
    fn begin(&self, _: &Arc<Workload>, _: FlowBegin) {}
    fn record(&self, _: &Arc<Workload>, _: FlowRecord) {}
}

struct Bench {
    poll: Poll,
    pool: Pool,
    buffer: PacketBuf,
    run: DatagramRun,
    commands: crate::sync::mpsc::Receiver<Command>,
    worker: Handle,
    silent: Arc<Silent>,
    dialer: Arc<dyn Dialer>,
    sink: Arc<dyn FlowSink>,
    descriptors: Arc<Descriptors>,
    wire: OwnedFd,
}

impl Bench {
    fn new() -> (Self, Pod) {
        let poll = Poll::new().unwrap();
        let (sender, commands) = crate::sync::mpsc::channel();
        let worker =
            Handle { commands: sender, waker: Arc::new(Waker::new(poll.registry(), WAKER).unwrap()) };
        let (wire, tun) = wire();
        let mut pool = Pool::new(64 << 20);
        let buffer = pool.take();
        let silent = Arc::new(Silent::default());
        let dialer = silent.clone();
        let descriptors = Descriptors::of(Some(4_096));
        let shard = shard_config(tun, descriptors.share());
        let pod = Pod::new(0, shard, poll.registry()).unwrap();
        let sink = Arc::new(Deaf);
        let run = DatagramRun::new();
        (Self { poll, pool, buffer, run, commands, worker, silent, dialer, sink, descriptors, wire }, pod)
    }

    fn with<T>(&mut self, work: impl FnOnce(&mut Env<'_>, &mut PacketBuf) -> T) -> T {
        let mut env = Env {
            now: Instant::from_secs(1),
            pool: &mut self.pool,
            run: &mut self.run,
            registry: self.poll.registry(),
            dialer: &self.dialer,
            sink: &self.sink,
            mark: None,
            limits: &Limits::default(),
            worker: &self.worker,
        };
        work(&mut env, &mut self.buffer)
    }

    fn service(&mut self, pod: &mut Pod) -> bool {
        self.with(|env, buffer| pod.service(env, buffer))
    }

    fn inject(&self, ip: &[u8]) {
        inject(&self.wire, ip);
    }

    /// Has the pod connect; returns the upstream's peer.
    fn connect(&mut self, pod: &mut Pod) -> TcpStream {
        self.inject(&packet::Tcp::syn(pod_end(), web(), 1, 1_460).build());
        self.service(pod);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        upstream.set_nonblocking(true).unwrap();
        let (server, _) = listener.accept().unwrap();
        self.silent.dials.lock().unwrap().pop().unwrap().finish(Ok(upstream.into()));
        let Ok(Command::Dialed(dialed)) = self.commands.try_recv() else { panic!("no word of the dial") };
        self.with(|env, _| pod.dialed(env, dialed));
        let (_, number, _) = next_segment(&self.wire).expect("a SYN|ACK");
        let segment =
            packet::Tcp { seq: 2, ack: number + 1, flags: flags::ACK, ..packet::Tcp::new(pod_end(), web()) };
        self.inject(&segment.build());
        self.service(pod);
        server
    }

    /// Serves the pod's events until it has got what is waited for.
    fn segments_until(&mut self, pod: &mut Pod, is_there: impl Fn(&[Segment]) -> bool) -> Vec<Segment> {
        let mut events = Events::with_capacity(8);
        let mut seen = Vec::new();
        while !is_there(&seen) {
            self.poll.poll(&mut events, Some(Duration::from_mins(1))).unwrap();
            assert!(!events.is_empty(), "{seen:?}");
            for event in events.iter().filter(|event| event.token() != WAKER) {
                let (_, source, generation) = unpack(event.token());
                self.with(|env, _| pod.handle_event(env, source, generation, event));
            }
            while self.service(pod) {}
            seen.extend(std::iter::from_fn(|| next_segment(&self.wire)));
        }
        seen
    }
}

/// The pod's end of a queue, and the agent's.
fn wire() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

fn inject(wire: &OwnedFd, ip: &[u8]) {
    let packet = [&[0; vnet::LEN], ip].concat();
    assert_eq!(send(wire, &packet, SendFlags::empty()).unwrap(), packet.len());
}

/// Everything is allowed, through an upstream that only the dialer reaches.
fn rules(workload: &Workload) -> PodRules {
    let upstream = UpstreamRef("office".into());
    let settings = NodeSettings { default: NodeDefault::Allow, upstream, resolvers: Vec::new() };
    let policy = Arc::new(PolicySet::compile(&Policies::default(), settings).for_workload(workload));
    PodRules { policy, resolvers: Arc::from([]), direct: Arc::default() }
}

fn shard_config(tun: OwnedFd, descriptors: Arc<Share>) -> ShardConfig {
    let workload = Arc::new(Workload::default());
    let PodRules { policy, resolvers, direct } = rules(&workload);
    let stack = Stack::new(StackConfig {
        addresses: Vec::new(),
        broadcasts: Vec::new(),
        mtu: 1_500,
        offload: true,
        limits: Limits::default(),
        record_begin: false,
        resolvers,
        dns_alias: None,
        policy,
        direct,
        seed: [7; 16],
    });
    ShardConfig {
        id: PodId(1),
        workload,
        stack,
        hand: Hand { queues: vec![tun], reads: true },
        vnet_header: true,
        descriptors,
        siblings: Arc::new(Siblings::new(Vec::new(), &Arc::default())),
        account: Account::default(),
    }
}

fn pod_end() -> SocketAddr {
    SocketAddr::from(([10, 244, 0, 5], 40_000))
}

fn web() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 10], 443))
}

#[test]
fn a_flooding_pod_gives_the_others_their_turn() {
    let (mut bench, mut pod) = Bench::new();
    for _ in 0..100 {
        bench.inject(&packet::udp(pod_end(), web(), b"flood"));
    }
    assert!(bench.service(&mut pod), "there is more for another turn");
    assert_eq!(pod.stack.counters().packets_in, 64);
    assert!(!bench.service(&mut pod));
    assert_eq!(pod.stack.counters().packets_in, 100);

    for slot in 0..1_000 {
        pod.ready.push(Source::Tcp(slot));
    }
    assert!(bench.service(&mut pod));
    assert_eq!(pod.ready.len(), 1_000 - 256);
}

#[test]
fn a_dial_that_is_given_up_keeps_its_place_until_its_socket_is_gone() {
    let (mut bench, mut pod) = Bench::new();
    bench.inject(&packet::Tcp::syn(pod_end(), web(), 1, 1_460).build());
    bench.service(&mut pod);
    assert_eq!(bench.silent.dials.lock().unwrap().len(), 1, "{:?}", pod.stack.counters());
    assert_eq!(bench.descriptors.used(), 1);
    assert!(!bench.silent.given_up.load(Ordering::SeqCst));

    let (closed, _) = mpsc::channel();
    bench.with(|env, _| pod.close(env, closed));
    bench.service(&mut pod);
    assert!(bench.silent.given_up.load(Ordering::SeqCst), "the connect is given up at once");
    assert_eq!(bench.descriptors.used(), 1, "and counted as long as the dialer has its socket");
    bench.silent.dials.lock().unwrap().clear();
    let Ok(Command::Dialed(dialed)) = bench.commands.try_recv() else { panic!("no word of the dial") };
    drop(dialed);
    assert_eq!(bench.descriptors.used(), 0);
}

#[test]
fn a_pod_that_goes_leaves_in_turns() {
    const FLOWS: u16 = 150;
    let (mut bench, mut pod) = Bench::new();
    for port in 0..FLOWS {
        let end = SocketAddr::new(pod_end().ip(), 10_000 + port);
        bench.inject(&packet::Tcp::syn(end, web(), 1, 1_460).build());
    }
    while bench.service(&mut pod) {}
    assert_eq!(bench.descriptors.used(), usize::from(FLOWS));
    // Those who would say what came of a connect are gone: a flow's place is its socket's.
    bench.silent.dials.lock().unwrap().clear();
    while bench.commands.try_recv().is_ok() {}

    let (closed, told) = mpsc::channel();
    bench.with(|env, _| pod.close(env, closed));
    assert!((0..FLOWS).all(|_| next_segment(&bench.wire).is_some()), "the pod is told of all at once");
    let mut turns = 1;
    while bench.service(&mut pod) {
        assert!(!pod.is_closed());
        turns += 1;
    }
    assert!(pod.is_closed());
    assert!(turns >= usize::from(FLOWS) / 64, "{turns} turns");
    assert!(told.try_recv().is_err());
    pod.tell_closed();
    assert_eq!(told.try_recv(), Ok(()));
}

/// A TCP segment for the pod: flags, sequence number and payload.
type Segment = (u8, u32, Vec<u8>);

/// The next segment that waits.
fn next_segment(wire: &OwnedFd) -> Option<Segment> {
    let mut packet = vec![0; 70_000];
    let len = read(wire, &mut packet).ok()?;
    let segment = &packet[vnet::LEN + 20..len];
    let header = usize::from(segment[12] >> 4) * 4;
    Some((segment[13], u32::from_be_bytes(segment[4..8].try_into().unwrap()), segment[header..].to_vec()))
}

#[test]
fn what_an_upstream_sent_before_its_reset_gets_to_the_pod() {
    let (mut bench, mut pod) = Bench::new();
    let mut server = bench.connect(&mut pod);
    // Both are there before the worker looks.
    server.write_all(b"413 too large").unwrap();
    SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    let seen = bench.segments_until(&mut pod, |seen| seen.iter().any(|(bits, ..)| bits & flags::RST != 0));
    assert_eq!(octets_of(&seen), b"413 too large", "{seen:?}");
    assert!(seen.last().unwrap().0 & flags::RST != 0, "the reset comes last: {seen:?}");
}

#[test]
fn what_an_upstream_marks_urgent_gets_to_the_pod_in_its_place_and_so_does_the_rest() {
    let (mut bench, mut pod) = Bench::new();
    let mut server = bench.connect(&mut pod);
    for _ in 0..2 {
        server.write_all(b"abc").unwrap();
        assert_eq!(send(&server, b"X", SendFlags::OOB).unwrap(), 1);
        server.write_all(b"def").unwrap();
        // Nothing comes behind it that would wake the worker once more.
        let seen = bench.segments_until(&mut pod, |seen| octets_of(seen).len() >= 7);
        assert_eq!(octets_of(&seen), b"abcXdef", "{seen:?}");
    }
}

fn octets_of(segments: &[Segment]) -> Vec<u8> {
    segments.iter().flat_map(|(_, _, payload)| payload.clone()).collect()
}

/// Workers that serve one pod, whose TUN has a queue for each.
struct Shards {
    workers: Workers,
    silent: Arc<Silent>,
    wires: Vec<OwnedFd>,
}

impl Shards {
    fn start(workers: usize, limits: Limits) -> Self {
        let silent = Arc::new(Silent::default());
        let dialer: Arc<dyn Dialer> = silent.clone();
        let sink: Arc<dyn FlowSink> = Arc::new(Deaf);
        let config = WorkersConfig { workers, limits, record_begin: false, mark: None };
        let workers = Workers::start(&config, &dialer, &sink).unwrap();
        let (wires, queues) = (0..workers.handles.len()).map(|_| wire()).unzip();
        let workload = Arc::new(Workload::default());
        let pod = PodConfig {
            id: PodId(1),
            rules: rules(&workload),
            workload,
            queues,
            vnet_header: true,
            addresses: Vec::new(),
            broadcasts: Vec::new(),
            mtu: 1_500,
            dns_alias: None,
        };
        workers.attach(pod).unwrap();
        Self { workers, silent, wires }
    }

    /// Waits, as long as a minute, until the pod's counters and flows are as wanted.
    fn wait(&self, wanted: impl Fn(&PodSnapshot) -> bool) -> PodSnapshot {
        let end = std::time::Instant::now() + Duration::from_mins(1);
        loop {
            // Asking is a round through both workers: no busy wait.
            let pods = self.workers.snapshot();
            let [pod] = &pods[..] else { panic!("{} pods", pods.len()) };
            if wanted(pod) {
                return pod.clone();
            }
            assert!(std::time::Instant::now() < end, "{pod:?}");
        }
    }
}

#[test]
fn a_packet_on_any_queue_gets_to_its_flow() {
    let shards = Shards::start(2, Limits::default());
    let from = |port| SocketAddr::new(pod_end().ip(), port);
    for port in 40_000..40_064 {
        // On one queue, then again on the other: the second joins the first, whoever reads it.
        for wire in &shards.wires {
            inject(wire, &packet::Tcp::syn(from(port), web(), 1, 1_460).build());
        }
    }
    let pod = shards.wait(|pod| pod.counters.packets_in == 128 && pod.flows == 64);
    assert_eq!(shards.silent.dials.lock().unwrap().len(), 64);
    assert_eq!(pod.counters.drops().count(), 0, "{pod:?}");
    // Both serve some of them.
    let flows: Vec<usize> = shards
        .workers
        .handles
        .iter()
        .map(|handle| handle.post(Command::Snapshot).recv().unwrap()[0].flows)
        .collect();
    assert!(flows.iter().all(|&flows| flows > 16), "{flows:?}");
    shards.workers.detach(PodId(1));
    assert!(shards.workers.snapshot().is_empty());
}

#[test]
fn bounds_are_those_of_the_pod_and_not_of_its_shards() {
    let shards = Shards::start(2, Limits { pending: 9, ..Limits::default() });
    for port in 40_000..40_064 {
        let syn = packet::Tcp::syn(SocketAddr::new(pod_end().ip(), port), web(), 1, 1_460).build();
        inject(&shards.wires[usize::from(port % 2)], &syn);
    }
    let pod = shards.wait(|pod| pod.flows + pod.counters.dropped(DropReason::PendingLimit) as usize >= 64);
    assert_eq!(pod.flows, 9);
    assert_eq!(pod.counters.dropped(DropReason::PendingLimit), 55);
}
