//! The congestion window after a loss (RFC 5681), and what counts as one (RFC 6675).

use crate::loss::{at, sack, sending, time_out};
use crate::script::{Script, ms, secs};
use crate::segment::{ACK, ack};

/// Acknowledges everything before `segment`; returns how many segments that let go.
fn acked(s: &mut Script, segment: u32) -> usize {
    s.pod(ack(1, at(segment)));
    s.all().iter().filter(|seen| !seen.payload.is_empty()).count()
}

/// An ACK of nothing new that reports the segments from `start` to `end`.
fn reports(s: &mut Script, start: u32, end: u32) {
    reports_behind(s, 0, start, end);
}

fn reports_behind(s: &mut Script, acked: u32, start: u32, end: u32) {
    let report = sack(s, acked, &[(start, end)]);
    s.pod(report);
}

#[test]
fn after_a_timeout_the_window_is_one_segment_and_doubles() {
    let mut s = sending(20);
    time_out(&mut s, 19);
    s.expect(ACK).seq(1).len_is(1_000);
    s.quiet();
    assert_eq!(acked(&mut s, 1), 2);
    assert_eq!(acked(&mut s, 3), 4);
    assert_eq!(acked(&mut s, 7), 8);
}

#[test]
fn beyond_half_of_what_was_under_way_it_grows_by_a_segment_each_round_trip() {
    let mut s = sending(20);
    for _ in 0..3 {
        s.pod(ack(1, 1));
    }
    s.expect(ACK).seq(1);
    s.all();
    // Repaired: the window is the half.
    assert_eq!(acked(&mut s, 20), 0);
    s.upstream_sends(&vec![1; 100_000]);
    assert_eq!(s.octets(at(20)).len(), 10_000);
    assert_eq!(acked(&mut s, 30), 11);
    assert_eq!(acked(&mut s, 41), 12);
    assert_eq!(acked(&mut s, 53), 13);
}

#[test]
fn the_half_is_never_below_two_segments() {
    let mut s = sending(1);
    time_out(&mut s, 0);
    s.expect(ACK).seq(1);
    s.pod(ack(1, at(1)));
    s.upstream_sends(&vec![1; 50_000]);
    assert_eq!(s.octets(at(1)).len(), 2_000);
    assert_eq!(acked(&mut s, 3), 3, "one more: slow start would have given four");
}

#[test]
fn reports_of_more_than_two_segments_are_a_loss_and_those_of_two_are_not() {
    let mut s = sending(10);
    reports(&mut s, 1, 3);
    s.quiet();
    reports(&mut s, 1, 4);
    s.expect(ACK).seq(at(0)).len_is(1_000);
    s.quiet();
}

#[test]
fn a_hole_is_sent_again_once_in_a_recovery() {
    let mut s = sending(20);
    s.after(ms(1));
    reports(&mut s, 1, 6);
    s.expect(ACK).seq(at(0));
    for end in 7..20 {
        reports(&mut s, 1, end);
        s.quiet();
    }
    // The same again after a partial acknowledgment: the next hole, once.
    s.pod(ack(1, at(19)));
    s.expect(ACK).seq(at(19)).len_is(1_000);
    s.quiet();
}

#[test]
fn what_was_reported_is_spared_by_a_timeout_too() {
    let mut s = sending(5);
    reports(&mut s, 1, 4);
    s.expect(ACK).seq(at(0));
    s.quiet();
    s.wait(secs(2));
    s.expect(ACK).seq(at(0));
    // Only the last one is missing.
    assert_eq!(acked(&mut s, 4), 1);
    s.quiet();
}

#[test]
fn a_promise_that_is_broken_makes_all_reports_void() {
    let mut s = sending(5);
    reports(&mut s, 1, 5);
    s.expect(ACK).seq(at(0));
    // RFC 2018 8: the pod has dropped what it had reported. It gets a moment to say otherwise, then everything.
    assert_eq!(acked(&mut s, 1), 0);
    assert_eq!(s.wait(secs(1)), ms(10));
    s.expect(ACK).seq(at(1)).len_is(1_000);
    assert_eq!(acked(&mut s, 2), 2);
    assert_eq!(acked(&mut s, 5), 0);
    s.after(secs(10));
    s.quiet();
}

#[test]
fn a_long_hole_goes_as_the_path_drains() {
    let mut s = sending(40);
    // Of 40 under way, 3 are there and the 20 before them lost: 17, and 20 may be.
    reports(&mut s, 20, 23);
    let starts = |s: &mut Script| s.all().iter().map(|seen| seen.seq).collect::<Vec<_>>();
    assert_eq!(starts(&mut s), [at(0), at(1), at(2)]);
    reports(&mut s, 20, 24);
    assert_eq!(starts(&mut s), [at(3)]);
    reports(&mut s, 20, 26);
    assert_eq!(starts(&mut s), [at(4), at(5)]);
}

#[test]
fn what_is_reported_after_a_timeout_is_spared() {
    let mut s = sending(8);
    time_out(&mut s, 7);
    s.expect(ACK).seq(at(0));
    assert_eq!(acked(&mut s, 1), 2);
    reports_behind(&mut s, 3, 5, 6);
    let starts: Vec<_> = s.all().iter().map(|seen| seen.seq).collect();
    assert_eq!(starts, [at(3), at(4), at(6), at(7)]);
}

/// A connection whose window is 50 segments, and nothing under way.
fn fifty() -> Script {
    let mut s = sending(100);
    s.after(ms(1));
    reports(&mut s, 1, 5);
    s.pod(ack(1, at(100)));
    s.all();
    s
}

#[test]
fn after_a_pause_the_window_is_ten_segments() {
    let mut s = fifty();
    s.after(secs(60));
    s.upstream_sends(&vec![1; 100_000]);
    assert_eq!(s.octets(at(100)).len(), 10_000);
    // Up to three quarters of what it was it doubles.
    assert_eq!(acked(&mut s, 110), 20);
    assert_eq!(acked(&mut s, 130), 40);
    assert_eq!(acked(&mut s, 170), 30, "all there is");
}

#[test]
fn a_short_pause_halves_the_window_and_none_leaves_it() {
    let mut s = fifty();
    s.after(ms(150));
    s.upstream_sends(&vec![1; 100_000]);
    assert_eq!(s.octets(at(100)).len(), 50_000);
    let mut s = fifty();
    s.after(ms(300));
    s.upstream_sends(&vec![1; 100_000]);
    assert_eq!(s.octets(at(100)).len(), 25_000);
}
