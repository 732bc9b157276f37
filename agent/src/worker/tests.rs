//! One pod in a worker whose TUN is a socket pair: what a turn is, and what becomes of a dial that is given up.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Receiver;

use mio::Poll;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use tunproxy_datapath::{Instant, PacketBuf, Pool, vnet};
use tunproxy_policy::model::Policies;
use tunproxy_policy::{NodeDefault, NodeSettings, PolicySet};
use tunproxy_testkit::packet;

use super::datagram_run::DatagramRun;
use super::pod::{Env, Pod};
use super::token::{Source, WAKER};
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
    commands: Receiver<Command>,
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
        let (sender, commands) = mpsc::channel();
        let worker =
            Handle { commands: sender, waker: Arc::new(Waker::new(poll.registry(), WAKER).unwrap()) };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (wire, tun) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let mut pool = Pool::new(64 << 20);
        let buffer = pool.take();
        let silent = Arc::new(Silent::default());
        let dialer = silent.clone();
        let descriptors = Descriptors::of(4_096);
        let config = WorkersConfig { workers: 1, limits: Limits::default(), record_begin: false, mark: None };
        let share = descriptors.share();
        let pod = Pod::new(0, pod_config(tun), &config, share, poll.registry()).unwrap();
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
            worker: &self.worker,
        };
        work(&mut env, &mut self.buffer)
    }

    fn service(&mut self, pod: &mut Pod) -> bool {
        self.with(|env, buffer| pod.service(env, buffer))
    }

    fn inject(&self, ip: &[u8]) {
        let packet = [&[0; vnet::LEN], ip].concat();
        assert_eq!(send(&self.wire, &packet, SendFlags::empty()).unwrap(), packet.len());
    }
}

/// Everything is allowed, through an upstream that only the dialer reaches.
fn pod_config(tun: OwnedFd) -> PodConfig {
    let upstream = UpstreamRef("office".into());
    let settings = NodeSettings { default: NodeDefault::Allow, upstream, resolvers: Vec::new() };
    let workload = Arc::new(Workload::default());
    let policy = Arc::new(PolicySet::compile(&Policies::default(), settings).for_workload(&workload));
    PodConfig {
        id: PodId(1),
        workload,
        queues: vec![tun],
        vnet_header: true,
        addresses: Vec::new(),
        mtu: 1_500,
        rules: PodRules { policy, resolvers: Arc::from([]), direct: Arc::default() },
        dns_alias: None,
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

    bench.with(|env, _| pod.close(env));
    assert!(bench.silent.given_up.load(Ordering::SeqCst), "the connect is given up at once");
    assert_eq!(bench.descriptors.used(), 1, "and counted as long as the dialer has its socket");
    bench.silent.dials.lock().unwrap().clear();
    let Ok(Command::Dialed(dialed)) = bench.commands.try_recv() else { panic!("no word of the dial") };
    drop(dialed);
    assert_eq!(bench.descriptors.used(), 0);
}
