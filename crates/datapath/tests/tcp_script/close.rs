//! Every way to close, and stray segments on the way.

use tunproxy_datapath::CloseReason;

use crate::script::{Script, secs};
use crate::segment::{ACK, FIN, RST, ack, data, fin, rst, seg, syn};

#[test]
fn the_pod_closes_first() {
    let mut s = Script::connected(syn());
    s.close(false, 1, 1);
    let record = s.record();
    assert_eq!((record.close, record.bytes_sent, record.bytes_received), (CloseReason::Finished, 0, 0));
    assert_eq!(s.upstream().closed, Some(false));
}

#[test]
fn the_upstream_closes_first() {
    let mut s = Script::connected(syn());
    s.close(true, 1, 1);
    assert_eq!(s.record().close, CloseReason::Finished);
    assert_eq!(s.upstream().closed, Some(false));
    assert!(s.upstream().shut);
}

#[test]
fn the_pod_half_closes_and_still_receives() {
    let mut s = Script::connected(syn());
    s.pod(fin(1, 1).payload(b"question"));
    s.expect(ACK).ack(10);
    s.upstream_got(b"question");
    assert!(s.upstream().shut);
    s.after(secs(300));
    for number in 0..10 {
        s.upstream_sends(&[1; 1_000]);
        assert_eq!(s.octets(1 + number * 1_000).len(), 1_000);
        s.pod(ack(10, 1_001 + number * 1_000));
    }
    s.upstream_closes();
    s.expect(FIN | ACK).seq(10_001).ack(10);
    s.pod(ack(10, 10_002));
    s.gone();
}

#[test]
fn the_upstream_half_closes_and_still_receives() {
    let mut s = Script::connected(syn());
    s.upstream_sends(b"bye");
    s.upstream_closes();
    s.all();
    s.pod(ack(1, 5));
    s.after(secs(300));
    for number in 0..10u32 {
        s.pod(data(1 + number * 100, 5, &[7; 100]));
        s.expect(ACK).ack(101 + number * 100);
    }
    s.upstream_got(&[7; 1_000]);
    s.pod(fin(1_001, 5));
    s.expect(ACK).ack(1_002).seq(5);
    assert_eq!(s.record().close, CloseReason::Finished);
    s.gone();
}

#[test]
fn both_close_at_once() {
    let mut s = Script::connected(syn());
    s.upstream_closes();
    s.expect(FIN | ACK).seq(1).ack(1);
    // The pod's FIN crossed ours.
    s.pod(fin(1, 1));
    s.expect(ACK).seq(2).ack(2);
    assert_eq!(s.flows(), 1, "our FIN is not acknowledged yet");
    s.pod(ack(2, 2));
    s.expect(ACK).seq(2).ack(2);
    assert_eq!(s.record().close, CloseReason::Finished);
    s.gone();
    s.pod(fin(1, 2));
    s.expect(ACK).seq(2).ack(2);
}

#[test]
fn in_closing_a_lost_fin_comes_again() {
    let mut s = Script::connected(syn());
    s.upstream_closes();
    s.all();
    s.pod(fin(1, 1));
    s.all();
    s.wait(secs(5));
    s.expect(FIN | ACK).seq(1).ack(2);
    s.pod(fin(1, 1));
    s.expect(ACK).ack(2);
    s.pod(ack(2, 2));
    s.all();
    assert_eq!(s.flows(), 0);
}

#[test]
fn in_last_ack_a_lost_fin_comes_again() {
    let mut s = Script::connected(syn());
    s.pod(fin(1, 1));
    s.expect(ACK);
    s.upstream_closes();
    s.expect(FIN | ACK).seq(1);
    for _ in 0..3 {
        s.wait(secs(5));
        s.expect(FIN | ACK).seq(1).ack(2);
    }
    s.pod(ack(2, 2));
    s.gone();
}

#[test]
fn a_pod_that_vanishes_in_last_ack_is_forgotten() {
    let mut s = Script::connected(syn());
    s.pod(fin(1, 1));
    s.upstream_closes();
    s.all();
    s.after(secs(2_000));
    s.all();
    assert_eq!(s.record().close, CloseReason::PodSilent);
    assert_eq!(s.flows(), 0);
}

#[test]
fn our_fin_is_acknowledged_with_the_octets_that_follow() {
    let mut s = Script::connected(syn());
    s.upstream_closes();
    s.all();
    s.pod(data(1, 2, b"more"));
    s.expect(ACK).ack(5).seq(2);
    s.pod(fin(5, 2).payload(b"end"));
    s.expect(ACK).ack(9);
    s.upstream_got(b"moreend");
    s.gone();
}

