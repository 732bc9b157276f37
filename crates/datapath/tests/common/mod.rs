//! The stack as one end of a simulated wire, with upstreams that exist only in memory.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant as Wall;

use tunproxy_datapath::{
    Action, Cx, DialFailure, Duration, FlowBegin, FlowId, FlowRecord, Input, Instant, Limits, Pool, Stack,
    StackConfig, Target, vnet,
};
use tunproxy_policy::model::{Destination, EgressAction, EgressPolicy, Enforcement, Policies, Rule};
use tunproxy_policy::{NodeDefault, NodeSettings, PolicySet, UpstreamRef, Workload, WorkloadPolicy};
use tunproxy_testkit::packet;
use tunproxy_testkit::sim::PacketPeer;

pub const POD4: &str = "10.244.0.5";

pub fn allow_all() -> Arc<WorkloadPolicy> {
    policy(&Policies::default(), NodeDefault::Allow)
}

pub fn policy(policies: &Policies, default: NodeDefault) -> Arc<WorkloadPolicy> {
    let settings = NodeSettings {
        default,
        upstream: UpstreamRef::direct(),
        resolvers: vec![IpAddr::from([10, 96, 0, 10])],
    };
    Arc::new(PolicySet::compile(policies, settings).for_workload(&Workload::default()))
}

/// A rule for every port.
pub fn rule(action: EgressAction, to: Vec<Destination>) -> Rule<EgressAction> {
    Rule { name: None, action, to, ports: Vec::new(), via: None, limits: Default::default() }
}

/// An enforcing policy for the pod.
pub fn egress(rules: Vec<Rule<EgressAction>>) -> EgressPolicy {
    EgressPolicy {
        namespace: Workload::default().namespace,
        name: "rules".to_owned(),
        pod_selector: Default::default(),
        service_accounts: Vec::new(),
        priority: Default::default(),
        enforcement: Enforcement::Enforce,
        dns: Default::default(),
        udp_filtering: Default::default(),
        rules,
    }
}

/// A query for `name`, and the answer that it is 192.0.2.1.
pub fn conversation(name: &str) -> (Vec<u8>, Vec<u8>) {
    let question: Vec<u8> = name
        .split('.')
        .flat_map(|label| std::iter::once(label.len() as u8).chain(label.bytes()))
        .chain([0, 0, 1, 0, 1])
        .collect();
    let query = [&[0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &question].concat();
    let answer = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1];
    let response = [&[0, 9, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0][..], &question, &answer].concat();
    (query, response)
}

pub fn config(policy: Arc<WorkloadPolicy>) -> StackConfig {
    StackConfig {
        addresses: Vec::new(),
        broadcasts: Vec::new(),
        mtu: 1_500,
        offload: true,
        limits: Limits::default(),
        resolvers: Arc::from([IpAddr::from([10, 96, 0, 10])]),
        dns_alias: None,
        policy,
        direct: Arc::default(),
        record_begin: true,
        seed: [7; 16],
    }
}

/// What the upstream of a flow has seen and will say.
#[derive(Debug, Default)]
pub struct Upstream {
    pub received: Vec<u8>,
    /// The pod's FIN was passed on.
    pub shut: bool,
    /// Octets it still wants to send.
    pub to_send: VecDeque<u8>,
    /// Close its direction when everything is sent.
    pub close: bool,
    pub eof_told: bool,
    /// It takes nothing for now.
    pub blocked: bool,
    pub closed: Option<bool>,
}

/// How the world outside answers a connect.
#[derive(Clone, Copy, Debug)]
pub enum Dial {
    Connect,
    Fail(DialFailure),
    Never,
}

pub struct Engine {
    pub stack: Stack,
    pub pool: Pool,
    pub upstreams: HashMap<FlowId, Upstream>,
    pub connects: Vec<(FlowId, Target, Option<String>)>,
    pub begins: Vec<FlowBegin>,
    pub records: Vec<FlowRecord>,
    pub dial: Dial,
    /// Given to each new upstream.
    pub script: Box<dyn FnMut() -> Upstream>,
    /// Largest write an upstream takes at once.
    pub appetite: usize,
    pub datagrams: Vec<(SocketAddr, Vec<u8>)>,
    /// Segments of a simulated pod that closed its window.
    pub zero_windows: u64,
    out: VecDeque<Vec<u8>>,
    epoch: Wall,
    open: HashSet<FlowId>,
    /// When a test wants to have a look although nothing may happen.
    wake: Vec<Instant>,
}

