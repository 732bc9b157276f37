//! What one pod may take of what it shares with the others: UDP peers, lines of the flow log, the node's sends.

#![expect(clippy::disallowed_methods, reason = "the ban is the crate's own: a test has a clock")]

mod common;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant as Wall;

use common::{Dial, Engine, POD4, allow_all, at, config, policy};
use tunproxy_datapath::{
    CloseReason, Cx, DialFailure, DropReason, Input, Instant, Limits, MappingId, StackConfig, vnet,
};
use tunproxy_policy::model::Policies;
use tunproxy_policy::{NodeDefault, NodeSettings, PolicySet, UpstreamRef, Workload, WorkloadPolicy};
use tunproxy_testkit::packet;

const NOW: i64 = 1_000_000;

fn pod(port: u16) -> SocketAddr {
    SocketAddr::new(POD4.parse().unwrap(), port)
}

fn host(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn engine(policy: Arc<WorkloadPolicy>, limits: Limits) -> Engine {
    Engine::new(StackConfig { limits, ..config(policy) }, Wall::now())
}

fn send(engine: &mut Engine, now: Instant, from: u16, to: SocketAddr) -> Option<MappingId> {
    match engine.inject(now, &packet::udp(pod(from), to, b"ask")) {
        Input::Datagram { mapping, .. } => Some(mapping),
        Input::Done | Input::Elsewhere { .. } | Input::Echo { .. } => None,
    }
}

fn ended(engine: &Engine) -> Vec<(SocketAddr, SocketAddr, CloseReason)> {
    engine.records.iter().map(|record| (record.source, record.destination, record.close)).collect()
}

#[test]
fn peers_of_all_mappings_are_bounded_together_and_the_least_recently_used_goes() {
    let mut engine = engine(allow_all(), Limits { udp_peers: 3, ..Limits::default() });
    let steps = [(40_000, 1), (40_000, 2), (40_001, 3), (40_000, 1), (40_002, 4), (40_002, 5)];
    for (second, (from, to)) in (1..).zip(steps) {
        assert!(send(&mut engine, at(second * NOW), from, host(to)).is_some());
    }
    let evicted = |from, to| (pod(from), host(to), CloseReason::Evicted);
    // Port 1 was used again since. Port 3 was the only peer of its mapping, which goes with it.
    assert_eq!(ended(&engine), [evicted(40_000, 2), evicted(40_001, 3)]);
    assert_eq!(engine.stack.flow_counts().1, 2);
    assert_eq!(engine.stack.counters().udp_evictions, 2);
}

#[test]
fn a_mapping_whose_only_peer_gives_way_to_its_next_is_opened_again() {
    let mut engine = engine(allow_all(), Limits { udp_peers: 1, ..Limits::default() });
    let first = send(&mut engine, at(NOW), 40_000, host(1)).unwrap();
    let second = send(&mut engine, at(NOW), 40_000, host(2)).unwrap();
    assert_ne!(first, second);
    assert_eq!(engine.stack.flow_counts().1, 1);
    assert!(engine.stack.udp_reply(at(NOW), second, host(1), b"late").is_none());
    assert!(engine.stack.udp_reply(at(NOW), second, host(2), b"answer").is_some());
}

#[test]
fn many_queries_leave_nothing_behind() {
    let mut engine = engine(allow_all(), Limits { udp_peers: 4, ..Limits::default() });
    for number in 0..5_000 {
        send(&mut engine, at(NOW + number), 40_000 + (number % 7) as u16, host(1 + (number % 11) as u16));
    }
    engine.stack.check_invariants(&engine.pool).unwrap();
    assert!(engine.stack.flow_counts().1 <= 4);
}

#[test]
fn refusals_are_told_always_and_recorded_within_a_rate() {
    let deny = policy(&Policies::default(), NodeDefault::Deny);
    let mut engine = engine(deny, Limits { refusals_per_second: 10, ..Limits::default() });
    for _ in 0..500 {
        assert_eq!(send(&mut engine, at(NOW), 40_000, host(7)), None);
    }
    assert_eq!(engine.records.len(), 5);
    assert_eq!(engine.drain().len(), 500, "each packet has its answer");
    send(&mut engine, at(NOW), 40_000, host(8));
    assert_eq!(engine.records.last().unwrap().destination, host(8), "a first refusal is not lost");
    assert_eq!(engine.stack.counters().refusals_unrecorded, 495);
}

#[test]
fn connections_that_cannot_be_made_for_want_of_something_are_recorded_within_a_rate() {
    let mut engine = engine(allow_all(), Limits { refusals_per_second: 10, ..Limits::default() });
    engine.dial = Dial::Fail(DialFailure::Limit);
    for port in 0..500 {
        engine.inject(at(NOW), &packet::Tcp::syn(pod(40_000 + port), host(7), 1, 1_460).build());
    }
    assert_eq!(engine.records.len(), 5);
    assert_eq!(engine.drain().len(), 500, "each has its reset");
    assert_eq!(engine.stack.counters().refusals_unrecorded, 495);
}

/// A datagram that the kernel is to cut, with `gso_size` in its virtio header.
fn super_segment(engine: &mut Engine, payload: usize, gso_size: u16) -> Input {
    let ip = packet::udp(pod(40_000), host(7), &vec![1; payload]);
    let mut buffer = engine.pool.take();
    buffer.space()[..vnet::LEN].fill(0);
    buffer.space()[1] = 5; // VIRTIO_NET_HDR_GSO_UDP_L4
    buffer.space()[4..6].copy_from_slice(&gso_size.to_ne_bytes());
    buffer.space()[vnet::LEN..vnet::LEN + ip.len()].copy_from_slice(&ip);
    buffer.len = vnet::LEN + ip.len();
    let input = engine.stack.handle_packet(&mut Cx { now: at(NOW), pool: &mut engine.pool }, &mut buffer);
    engine.pool.give(buffer);
    engine.settle(at(NOW));
    input
}

#[test]
fn a_super_segment_has_no_more_datagrams_than_the_kernels_own() {
    let mut engine = engine(allow_all(), Limits::default());
    assert!(matches!(super_segment(&mut engine, 1_280, 10), Input::Datagram { segment: 10, .. }));
    assert_eq!(super_segment(&mut engine, 1_281, 10), Input::Done);
    assert_eq!(super_segment(&mut engine, 60_000, 1), Input::Done);
    assert_eq!(engine.stack.counters().dropped(DropReason::Segments), 2);
}

#[test]
fn an_upstream_carries_datagrams_by_its_type_and_not_by_its_name() {
    let upstream = UpstreamRef("office".into());
    let settings =
        NodeSettings { default: NodeDefault::Allow, upstream: upstream.clone(), resolvers: Vec::new() };
    let policy =
        Arc::new(PolicySet::compile(&Policies::default(), settings).for_workload(&Workload::default()));
    let mut engine = engine(policy.clone(), Limits::default());
    assert_eq!(send(&mut engine, at(NOW), 40_000, host(7)), None);
    assert_eq!(engine.records[0].close, CloseReason::UpstreamUnsupported);

    engine.stack.set_direct(Arc::new(HashSet::from([upstream])));
    assert!(send(&mut engine, at(NOW), 40_000, host(7)).is_some());
    // The document's type changed: what it carried ends.
    engine.stack.set_direct(Arc::default());
    engine.stack.set_policy(&mut Cx { now: at(NOW), pool: &mut engine.pool }, policy);
    engine.settle(at(NOW));
    assert_eq!(engine.records.last().unwrap().close, CloseReason::PolicyChanged);
}
