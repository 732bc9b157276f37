//! Bounds and their counters; what a policy change ends.

use tunproxy_datapath::{CloseReason, Cx, DropReason, Limits};
use tunproxy_policy::NodeDefault;
use tunproxy_policy::model::Policies;

use crate::common::{Dial, allow_all, config, policy};
use crate::script::{Script, secs};
use crate::segment::{ACK, FIN, RST, SYN, ack, data, fin, rst, syn};

fn limited(change: impl FnOnce(&mut Limits)) -> Script {
    let mut config = config(allow_all());
    change(&mut config.limits);
    Script::with(config)
}

#[test]
fn pending_connects_are_bounded_and_a_free_place_is_used() {
    let mut s = limited(|limits| limits.pending = 5);
    s.dial(Dial::Never);
    for port in 0..20 {
        s.reconnect_from(10_000 + port, 1);
        s.pod(syn());
    }
    s.quiet();
    assert_eq!((s.flows(), s.dropped(DropReason::PendingLimit)), (5, 15));
    s.reconnect_from(10_000, 1);
    s.pod(rst(1));
    s.reconnect_from(30_000, 1);
    s.pod(syn());
    assert_eq!((s.flows(), s.dropped(DropReason::PendingLimit)), (5, 15));
}

#[test]
fn half_open_flows_are_bounded_and_time_frees_them() {
    let mut s = limited(|limits| limits.half_open = 5);
    for port in 0..20 {
        s.reconnect_from(10_000 + port, 1);
        s.pod(syn());
    }
    assert_eq!((s.flows(), s.dropped(DropReason::HalfOpenLimit)), (5, 15));
    s.after(secs(70));
    s.all();
    assert_eq!(s.flows(), 0);
    s.reconnect_from(40_000, 1);
    s.connect(syn());
    assert_eq!(s.flows(), 1);
}

#[test]
fn an_established_flow_frees_its_half_open_place() {
    let mut s = limited(|limits| limits.half_open = 1);
    for port in 0..10 {
        s.reconnect_from(10_000 + port, 1);
        s.connect(syn());
    }
    assert_eq!((s.flows(), s.dropped(DropReason::HalfOpenLimit)), (10, 0));
}

#[test]
fn flows_are_bounded_and_the_pod_is_told() {
    let mut s = limited(|limits| limits.flows = 3);
    for port in 0..3 {
        s.reconnect_from(10_000 + port, 1);
        s.connect(syn());
    }
    s.reconnect_from(20_000, 1);
    s.pod(syn());
    s.expect(RST | ACK).seq(0).ack(1);
    assert_eq!((s.flows(), s.dropped(DropReason::FlowLimit)), (3, 1));
}

#[test]
fn every_way_to_end_gives_the_place_back() {
    let mut s = limited(|limits| {
        limits.pending = 1;
        limits.half_open = 1;
        limits.flows = 1;
    });
    let mut port = 10_000;
    let mut next = |s: &mut Script| {
        port += 1;
        s.dial(Dial::Connect);
        s.reconnect_from(port, 1);
    };
    for _ in 0..3 {
        next(&mut s);
        s.dial(Dial::Fail(tunproxy_datapath::DialFailure::Refused));
        s.pod(syn());
        s.expect(RST | ACK);
        next(&mut s);
        s.dial(Dial::Never);
        s.pod(syn());
        s.pod(rst(1));
        next(&mut s);
        s.pod(syn());
        s.expect(SYN | ACK);
        s.pod(rst(1));
        next(&mut s);
        s.pod(syn());
        s.expect(SYN | ACK);
        s.upstream_resets();
        s.expect(RST | ACK);
        next(&mut s);
        s.connect(syn());
        s.close(true, 1, 1);
        next(&mut s);
        s.connect(syn());
        s.pod(rst(1));
        s.gone();
    }
}

#[test]
fn a_new_policy_resets_what_it_no_longer_allows() {
    let mut s = Script::connected(syn());
    s.pod(data(1, 1, b"abc"));
    s.expect(ACK);
    s.upstream_sends(&[1; 1_000]);
    s.all();
    let cx = &mut Cx { now: s.now, pool: &mut s.engine.pool };
    s.engine.stack.set_policy(cx, policy(&Policies::default(), NodeDefault::Deny));
    s.settle();
    s.expect(RST | ACK).seq(1_001).ack(4);
    assert_eq!(s.record().close, CloseReason::PolicyChanged);
    assert_eq!(s.engine.upstreams.values().next().and_then(|upstream| upstream.closed), Some(true));
    s.gone();
}

