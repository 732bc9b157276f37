//! Keepalives, and timers that must not pile up.

use tunproxy_datapath::CloseReason;

use crate::script::{Script, ms, secs};
use crate::segment::{ACK, RST, ack, data, syn};

#[test]
fn the_pods_keepalives_are_answered() {
    let mut s = Script::connected(syn());
    s.pod(data(1, 1, b"abc"));
    s.expect(ACK);
    for _ in 0..20 {
        s.after(secs(10));
        s.pod(ack(3, 1));
        s.expect(ACK).seq(1).ack(4).len_is(0);
    }
    // With one octet of garbage, as old stacks do.
    s.pod(data(3, 1, b"?"));
    s.expect(ACK).ack(4);
    s.upstream_got(b"abc");
}

#[test]
fn silence_is_asked_about_after_two_hours_and_not_before() {
    let mut s = Script::connected(syn());
    s.after(secs(7_199));
    s.quiet();
    s.after(secs(2));
    s.expect(ACK).seq(0).ack(1).len_is(0);
    s.pod(ack(1, 1));
    s.after(secs(7_199));
    s.quiet();
    s.after(secs(2));
    s.expect(ACK).seq(0);
}

#[test]
fn a_pod_that_never_answers_again_is_given_up_with_a_reset() {
    let mut s = Script::connected(syn());
    s.after(secs(7_200));
    s.expect(ACK);
    for _ in 0..8 {
        assert_eq!(s.wait(secs(100)), secs(75));
        s.expect(ACK).seq(0);
    }
    s.wait(secs(100));
    s.expect(RST | ACK).seq(1).ack(1);
    assert_eq!(s.record().close, CloseReason::PodSilent);
    s.gone();
}

#[test]
fn traffic_puts_the_keepalive_off() {
    let mut s = Script::connected(syn());
    for number in 0..10 {
        s.after(secs(7_000));
        s.quiet();
        s.pod(data(1 + number, 1, b"x"));
        s.expect(ACK);
    }
}

#[test]
fn a_half_closed_connection_is_kept_alive_too() {
    let mut s = Script::connected(syn());
    s.upstream_closes();
    s.all();
    s.pod(ack(1, 2));
    s.after(secs(7_201));
    s.expect(ACK).seq(1).ack(1);
}

#[test]
fn nothing_is_left_to_wait_for_when_all_flows_are_gone() {
    let mut s = Script::new();
    for port in 0..50 {
        s.reconnect_from(10_000 + port, 9);
        s.connect(syn());
        s.after(secs(3));
        s.upstream_sends(b"x");
        s.pod(ack(1, 2));
        s.all();
        s.close(false, 1, 2);
    }
    assert_eq!(s.engine.stack.poll_at(), None);
}

#[test]
fn a_busy_flow_has_one_timer() {
    // Each question and answer moves the deadline from hours to milliseconds and back; the invariants count entries.
    let mut s = Script::connected(syn());
    for number in 0..2_000 {
        s.upstream_sends(b"x");
        s.all();
        s.pod(ack(1, 2 + number));
        s.after(ms(1_500));
    }
    s.quiet();
}
