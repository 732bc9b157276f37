//! Keepalives, and timers that must not pile up.

use tunproxy_datapath::{CloseReason, Duration, Keepalive, Limits};

use crate::common::{allow_all, config};
use crate::script::{Script, ms, secs};
use crate::segment::{ACK, RST, ack, data, syn};

/// Connected under other limits.
pub fn limited(limits: Limits) -> Script {
    let mut s = Script::with(tunproxy_datapath::StackConfig { limits, ..config(allow_all()) });
    s.connect(syn().mss(1_000));
    s
}

fn kept_alive(idle: u32, interval: u32, probes: u8) -> Limits {
    Limits { keepalive: Some(Keepalive { idle, interval, probes }), ..Limits::default() }
}

fn patient_for(limit: Duration) -> Limits {
    Limits { user_timeout: Some(limit), ..Limits::default() }
}

#[test]
fn times_and_number_of_keepalives_are_settings() {
    let mut s = limited(kept_alive(30, 5, 3));
    assert_eq!(s.wait(secs(100)), secs(30));
    s.expect(ACK).seq(0).len_is(0);
    s.pod(ack(1, 1));
    assert_eq!(s.wait(secs(100)), secs(30));
    s.expect(ACK).seq(0);
    for _ in 0..2 {
        assert_eq!(s.wait(secs(100)), secs(5));
        s.expect(ACK).seq(0);
    }
    assert_eq!(s.wait(secs(100)), secs(5));
    s.expect(RST | ACK);
    assert_eq!(s.record().close, CloseReason::PodSilent);
    s.gone();
}

#[test]
fn more_probes_than_a_number_of_eight_bits_has_go_out_one_by_one() {
    let limits = Limits { user_timeout: Some(secs(400)), ..kept_alive(30, 1, 9) };
    let mut s = limited(limits);
    s.after(secs(399));
    assert_eq!(s.all().len(), 370);
    s.after(secs(1));
    s.expect(RST | ACK);
    assert_eq!(s.record().close, CloseReason::PodSilent);
    s.gone();
    // Of a window that stays closed: one a minute.
    let mut s = limited(patient_for(secs(6 * 3_600)));
    s.pod(ack(1, 1).win(0));
    s.upstream_sends(b"waits");
    s.after(secs(6 * 3_600));
    assert!(s.all().len() > 300);
    s.gone();
}

#[test]
fn without_keepalives_silence_means_nothing() {
    let mut s = limited(Limits { keepalive: None, ..Limits::default() });
    s.after(secs(100 * 24 * 3_600));
    s.quiet();
    assert_eq!(s.engine.stack.poll_at(), None);
    s.upstream_sends(b"still there");
    s.expect(ACK).payload(b"still there");
    // What is under way has its timer all the same.
    s.after(secs(3_000));
    assert_eq!(s.record().close, CloseReason::PodSilent);
}

#[test]
fn no_keepalive_goes_while_octets_are_under_way() {
    let mut s = limited(kept_alive(1, 1, 200));
    s.upstream_sends(b"lost");
    s.expect(ACK).seq(1);
    s.after(secs(60));
    assert!(s.all().iter().all(|seen| seen.payload == b"lost"));
}

#[test]
fn the_user_timeout_ends_what_is_not_acknowledged() {
    let mut s = limited(patient_for(ms(2_500)));
    s.after(secs(60));
    s.upstream_sends(b"lost");
    s.expect(ACK);
    s.after(ms(2_499));
    assert_eq!(s.flows(), 1);
    assert!(s.all().len() >= 3);
    s.after(ms(1));
    s.expect(RST | ACK).seq(5);
    assert_eq!(s.record().close, CloseReason::PodSilent);
    s.gone();
}

#[test]
fn each_acknowledgment_puts_the_user_timeout_off() {
    let mut s = limited(patient_for(secs(2)));
    s.upstream_sends(&[1; 10]);
    for number in 0..10 {
        s.after(ms(1_900));
        s.pod(ack(1, 2 + number));
    }
    s.all();
    assert_eq!(s.flows(), 1);
    s.after(secs(100));
    s.quiet();
}

#[test]
fn the_user_timeout_may_be_longer_than_fifteen_timeouts() {
    let mut s = limited(patient_for(secs(7_000)));
    s.upstream_sends(b"lost");
    s.after(secs(6_999));
    assert_eq!(s.flows(), 1);
    s.after(secs(1));
    assert_eq!(s.flows(), 0);
}

#[test]
fn the_user_timeout_holds_for_a_closed_window_and_for_keepalives() {
    let mut s = limited(patient_for(secs(5)));
    s.pod(ack(1, 1).win(0));
    s.upstream_sends(b"waits");
    for _ in 0..100 {
        s.after(ms(100));
        if s.flows() == 0 {
            break;
        }
        if !s.all().is_empty() {
            s.pod(ack(1, 1).win(0));
        }
    }
    s.expect(RST | ACK);
    s.gone();
    let limits = Limits { user_timeout: Some(secs(12)), ..kept_alive(10, 1, 200) };
    let mut s = limited(limits);
    s.after(ms(11_999));
    assert_eq!(s.all().len(), 2);
    s.after(ms(1));
    s.expect(RST | ACK);
}

#[test]
fn where_both_ends_have_closed_eight_timeouts_are_enough() {
    let mut s = limited(Limits::default());
    s.upstream_sends(b"lost");
    s.pod(crate::segment::fin(1, 1));
    s.upstream_closes();
    s.all();
    let start = s.now;
    while s.flows() == 1 {
        s.after(secs(1));
    }
    let total = s.now - start;
    assert!(total >= secs(100) && total <= secs(105), "{total}");
}

#[test]
fn where_both_ends_have_closed_a_window_does_not_stay_closed_for_ever() {
    let mut s = limited(Limits::default());
    s.pod(ack(1, 1).win(0));
    s.upstream_sends(b"waits");
    s.pod(crate::segment::fin(1, 1).win(0));
    s.upstream_closes();
    s.all();
    let start = s.now;
    while s.flows() == 1 {
        s.after(secs(1));
        if !s.all().is_empty() {
            s.pod(ack(2, 1).win(0));
        }
    }
    let total = s.now - start;
    assert!(total >= secs(60) && total <= secs(300), "{total}");
    assert_eq!(s.engine.pool.held(), 0);
}

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