#[test]
fn a_new_policy_ends_pending_and_half_open_flows_too() {
    let mut s = Script::new();
    s.dial(Dial::Never);
    s.pod(syn());
    let cx = &mut Cx { now: s.now, pool: &mut s.engine.pool };
    s.engine.stack.set_policy(cx, policy(&Policies::default(), NodeDefault::Deny));
    s.settle();
    s.expect(RST | ACK).seq(0).ack(1);
    s.gone();
    let cx = &mut Cx { now: s.now, pool: &mut s.engine.pool };
    s.engine.stack.set_policy(cx, allow_all());
    s.dial(Dial::Connect);
    s.pod(syn());
    s.expect(SYN | ACK);
    let cx = &mut Cx { now: s.now, pool: &mut s.engine.pool };
    s.engine.stack.set_policy(cx, policy(&Policies::default(), NodeDefault::Deny));
    s.settle();
    s.expect(RST | ACK).seq(1).ack(1);
    s.gone();
}

#[test]
fn a_new_policy_that_still_allows_disturbs_nobody() {
    let mut s = Script::connected(syn());
    let cx = &mut Cx { now: s.now, pool: &mut s.engine.pool };
    s.engine.stack.set_policy(cx, allow_all());
    s.settle();
    s.quiet();
    s.pod(data(1, 1, b"abc"));
    s.expect(ACK).ack(4);
}

#[test]
fn thousands_of_flows_that_end_at_once_are_all_told() {
    let mut s = limited(|limits| {
        limits.half_open = 4_000;
        limits.errors_per_second = 1;
    });
    for port in 0..3_000 {
        s.reconnect_from(10_000 + port, 1);
        s.connect(syn());
    }
    let cx = &mut Cx { now: s.now, pool: &mut s.engine.pool };
    s.engine.stack.set_policy(cx, policy(&Policies::default(), NodeDefault::Deny));
    s.settle();
    assert_eq!(s.all().iter().filter(|seen| seen.has(RST)).count(), 3_000);
    s.gone();
}

#[test]
fn flows_are_judged_a_few_at_a_time_and_new_ones_at_once() {
    let mut s = Script::connected(syn());
    for port in 1..100 {
        s.reconnect_from(10_000 + port, 1);
        s.connect(syn());
    }
    s.all();
    let judge = |s: &mut Script| {
        let more = s.engine.stack.judge(&mut Cx { now: s.now, pool: &mut s.engine.pool }, 10);
        s.settle();
        (more, s.all().len())
    };
    assert_eq!(judge(&mut s), (false, 0), "no policy has changed");
    let cx = &mut Cx { now: s.now, pool: &mut s.engine.pool };
    s.engine.stack.begin_policy(cx, policy(&Policies::default(), NodeDefault::Deny));
    assert_eq!(judge(&mut s), (true, 10));
    s.reconnect_from(20_000, 1);
    s.pod(syn());
    s.expect(RST | ACK).seq(0).ack(1);
    // What is changed meanwhile is asked of all that are left, from the first.
    let cx = &mut Cx { now: s.now, pool: &mut s.engine.pool };
    s.engine.stack.begin_policy(cx, policy(&Policies::default(), NodeDefault::Deny));
    assert_eq!(judge(&mut s), (true, 0));
    let parts = std::iter::from_fn(|| Some(judge(&mut s)).filter(|&(more, _)| more));
    let told: Vec<usize> = parts.map(|(_, resets)| resets).collect();
    assert!(told.iter().all(|&resets| resets <= 10), "{told:?}");
    assert_eq!(told.iter().sum::<usize>(), 90, "{told:?}");
    s.gone();
}

#[test]
fn the_end_of_the_pod_resets_everything() {
    let mut s = Script::connected(syn());
    s.reconnect_from(50_000, 7);
    s.dial(Dial::Never);
    s.pod(syn());
    let cx = &mut Cx { now: s.now, pool: &mut s.engine.pool };
    s.engine.stack.close(cx);
    s.settle();
    assert_eq!(s.all().len(), 2);
    assert_eq!(s.record().close, CloseReason::Detached);
    s.gone();
}

#[test]
fn records_count_octets_and_packets() {
    let mut s = Script::connected(syn());
    s.pod(data(1, 1, &[1; 700]));
    s.expect(ACK);
    s.upstream_sends(&[2; 300]);
    s.expect(ACK);
    s.pod(ack(701, 301));
    s.pod(fin(701, 301));
    s.expect(ACK);
    s.upstream_closes();
    s.expect(FIN | ACK);
    s.pod(ack(702, 302));
    let record = s.record();
    assert_eq!((record.bytes_sent, record.bytes_received), (700, 300));
    assert_eq!((record.packets_sent, record.packets_received), (6, 1));
    assert_eq!(record.connect_micros, Some(0));
    s.gone();
}
