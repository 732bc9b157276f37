//! An attacker who does not see the connection (RFC 5961), and segments that only look like it.

use tunproxy_datapath::{CloseReason, DropReason};

use crate::script::{Script, ms, secs};
use crate::segment::{ACK, PSH, RST, SYN, ack, data, rst, seg, syn};

#[test]
fn only_the_exact_reset_resets() {
    let mut s = Script::connected(syn());
    s.pod(data(1, 1, b"abc"));
    s.expect(ACK);
    s.pod(rst(4));
    assert_eq!(s.record().close, CloseReason::ResetByPod);
    assert_eq!(s.engine.upstreams.values().next().and_then(|upstream| upstream.closed), Some(true));
    s.gone();
}

#[test]
fn a_reset_elsewhere_in_the_window_is_challenged() {
    for seq in [2, 100, 60_000] {
        let mut s = Script::connected(syn());
        s.pod(rst(seq));
        s.expect(ACK).seq(1).ack(1).len_is(0);
        assert_eq!((s.flows(), s.counters().challenge_acks), (1, 1));
        // The real pod would answer with the exact number.
        s.pod(rst(1));
        s.gone();
    }
}

#[test]
fn a_reset_outside_the_window_is_dropped() {
    let mut s = Script::connected(syn());
    for seq in [0, 200_000, u32::MAX - 5, 0x8000_0000] {
        s.pod(rst(seq));
        s.pod(seg(RST | ACK, seq, 1));
    }
    s.quiet();
    assert_eq!(s.flows(), 1);
}

#[test]
fn a_syn_in_the_window_is_challenged() {
    let mut s = Script::connected(syn());
    s.pod(seg(SYN, 500, 0));
    s.expect(ACK).seq(1).ack(1);
    s.after(secs(1));
    s.pod(seg(SYN | ACK, 1, 1));
    s.expect(ACK).seq(1).ack(1);
    assert_eq!(s.flows(), 1);
}

#[test]
fn a_syn_outside_the_window_is_challenged_too() {
    for seq in [0, 0x4000_0000, 0x9000_0000] {
        let mut s = Script::connected(syn());
        s.pod(seg(SYN, seq, 0));
        s.expect(ACK).seq(1).ack(1);
        assert_eq!((s.flows(), s.connects().len()), (1, 1));
    }
}

#[test]
fn a_pod_that_restarted_gets_a_new_connection_through_the_challenge() {
    let mut s = Script::connected(syn());
    s.pod(data(1, 1, b"before"));
    s.expect(ACK);
    s.pod(seg(SYN, 9_000_000, 0));
    let challenge = s.expect(ACK);
    challenge.ack(7);
    s.pod(rst(challenge.ack));
    assert_eq!(s.flows(), 0);
    s.begin_anew(8_000_000);
    s.pod(syn());
    s.expect(SYN | ACK).ack(1);
}

#[test]
fn an_acknowledgment_of_what_was_never_sent_is_ignored() {
    let mut s = Script::connected(syn());
    s.upstream_sends(b"hello");
    s.expect(ACK);
    for (number, wrong) in [7, 1_000, 0x7fff_0000].into_iter().enumerate() {
        s.pod(data(1, wrong, b"evil"));
        if number == 0 {
            s.expect(ACK).ack(1).seq(6);
        }
    }
    s.upstream_got(b"");
    s.quiet();
    assert_eq!(s.dropped(DropReason::BadAck), 3);
    s.pod(ack(1, 6));
    s.after(secs(5));
    s.quiet();
}

#[test]
fn an_acknowledgment_too_old_is_ignored() {
    for wrong in [0, u32::MAX - 1_000, 0x8000_0001, 0xc000_0000] {
        let mut s = Script::connected(syn());
        s.pod(data(1, wrong, b"evil"));
        s.expect(ACK).ack(1);
        s.upstream_got(b"");
    }
}

#[test]
fn an_acknowledgment_a_little_old_brings_its_octets() {
    let mut s = Script::connected(syn());
    s.upstream_sends(&[1; 1_000]);
    s.all();
    s.pod(ack(1, 1_001));
    s.pod(data(1, 501, b"late"));
    s.expect(ACK).ack(5);
    s.upstream_got(b"late");
    s.pod(data(5, 1, b"later"));
    s.expect(ACK).ack(10);
    s.upstream_got(b"latelater");
}

#[test]
fn challenges_are_rationed() {
    let mut s = Script::connected(syn());
    for number in 0..200 {
        s.pod(rst(100 + number));
    }
    for number in 0..200 {
        s.pod(seg(SYN, 100 + number, 0));
    }
    assert_eq!(s.all().len(), 1);
    s.after(ms(501));
    s.pod(rst(100));
    s.pod(rst(101));
    assert_eq!(s.all().len(), 1);
    assert_eq!((s.flows(), s.counters().challenge_acks), (1, 2));
}

#[test]
fn empty_segments_outside_the_window_are_answered_rarely() {
    let mut s = Script::connected(syn());
    for _ in 0..100 {
        s.pod(ack(0, 1));
        s.pod(ack(5_000_000, 1));
    }
    assert_eq!(s.all().len(), 1);
    s.after(ms(501));
    s.pod(ack(0, 1));
    s.expect(ACK).seq(1).ack(1);
}

#[test]
fn octets_and_fins_without_ack_change_nothing() {
    let mut s = Script::connected(syn());
    for flags in [0, PSH, crate::segment::FIN, crate::segment::FIN | PSH] {
        s.pod(seg(flags, 1, 0).payload(b"evil"));
    }
    s.quiet();
    s.upstream_got(b"");
    assert!(!s.upstream().shut);
}

#[test]
fn a_christmas_tree_changes_nothing() {
    let mut s = Script::connected(syn());
    s.pod(seg(0xff, 100, 1).payload(b"evil"));
    s.pod(seg(0x29, 1, 0));
    s.all();
    s.upstream_got(b"");
    assert_eq!(s.flows(), 1);
}

#[test]
fn the_exact_reset_with_octets_and_any_acknowledgment_resets() {
    let mut s = Script::connected(syn());
    s.pod(seg(RST | ACK, 1, 0xdead_beef).payload(b"reason"));
    s.gone();
}

#[test]
fn a_reset_takes_octets_that_wait_along() {
    let mut s = Script::connected(syn());
    s.upstream_stalls();
    s.pod(data(1, 1, &[1; 1_000]));
    s.upstream_sends(&[2; 5_000]);
    s.all();
    assert!(s.engine.pool.held() > 0);
    s.pod(rst(1_001));
    s.gone();
}
