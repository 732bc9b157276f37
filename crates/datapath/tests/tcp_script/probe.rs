//! The tail loss probe (RFC 8985 7).

use crate::common::pattern;
use crate::loss::{at, sack};
use crate::rack::{sending_far, with_sack};
use crate::script::{Script, ms, secs};
use crate::segment::{ACK, FIN, ack, syn};

const RTT: u64 = 40;

/// How much goes of a lot.
fn window(s: &mut Script, from: u32) -> usize {
    s.upstream_sends(&pattern(6, 50_000));
    s.octets(at(from)).len()
}

#[test]
fn two_round_trips_of_silence_bring_the_last_segment_again() {
    let mut s = sending_far(with_sack(), 5);
    assert_eq!(s.wait(secs(1)), ms(2 * RTT + 2));
    s.expect(ACK).seq(at(4)).len_is(1_000);
    // Then the retransmission timer, from the probe on.
    assert!(s.wait(secs(1)) >= ms(200));
    s.expect(ACK).seq(at(0));
}

#[test]
fn the_report_of_a_probe_shows_the_tail_that_was_lost() {
    let mut s = sending_far(with_sack(), 5);
    s.after(ms(RTT));
    s.pod(ack(1, at(2)));
    s.wait(secs(1));
    s.expect(ACK).seq(at(4));
    s.after(ms(RTT));
    let report = sack(&s, 2, &[(4, 5)]);
    s.pod(report);
    s.expect(ACK).seq(at(2)).len_is(1_000);
    s.pod(ack(1, at(3)));
    s.expect(ACK).seq(at(3)).len_is(1_000);
    s.pod(ack(1, at(5)));
    s.after(secs(10));
    s.quiet();
}

#[test]
fn a_short_segment_at_the_end_is_the_probe() {
    let mut s = sending_far(with_sack(), 2);
    s.upstream_sends(b"end");
    s.expect(ACK).seq(at(2));
    s.wait(secs(1));
    s.expect(ACK).seq(at(2)).payload(b"end");
}

#[test]
fn a_fin_is_probed_for() {
    let mut s = sending_far(with_sack(), 2);
    s.upstream_closes();
    s.expect(FIN | ACK).seq(at(2));
    assert_eq!(s.wait(secs(1)), ms(2 * RTT + 2));
    s.expect(FIN | ACK).seq(at(2)).len_is(0);
}

#[test]
fn one_segment_alone_has_the_time_of_a_delayed_acknowledgment() {
    let mut s = sending_far(with_sack(), 1);
    let first = s.wait(secs(1));
    assert_eq!(first, ms(RTT + 200), "the retransmission timer is sooner, and the probe takes its place");
    s.expect(ACK).seq(at(0));
    // No back-off: that was no time-out.
    assert_eq!(s.wait(secs(1)), first);
    s.expect(ACK).seq(at(0));
    assert_eq!(s.wait(secs(1)), first * 2);
}

#[test]
fn an_answer_puts_the_probe_off() {
    let mut s = sending_far(with_sack(), 5);
    for acked in 1..5 {
        s.after(ms(2 * RTT));
        s.quiet();
        s.pod(ack(1, at(acked)));
    }
}

#[test]
fn without_sack_there_is_no_probe() {
    let mut s = sending_far(syn().mss(1_000), 5);
    assert!(s.wait(secs(1)) >= ms(200));
    s.expect(ACK).seq(at(0));
}

#[test]
fn a_loss_that_the_probe_repaired_is_one() {
    let mut s = sending_far(with_sack(), 20);
    s.after(ms(RTT));
    s.wait(secs(1));
    s.expect(ACK).seq(at(19));
    s.after(ms(RTT));
    s.pod(ack(1, at(20)));
    s.upstream_sends(b"x");
    s.all();
    s.after(ms(RTT));
    s.pod(ack(1, at(20) + 1));
    s.upstream_sends(&pattern(6, 50_000));
    assert_eq!(s.octets(at(20) + 1).len(), 10_000);
}

#[test]
fn a_probe_that_was_superfluous_is_none() {
    // Told by a duplicate report, or by a second acknowledgment where there is none.
    for reported in [false, true] {
        let mut s = sending_far(with_sack(), 20);
        s.wait(secs(1));
        s.expect(ACK).seq(at(19));
        s.pod(ack(1, at(20)));
        let second = if reported { sack(&s, 20, &[(19, 20)]) } else { ack(1, at(20)) };
        s.pod(second);
        s.upstream_sends(&[1; 1_000]);
        s.all();
        s.pod(ack(1, at(21)));
        assert_eq!(window(&mut s, 21), 50_000, "reported {reported}");
    }
}
