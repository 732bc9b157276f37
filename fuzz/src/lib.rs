//! What the fuzz targets share: one stack, a pod whose octets follow from their sequence numbers, and upstreams whose
//! octets follow from their place in the stream. So every octet can be checked wherever it comes out.

mod options;
mod pod;
mod step;
mod upstream;
mod wire;

pub use options::Options;
pub use step::Step;
pub use wire::fix_header;

use std::cell::Cell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use tunproxy_datapath::{
    Action, Cx, DialFailure, Duration, FlowId, Input, Instant, Limits, Pool, Stack, StackConfig, vnet,
};
use tunproxy_policy::model::Policies;
use tunproxy_policy::{NodeDefault, NodeSettings, PolicySet, UpstreamRef, Workload, WorkloadPolicy};

use pod::Connection;
use upstream::Upstream;

/// Octets of buffers for all flows; small enough to be spent.
const MEMORY: usize = 512 * 1024;

/// Rounds of an event loop after which it does not come to rest.
const ROUNDS: usize = 10_000;

thread_local! {
    /// Buffers for the next world: to make 64 KiB of zeroes each time costs more than most inputs do.
    static POOL: Cell<Option<Pool>> = const { Cell::new(None) };
}

/// The octets of any stream repeat after so many: more than a stream has, and a divisor of the sequence space.
const PERIOD: usize = 1 << 20;

/// More than any packet or read has.
const LONGEST: usize = 1 << 17;

/// The `len` octets from a place of any stream on. They are made once, and compared by the slice: octet by octet, the
/// fuzzer would trace every comparison, and do little else.
pub fn octets(place: u64, len: usize) -> &'static [u8] {
    static ALL: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let octet = |place: usize| ((place % PERIOD) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
        (0..PERIOD + LONGEST).map(|place| octet(place) as u8).collect()
    });
    let start = (place % PERIOD as u64) as usize;
    &ALL[start..start + len]
}

/// How the world answers connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dial {
    Connect,
    Fail(DialFailure),
    Wait,
}

pub struct World {
    stack: Stack,
    pool: Pool,
    now: Instant,
    dial: Dial,
    connections: Vec<Connection>,
    upstreams: HashMap<FlowId, Upstream>,
    /// Connects nobody answered yet.
    waiting: Vec<FlowId>,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    pub fn new() -> Self {
        let config = StackConfig {
            addresses: Vec::new(),
            broadcasts: Vec::new(),
            mtu: 1_500,
            offload: true,
            limits: limits(),
            resolvers: Arc::from([IpAddr::from([10, 96, 0, 10])]),
            dns_alias: None,
            policy: policy(NodeDefault::Allow),
            direct: Arc::default(),
            record_begin: true,
            seed: [3; 16],
        };
        Self {
            stack: Stack::new(config),
            pool: POOL.take().unwrap_or_else(|| Pool::new(MEMORY)),
            now: Instant::from_secs(1),
            dial: Dial::Connect,
            connections: (0..pod::CONNECTIONS).map(Connection::new).collect(),
            upstreams: HashMap::new(),
            waiting: Vec::new(),
        }
    }

    /// A packet as the TUN gives it, virtio header included.
    pub fn raw(&mut self, bytes: &[u8]) -> (Input, Vec<u8>) {
        let mut buffer = self.pool.take();
        let len = bytes.len().min(buffer.space().len());
        buffer.space()[..len].copy_from_slice(&bytes[..len]);
        buffer.len = len;
        let input = self.stack.handle_packet(&mut Cx { now: self.now, pool: &mut self.pool }, &mut buffer);
        let after = buffer.bytes().to_vec();
        self.pool.give(buffer);
        self.settle();
        (input, after)
    }