impl Engine {
    pub fn new(config: StackConfig, epoch: Wall) -> Self {
        Self {
            stack: Stack::new(config),
            pool: Pool::new(64 << 20),
            upstreams: HashMap::new(),
            connects: Vec::new(),
            begins: Vec::new(),
            records: Vec::new(),
            dial: Dial::Connect,
            script: Box::new(Upstream::default),
            appetite: usize::MAX,
            datagrams: Vec::new(),
            zero_windows: 0,
            out: VecDeque::new(),
            epoch,
            open: HashSet::new(),
            wake: Vec::new(),
        }
    }

    /// Lets a simulation stop at these times after its start.
    pub fn wake_after(&mut self, pauses: &[std::time::Duration]) {
        for &pause in pauses {
            self.wake.push(self.time(self.epoch + pause));
        }
    }

    pub fn time(&self, now: Wall) -> Instant {
        Instant::from_micros(1_000_000 + (now - self.epoch).as_micros() as i64)
    }

    /// Everything an event loop would do until nothing is left to do.
    pub fn settle(&mut self, now: Instant) {
        loop {
            let mut moved = self.act(now);
            while let Some(flow) = self.stack.poll_uplink() {
                moved |= self.write_up(now, flow);
            }
            while let Some(flow) = self.stack.poll_resumed() {
                moved |= self.read_down(now, flow);
            }
            moved |= self.transmit(now);
            if !moved {
                self.stack.check_invariants(&self.pool).unwrap_or_else(|fault| panic!("at {now}: {fault}"));
                return;
            }
        }
    }

    fn act(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(action) = self.stack.poll_action() {
            any = true;
            let mut cx = Cx { now, pool: &mut self.pool };
            match action {
                Action::Connect { flow, permit, target } => {
                    self.open.insert(flow);
                    self.connects.push((flow, target.clone(), permit.name().map(ToString::to_string)));
                    match self.dial {
                        Dial::Connect => {
                            self.upstreams.insert(flow, (self.script)());
                            self.stack.upstream_connected(&mut cx, flow, Some(target.dial));
                            self.read_down(now, flow);
                        }
                        Dial::Fail(failure) => self.stack.upstream_failed(&mut cx, flow, failure),
                        Dial::Never => {}
                    }
                }
                Action::Shutdown { flow } => self.upstreams.get_mut(&flow).expect("a known flow").shut = true,
                Action::Close { flow, abort } => {
                    assert!(self.open.remove(&flow), "closed twice: {flow:?}");
                    if let Some(upstream) = self.upstreams.get_mut(&flow) {
                        upstream.closed = Some(abort);
                        upstream.shut |= !abort;
                    }
                }
                Action::Record(record) => self.records.push(*record),
                Action::Begin(begin) => self.begins.push(*begin),
                Action::OpenMapping { .. }
                | Action::CloseMapping { .. }
                | Action::OpenEcho { .. }
                | Action::CloseEcho { .. } => {}
            }
        }
        any
    }

    pub fn write_up(&mut self, now: Instant, flow: FlowId) -> bool {
        let Some(upstream) = self.upstreams.get_mut(&flow) else { return false };
        if upstream.blocked {
            return false;
        }
        let mut sent = 0;
        for chunk in self.stack.uplink(flow) {
            let take = chunk.len().min(self.appetite - sent);
            upstream.received.extend_from_slice(&chunk[..take]);
            sent += take;
        }
        if sent > 0 {
            self.stack.uplink_sent(&mut Cx { now, pool: &mut self.pool }, flow, sent);
        }
        sent > 0
    }

