//! A pod served by several shards: whose packet it is, and that names and bounds are those of the pod.

mod common;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use common::config;
use tunproxy_datapath::{
    Action, Cx, DropReason, FlowRecord, Input, Instant, Limits, PacketBuf, Pool, Stack, StackConfig, shard,
    vnet,
};
use tunproxy_policy::model::{Destination, EgressAction, Policies};
use tunproxy_policy::{DomainPattern, NodeDefault, WorkloadPolicy};
use tunproxy_testkit::packet;

const RESOLVER: &str = "10.96.0.10:53";
const GOOD: &str = "192.0.2.1:443";

/// Only `good.example` is allowed.
fn only_good() -> Arc<WorkloadPolicy> {
    let good = Destination::Domains(vec![DomainPattern::parse("good.example").unwrap()]);
    let egress = vec![common::egress(vec![common::rule(EgressAction::Allow, vec![good])])];
    common::policy(&Policies { egress, ..Policies::default() }, NodeDefault::Deny)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn pod(port: u16) -> SocketAddr {
    SocketAddr::new(common::POD4.parse().unwrap(), port)
}

/// A port whose flow to `to` belongs to the shard.
fn port_of(index: usize, count: usize, to: SocketAddr) -> u16 {
    let owner =
        |port: u16| shard::spread(to.ip(), u32::from(port) << 16 | u32::from(to.port())) as usize % count;
    (40_000..u16::MAX).find(|&port| owner(port) == index).unwrap()
}

struct Shards {
    stacks: Vec<Stack>,
    pool: Pool,
    now: Instant,
}

impl Shards {
    fn new(policy: Arc<WorkloadPolicy>, limits: Limits, count: usize) -> Self {
        let config = StackConfig { limits, ..config(policy) };
        Self { stacks: Stack::shards(&config, count), pool: Pool::new(1 << 24), now: Instant::from_secs(1) }
    }

    fn buffer(&mut self, ip: &[u8]) -> PacketBuf {
        let mut buffer = self.pool.take();
        let packet = [&[0; vnet::LEN], ip].concat();
        buffer.space()[..packet.len()].copy_from_slice(&packet);
        buffer.len = packet.len();
        buffer
    }

    /// Gives a packet to a shard as its queue does.
    fn inject(&mut self, index: usize, ip: &[u8]) -> (Input, PacketBuf) {
        let mut buffer = self.buffer(ip);
        let mut cx = Cx { now: self.now, pool: &mut self.pool };
        let input = self.stacks[index].handle_packet(&mut cx, &mut buffer);
        (input, buffer)
    }

    /// Gives it to the first shard and on to whoever is to have it; returns who that was.
    fn deliver(&mut self, ip: &[u8]) -> usize {
        let (input, mut buffer) = self.inject(0, ip);
        let Input::Elsewhere { shard } = input else { return 0 };
        let mut cx = Cx { now: self.now, pool: &mut self.pool };
        let input = self.stacks[shard].handle_handover(&mut cx, &mut buffer);
        assert!(!matches!(input, Input::Elsewhere { .. }), "a packet is handed over once");
        shard
    }

    fn connects(&mut self, index: usize) -> usize {
        self.actions(index).iter().filter(|action| matches!(action, Action::Connect { .. })).count()
    }

    fn actions(&mut self, index: usize) -> Vec<Action> {
        std::iter::from_fn(|| self.stacks[index].poll_action()).collect()
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.stacks.iter().map(|stack| stack.counters().dropped(reason)).sum()
    }
}

#[test]
fn a_name_that_one_shard_learns_holds_in_all() {
    let mut shards = Shards::new(only_good(), Limits::default(), 3);
    let syns: Vec<_> = (0..3)
        .map(|index| packet::Tcp::syn(pod(port_of(index, 3, address(GOOD))), address(GOOD), 1, 1_460).build())
        .collect();
    for (index, syn) in syns.iter().enumerate() {
        shards.inject(index, syn);
        assert_eq!(shards.connects(index), 0, "no name leads there yet");
    }
    let (query, response) = common::conversation("good.example");
    let (input, _) = shards.inject(0, &packet::udp(pod(5_353), address(RESOLVER), &query));
    let Input::Datagram { mapping, .. } = input else { panic!("{input:?}") };
    shards.stacks[0].udp_reply(shards.now, mapping, address(RESOLVER), &response).unwrap();
    for (index, syn) in syns.iter().enumerate() {
        shards.inject(index, syn);
        assert_eq!(shards.connects(index), 1);
    }
    // It ends with the resolver's trust, in each shard as it is told, whoever has learnt it.
    shards.stacks[1].set_resolvers(Arc::from([]));
    for (index, expected) in [(0, 1), (1, 0), (2, 1)] {
        let other = address("192.0.2.1:444");
        shards.inject(index, &packet::Tcp::syn(pod(port_of(index, 3, other)), other, 1, 1_460).build());
        assert_eq!(shards.connects(index), expected, "{index}");
    }
}

#[test]
fn only_tcp_is_spread() {
    let mut shards = Shards::new(common::allow_all(), Limits::default(), 2);
    let syn = packet::Tcp::syn(pod(port_of(1, 2, address(GOOD))), address(GOOD), 1, 1_460).build();
    let (input, _) = shards.inject(0, &syn);
    assert_eq!(input, Input::Elsewhere { shard: 1 });
    for packet in [
        packet::udp(pod(port_of(1, 2, address(GOOD))), address(GOOD), b"ask"),
        packet::echo_request(pod(0).ip(), address(GOOD).ip(), 7, 1, b"ping"),
        packet::ip(pod(0).ip(), address(GOOD).ip(), 132, b"SCTP, say"),
    ] {
        assert_eq!(shards.inject(1, &packet).0, Input::Elsewhere { shard: 0 });
        assert_eq!(shards.deliver(&packet), 0);
    }
    assert_eq!(shards.dropped(DropReason::UnknownProtocol), 1);
    // What is no packet goes nowhere.
    let truncated = packet::ip(pod(0).ip(), address(GOOD).ip(), 6, &[1]);
    assert_eq!(shards.inject(1, &truncated).0, Input::Done);
    assert_eq!(shards.stacks[1].counters().drops().map(|(_, count)| count).sum::<u64>(), 1);
    let counted: u64 = shards.stacks.iter().map(|stack| stack.counters().packets_in).sum();
    assert_eq!(counted, 8, "each is counted once");
}

#[test]
fn an_error_about_a_segment_goes_to_its_flow() {
    let mut shards = Shards::new(common::allow_all(), Limits::default(), 2);
    let (from, to) = (pod(port_of(1, 2, address(GOOD))), address(GOOD));
    // What a router behind the pod quotes is a segment of ours: from the remote end to the pod.
    let segment = packet::Tcp::new(to, from).build();
    let rest = [&[0, 0, 0x02, 0x40][..], &segment[..28]].concat();
    let error = packet::icmp(from.ip(), to.ip(), [3, 4], &rest);
    assert_eq!(shards.inject(0, &error).0, Input::Elsewhere { shard: 1 });
    let unreachable = packet::icmp(from.ip(), to.ip(), [3, 1], &rest);
    assert_eq!(shards.deliver(&unreachable), 0, "other errors change nothing");
}

#[test]
fn fragments_meet_in_one_shard_and_the_whole_goes_where_it_belongs() {
    for (text, from) in [(GOOD, common::POD4), ("[2001:db8::1]:443", "fd00::5")] {
        let from: IpAddr = from.parse().unwrap();
        let mut shards = Shards::new(common::allow_all(), Limits::default(), 2);
        let to = address(text);
        let source = SocketAddr::new(from, port_of(1, 2, to));
        let syn = packet::Tcp::syn(source, to, 1, 1_460).with_payload(&[7; 900]).build();
        let pieces = packet::fragments(&syn, 512, 77);
        let (last, first) = pieces.split_last().unwrap();
        assert_eq!(shards.inject(1, last).0, Input::Elsewhere { shard: 0 });
        for piece in first {
            assert_eq!(shards.deliver(piece), 0);
        }
        assert_eq!(shards.deliver(last), 1, "the datagram is whole");
        assert_eq!(shards.connects(1), 1);
    }
}

#[test]
fn bounds_and_rates_are_those_of_the_pod() {
    let limits = Limits { flows: 7, refusals_per_second: 20, errors_per_second: 30, ..Limits::default() };
    let mut shards = Shards::new(common::allow_all(), limits.clone(), 2);
    for port in 40_000..40_100 {
        shards.deliver(&packet::Tcp::syn(pod(port), address(GOOD), 1, 1_460).build());
    }
    assert_eq!(shards.connects(0) + shards.connects(1), 7);
    assert_eq!(shards.dropped(DropReason::FlowLimit), 93);
    // Closed again, they leave room for as many.
    for index in 0..2 {
        let mut cx = Cx { now: shards.now, pool: &mut shards.pool };
        shards.stacks[index].close(&mut cx);
    }
    for port in 50_000..50_100 {
        shards.deliver(&packet::Tcp::syn(pod(port), address(GOOD), 1, 1_460).build());
    }
    assert_eq!(shards.connects(0) + shards.connects(1), 7);

    let mut shards = Shards::new(only_good(), limits, 2);
    for port in 40_000..40_100 {
        let to = SocketAddr::new(address(GOOD).ip(), port);
        shards.deliver(&packet::Tcp::syn(pod(port), to, 1, 1_460).build());
        shards.deliver(&packet::udp(pod(port), to, b"ask"));
    }
    let records: Vec<FlowRecord> = (0..2)
        .flat_map(|index| shards.actions(index))
        .filter_map(|action| if let Action::Record(record) = action { Some(*record) } else { None })
        .collect();
    assert_eq!(records.len(), 20);
    let errors: u64 = shards.stacks.iter().map(|stack| stack.counters().icmp_errors_sent).sum();
    assert_eq!(errors, 30);
}