#[test]
fn in_fin_wait_stray_segments_change_nothing() {
    let mut s = Script::connected(syn());
    s.upstream_closes();
    s.all();
    s.pod(ack(1, 1));
    s.pod(ack(0, 1));
    s.expect(ACK).seq(2).ack(1);
    s.after(secs(1));
    s.all();
    s.pod(rst(5_000));
    s.pod(seg(crate::segment::SYN, 77, 0));
    assert!(s.all().iter().all(|seen| seen.flags == ACK));
    assert_eq!(s.flows(), 1);
    s.pod(fin(1, 2));
    s.expect(ACK).ack(2);
    s.gone();
}

#[test]
fn in_close_wait_octets_of_the_pod_are_ignored() {
    let mut s = Script::connected(syn());
    s.pod(fin(1, 1));
    s.expect(ACK).ack(2);
    s.pod(data(2, 1, b"evil"));
    s.all();
    s.upstream_got(b"");
    s.upstream_sends(b"still");
    s.expect(ACK).seq(1).ack(2).payload(b"still");
}

#[test]
fn a_reset_ends_every_state() {
    type Way = fn(&mut Script) -> u32;
    let ways: [(&str, Way); 6] = [
        ("established", |_| 1),
        ("fin-wait-1", |s| {
            s.upstream_closes();
            1
        }),
        ("fin-wait-2", |s| {
            s.upstream_closes();
            s.pod(ack(1, 2));
            1
        }),
        ("close-wait", |s| {
            s.pod(fin(1, 1));
            2
        }),
        ("closing", |s| {
            s.upstream_closes();
            s.pod(fin(1, 1));
            2
        }),
        ("last-ack", |s| {
            s.pod(fin(1, 1));
            s.upstream_closes();
            2
        }),
    ];
    for (name, way) in ways {
        let mut s = Script::connected(syn());
        let seq = way(&mut s);
        s.all();
        s.pod(rst(seq));
        assert_eq!(s.flows(), 0, "{name}");
        s.gone();
    }
}

#[test]
fn an_upstream_reset_ends_every_state() {
    for half_closed in [false, true] {
        let mut s = Script::connected(syn());
        s.upstream_sends(b"abc");
        s.all();
        if half_closed {
            s.pod(fin(1, 4));
            s.all();
        }
        s.upstream_resets();
        let seen = s.expect(RST | ACK);
        seen.seq(4).ack(1 + u32::from(half_closed));
        assert_eq!(s.record().close, CloseReason::ResetByPeer);
        s.gone();
    }
}

#[test]
fn a_fin_from_the_pod_waits_for_the_octets_the_upstream_has_not_taken() {
    let mut s = Script::connected(syn());
    s.upstream_stalls();
    s.pod(fin(1, 1).payload(&[3; 5_000]));
    s.expect(ACK).ack(5_002);
    assert!(!s.upstream().shut);
    s.upstream_takes(4_999);
    assert!(!s.upstream().shut);
    s.upstream_reads();
    assert!(s.upstream().shut);
    s.upstream_got(&[3; 5_000]);
    s.all();
    s.upstream_closes();
    s.expect(FIN | ACK);
    s.pod(ack(5_002, 2));
    s.gone();
}

#[test]
fn a_connection_may_be_over_before_the_upstream_took_everything() {
    let mut s = Script::connected(syn());
    s.upstream_stalls();
    s.upstream_closes();
    s.all();
    s.pod(fin(1, 2).payload(b"the end"));
    s.expect(ACK).ack(9);
    assert_eq!(s.flows(), 1, "octets wait");
    s.after(secs(5));
    // The ends are free for another connection already; TIME-WAIT lets a newer SYN through.
    let flow = s.flow();
    s.begin_anew(9_000_000);
    s.pod(syn());
    s.expect(crate::segment::SYN | ACK);
    assert_eq!(s.flows(), 2);
    s.engine.upstreams.get_mut(&flow).expect("the first upstream").blocked = false;
    while s.engine.write_up(s.now, flow) {}
    s.settle();
    assert_eq!(s.engine.upstreams[&flow].received, b"the end");
    assert_eq!((s.flows(), s.engine.upstreams[&flow].closed), (1, Some(false)));
}

#[test]
fn what_the_upstream_never_takes_is_cut_in_the_end() {
    let mut s = Script::connected(syn());
    s.upstream_stalls();
    s.upstream_closes();
    s.all();
    s.pod(fin(1, 2).payload(b"the end"));
    s.all();
    s.after(secs(61));
    assert_eq!(s.upstream().closed, Some(true));
    s.gone();
}

#[test]
fn octets_acknowledged_with_the_fin_in_one_go() {
    let mut s = Script::connected(syn());
    s.upstream_sends(&[1; 3_000]);
    s.upstream_closes();
    s.all();
    s.pod(fin(1, 3_002));
    s.expect(ACK).seq(3_002).ack(2);
    s.gone();
}