    pub fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        for round in 0.. {
            let Some(at) = self.stack.poll_at().filter(|&at| at <= end) else { break };
            assert!(round < ROUNDS, "timers without end");
            self.now = self.now.max(at);
            self.stack.handle_timeout(&mut Cx { now: self.now, pool: &mut self.pool });
            self.settle();
            assert!(self.stack.poll_at().is_none_or(|next| next > self.now), "armed for the past");
        }
        self.now = end;
    }

    /// The pod goes; nothing may be left.
    pub fn end(&mut self) {
        self.stack.close(&mut Cx { now: self.now, pool: &mut self.pool });
        self.settle();
        assert_eq!(self.stack.flow_counts(), (0, 0, 0));
        assert_eq!(self.pool.held(), 0);
        self.advance(Duration::from_secs(300));
        assert_eq!(self.stack.poll_at(), None, "something still waits");
        POOL.set(Some(std::mem::replace(&mut self.pool, Pool::new(0))));
    }

    pub(crate) fn set_policy(&mut self, default: NodeDefault) {
        let policy = policy(default);
        self.stack.set_policy(&mut Cx { now: self.now, pool: &mut self.pool }, policy);
        self.settle();
    }

    /// What an event loop does until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        for round in 0.. {
            assert!(round < ROUNDS, "it never comes to rest");
            let mut moved = self.act();
            while let Some(flow) = self.stack.poll_uplink() {
                moved |= self.write_up(flow, usize::MAX);
            }
            while let Some(flow) = self.stack.poll_resumed() {
                moved |= self.read_down(flow);
            }
            moved |= self.transmit();
            if !moved {
                break;
            }
        }
        self.stack.check_invariants(&self.pool).unwrap_or_else(|fault| panic!("at {}: {fault}", self.now));
    }

    fn act(&mut self) -> bool {
        let mut any = false;
        while let Some(action) = self.stack.poll_action() {
            any = true;
            match action {
                Action::Connect { flow, .. } => {
                    self.upstreams.insert(flow, Upstream::new());
                    self.answer(flow, self.dial);
                }
                Action::Shutdown { flow } => self.upstream(flow).shut = true,
                Action::Close { flow, .. } => {
                    let known = self.upstreams.remove(&flow).is_some();
                    assert!(known, "{flow:?} is closed twice");
                    self.waiting.retain(|&waiting| waiting != flow);
                }
                Action::OpenMapping { .. }
                | Action::CloseMapping { .. }
                | Action::OpenEcho { .. }
                | Action::CloseEcho { .. }
                | Action::Begin(_)
                | Action::Record(_) => {}
            }
        }
        any
    }

    pub(crate) fn answer(&mut self, flow: FlowId, dial: Dial) {
        let mut cx = Cx { now: self.now, pool: &mut self.pool };
        match dial {
            Dial::Connect => {
                self.stack.upstream_connected(&mut cx, flow, None);
                self.read_down(flow);
            }
            Dial::Fail(failure) => self.stack.upstream_failed(&mut cx, flow, failure),
            Dial::Wait => self.waiting.push(flow),
        }
    }

    pub(crate) fn upstream(&mut self, flow: FlowId) -> &mut Upstream {
        self.upstreams.get_mut(&flow).expect("a known flow")
    }

    /// Takes up to `appetite` octets for the upstream and checks each.
    pub(crate) fn write_up(&mut self, flow: FlowId, appetite: usize) -> bool {
        let Some(upstream) = self.upstreams.get_mut(&flow) else { return false };
        if upstream.stalled && appetite == usize::MAX {
            return false;
        }
        let mut taken = 0;
        for chunk in self.stack.uplink(flow) {
            let part = &chunk[..chunk.len().min(appetite - taken)];
            upstream.check(part);
            taken += part.len();
        }
        if taken > 0 {
            self.stack.uplink_sent(&mut Cx { now: self.now, pool: &mut self.pool }, flow, taken);
        }
        taken > 0
    }

    /// Reads from an upstream what the stack has room for.
    pub(crate) fn read_down(&mut self, flow: FlowId) -> bool {
        let mut any = false;
        loop {
            let mut cx = Cx { now: self.now, pool: &mut self.pool };
            let Some(upstream) = self.upstreams.get_mut(&flow).filter(|upstream| !upstream.eof_told) else {
                return any;
            };
            if upstream.to_send == 0 && !upstream.closes {
                return any;
            }
            let room = self.stack.downlink_room(&cx, flow);
            if room == 0 {
                return any;
            }
            any = true;
            if upstream.to_send == 0 {
                upstream.eof_told = true;
                self.stack.downlink_eof(&mut cx, flow);
                continue;
            }
            let mut buffer = cx.pool.take();
            let len = upstream.give(&mut buffer.space()[..room]);
            self.stack.downlink_data(&mut cx, flow, &mut buffer, len);
            cx.pool.give(buffer);
        }
    }

    fn transmit(&mut self) -> bool {
        let mut any = false;
        while let Some(packet) = self.stack.poll_transmit(&mut Cx { now: self.now, pool: &mut self.pool }) {
            any = true;
            if let Some(segment) = wire::Segment::parse(&packet.head[vnet::LEN..], packet.payload) {
                let connection =
                    self.connections.iter_mut().find(|connection| connection.port == segment.pod_port);
                if let Some(connection) = connection {
                    connection.see(&segment);
                }
            }
        }
        any
    }
}

fn limits() -> Limits {
    Limits {
        flows: 6,
        pending: 4,
        half_open: 4,
        time_wait: 4,
        udp_mappings: 4,
        udp_peers: 4,
        ..Limits::default()
    }
}

/// Compiled once: most inputs take less time than that.
fn policy(default: NodeDefault) -> Arc<WorkloadPolicy> {
    static ALLOW: LazyLock<Arc<WorkloadPolicy>> = LazyLock::new(|| compile(NodeDefault::Allow));
    static DENY: LazyLock<Arc<WorkloadPolicy>> = LazyLock::new(|| compile(NodeDefault::Deny));
    Arc::clone(match default {
        NodeDefault::Allow => &ALLOW,
        NodeDefault::Deny => &DENY,
    })
}

fn compile(default: NodeDefault) -> Arc<WorkloadPolicy> {
    let settings = NodeSettings { default, upstream: UpstreamRef::direct(), resolvers: Vec::new() };
    Arc::new(PolicySet::compile(&Policies::default(), settings).for_workload(&Workload::default()))
}