    /// Reads from an upstream what the stack has room for.
    pub fn read_down(&mut self, now: Instant, flow: FlowId) -> bool {
        let mut any = false;
        loop {
            let mut cx = Cx { now, pool: &mut self.pool };
            let Some(upstream) = self.upstreams.get_mut(&flow) else { return any };
            if upstream.closed.is_some() || upstream.eof_told {
                return any;
            }
            if upstream.to_send.is_empty() {
                if upstream.close {
                    upstream.eof_told = true;
                    self.stack.downlink_eof(&mut cx, flow);
                    return true;
                }
                return any;
            }
            let room = self.stack.downlink_room(&cx, flow);
            if room == 0 {
                return any;
            }
            let len = room.min(upstream.to_send.len());
            let mut buffer = cx.pool.take();
            for (slot, byte) in buffer.space().iter_mut().zip(upstream.to_send.drain(..len)) {
                *slot = byte;
            }
            self.stack.downlink_data(&mut cx, flow, &mut buffer, len);
            cx.pool.give(buffer);
            any = true;
        }
    }

    fn transmit(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(packet) = self.stack.poll_transmit(&mut Cx { now, pool: &mut self.pool }) {
            let gso_size = usize::from(u16::from_ne_bytes([packet.head[4], packet.head[5]]));
            let needs_sum = packet.head[0] != 0;
            let mut ip = packet.head[vnet::LEN..].to_vec();
            ip.extend_from_slice(packet.payload);
            any = true;
            if gso_size > 0 {
                self.out.extend(packet::segment(&ip, gso_size));
            } else {
                if needs_sum {
                    packet::finish_checksum(&mut ip);
                }
                self.out.push_back(ip);
            }
        }
        any
    }

    /// A packet of the pod, without a virtio header's help.
    pub fn inject(&mut self, now: Instant, ip: &[u8]) -> Input {
        let mut buffer = self.pool.take();
        buffer.space()[..vnet::LEN].fill(0);
        buffer.space()[vnet::LEN..vnet::LEN + ip.len()].copy_from_slice(ip);
        buffer.len = vnet::LEN + ip.len();
        let input = self.stack.handle_packet(&mut Cx { now, pool: &mut self.pool }, &mut buffer);
        if let Input::Datagram { destination, payload, .. } = &input {
            self.datagrams.push((*destination, buffer.bytes()[payload.clone()].to_vec()));
        }
        self.pool.give(buffer);
        self.settle(now);
        input
    }

    /// Packets for the pod, each a single IP packet with complete checksums.
    pub fn drain(&mut self) -> Vec<Vec<u8>> {
        self.out.drain(..).collect()
    }

    /// Lets timers run up to `now`.
    pub fn advance(&mut self, now: Instant) {
        for _ in 0..1_000 {
            if self.stack.poll_at().is_none_or(|at| at > now) {
                return;
            }
            self.stack.handle_timeout(&mut Cx { now, pool: &mut self.pool });
            self.settle(now);
        }
        panic!("the stack asks to be called at {now} over and over");
    }
}

impl PacketPeer for Engine {
    fn handle(&mut self, now: Wall, packet: &[u8]) {
        let now = self.time(now);
        self.zero_windows += u64::from(closes_the_window(packet));
        self.inject(now, packet);
    }

    fn poll(&mut self, now: Wall) -> Option<Vec<u8>> {
        let now = self.time(now);
        self.wake.retain(|&at| at > now);
        self.advance(now);
        self.settle(now);
        self.out.pop_front()
    }

    fn poll_at(&mut self) -> Option<Wall> {
        let at = self.wake.iter().copied().chain(self.stack.poll_at()).min()?;
        let since = (at - Instant::from_micros(1_000_000)).total_micros();
        Some(self.epoch + std::time::Duration::from_micros(since))
    }
}

/// A TCP segment with a window of zero, and not a reset, whose window says nothing.
fn closes_the_window(packet: &[u8]) -> bool {
    let header = &packet[packet::addresses(packet).2..];
    header[13] & packet::flags::RST == 0 && header[14..16] == [0, 0]
}

/// Half a megabyte at most of octets that differ from place to place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed) >> 29) as u8)
        .collect()
}

pub fn at(micros: i64) -> Instant {
    Instant::from_micros(micros)
}

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
