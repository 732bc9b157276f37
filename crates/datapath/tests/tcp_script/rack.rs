//! Losses that time tells of (RFC 8985), and new octets while they are repaired (RFC 6675, RFC 3042).

use crate::common::pattern;
use crate::loss::{at, sack};
use crate::script::{Script, ms, secs};
use crate::segment::{ACK, SYN, Seg, ack, syn};

const MSS: u16 = 1_000;

/// The round trip of these scripts.
const RTT: u64 = 40;

/// Connected over a path of [`RTT`] milliseconds, with so many segments under way.
pub fn sending_far(syn: Seg, segments: u32) -> Script {
    let mut s = Script::new();
    let timestamps = syn.options.windows(2).any(|option| option == [8, 10]);
    s.pod(syn);
    s.expect(SYN | ACK);
    s.after(ms(RTT));
    s.pod(if timestamps { ack(1, 1).ts(2, 0) } else { ack(1, 1) });
    s.upstream_sends(&pattern(4, segments as usize * usize::from(MSS)));
    assert_eq!(s.octets(1).len() as u32, segments * u32::from(MSS));
    s
}

pub fn with_sack() -> Seg {
    syn().mss(MSS).sack_ok().wscale(7)
}

fn reports(s: &mut Script, acked: u32, blocks: &[(u32, u32)]) {
    let report = sack(s, acked, blocks);
    s.pod(report);
}

fn starts(s: &mut Script) -> Vec<u32> {
    s.all().iter().filter(|seen| !seen.payload.is_empty()).map(|seen| seen.seq).collect()
}

#[test]
fn two_reports_are_a_loss_when_the_window_for_reordering_is_over() {
    let mut s = sending_far(with_sack(), 10);
    s.after(ms(RTT));
    reports(&mut s, 0, &[(1, 3)]);
    s.quiet();
    // A quarter of the round trip, and what a timer needs.
    assert_eq!(s.wait(secs(1)), ms(RTT / 4 + 2));
    assert_eq!(starts(&mut s), [at(0)]);
}

#[test]
fn a_segment_that_was_only_late_is_not_sent_again() {
    let mut s = sending_far(with_sack(), 3);
    s.after(ms(RTT));
    reports(&mut s, 0, &[(1, 3)]);
    s.after(ms(RTT / 4));
    s.pod(ack(1, at(3)));
    s.after(secs(10));
    s.quiet();
    assert_eq!(s.counters().tcp_retransmits, 0);
}

#[test]
fn once_reordering_was_seen_even_many_reports_have_to_wait() {
    let mut s = sending_far(with_sack(), 20);
    s.after(ms(RTT));
    reports(&mut s, 0, &[(1, 2)]);
    s.pod(ack(1, at(2)));
    reports(&mut s, 2, &[(3, 10)]);
    s.quiet();
    assert_eq!(s.wait(secs(1)), ms(RTT / 4 + 2));
    assert_eq!(starts(&mut s), [at(2)]);
}

#[test]
fn duplicates_make_the_window_for_reordering_larger() {
    let mut s = sending_far(with_sack(), 20);
    s.after(ms(RTT));
    reports(&mut s, 0, &[(1, 2)]);
    s.pod(ack(1, at(2)));
    // The pod has segment 0 twice.
    reports(&mut s, 2, &[(0, 1)]);
    reports(&mut s, 2, &[(3, 10)]);
    assert_eq!(s.wait(secs(1)), ms(2 * RTT / 4 + 2));
    assert_eq!(starts(&mut s), [at(2)]);
}

#[test]
fn a_repeated_segment_that_is_lost_comes_again() {
    let mut s = sending_far(with_sack(), 10);
    s.after(ms(RTT));
    reports(&mut s, 0, &[(1, 10)]);
    assert_eq!(starts(&mut s), [at(0)]);
    s.after(ms(1));
    s.upstream_sends(&pattern(5, 3_000));
    assert_eq!(starts(&mut s), [at(10), at(11), at(12)]);
    s.after(ms(RTT - 1));
    s.quiet();
    // What went a millisecond later has arrived, and this has not.
    s.after(ms(1));
    reports(&mut s, 0, &[(1, 11)]);
    assert_eq!(starts(&mut s), [at(0)]);
    s.pod(ack(1, at(13)));
    s.after(secs(10));
    s.quiet();
}

#[test]
fn the_end_of_what_was_lost_is_found_by_the_repair() {
    // Segments 1 and 9, the last, are lost; nothing behind the latter could report it.
    let mut s = sending_far(with_sack(), 10);
    s.after(ms(RTT));
    s.pod(ack(1, at(1)));
    reports(&mut s, 1, &[(2, 9)]);
    assert_eq!(starts(&mut s), [at(1)]);
    s.after(ms(RTT));
    s.pod(ack(1, at(9)));
    assert_eq!(starts(&mut s), [at(9)]);
}

#[test]
fn new_octets_go_while_a_loss_is_repaired() {
    let mut s = sending_far(with_sack(), 20);
    s.after(ms(RTT));
    reports(&mut s, 0, &[(1, 4)]);
    assert_eq!(starts(&mut s), [at(0)]);
    s.upstream_sends(&pattern(5, 100_000));
    // The half of 20 may be under way; 16 are, and each report is of one that has left.
    reports(&mut s, 0, &[(1, 10)]);
    s.quiet();
    reports(&mut s, 0, &[(1, 16)]);
    assert_eq!(starts(&mut s).first(), Some(&at(20)));
}

#[test]
fn the_first_two_duplicates_let_new_segments_go() {
    for first in [with_sack(), syn().mss(MSS)] {
        let reported = first.options.len() > 4;
        let mut s = cut_to_ten(first);
        s.upstream_sends(&pattern(5, 100_000));
        s.quiet();
        for number in 1..3u32 {
            if reported {
                reports(&mut s, 20, &[(21, 21 + number)]);
            } else {
                s.pod(ack(1, at(20)));
            }
            assert_eq!(starts(&mut s), [at(29 + number)], "{reported}");
        }
    }
}

#[test]
fn without_sack_each_further_duplicate_lets_one_go() {
    let mut s = cut_to_ten(syn().mss(MSS));
    s.upstream_sends(&pattern(5, 100_000));
    for _ in 0..3 {
        s.pod(ack(1, at(20)));
    }
    assert_eq!(starts(&mut s), [at(30), at(31), at(20)]);
    // Of 12 sent the first is lost, and went again; six may be under way.
    let mut let_go = Vec::new();
    for _ in 0..8 {
        s.pod(ack(1, at(20)));
        let_go.push(starts(&mut s).len());
    }
    assert_eq!(let_go, [0, 0, 0, 1, 1, 1, 1, 1]);
}

/// A connection whose congestion window is ten segments, all under way from segment 20 on.
fn cut_to_ten(first: Seg) -> Script {
    let mut s = sending_far(first, 20);
    for _ in 0..3 {
        s.pod(ack(1, 1));
    }
    s.all();
    s.pod(ack(1, at(20)));
    s.upstream_sends(&pattern(5, 10_000));
    assert_eq!(s.octets(at(20)).len(), 10_000);
    s
}

#[test]
fn a_loss_that_was_none_is_undone() {
    let mut s = sending_far(with_sack().ts(1, 0), 20);
    let clock = s.now.total_millis() as u32;
    s.after(ms(RTT));
    let report = sack(&s, 0, &[(1, 8)]).ts(3, 0);
    s.pod(report);
    let again = s.expect(ACK);
    again.seq(at(0));
    // The echo is that of the first transmission, a round trip earlier.
    let echo = again.ts.expect("a timestamp").0 - (s.now.total_millis() as u32 - clock);
    s.pod(ack(1, at(20)).ts(4, echo));
    s.upstream_sends(&pattern(6, 50_000));
    assert_eq!(s.octets(at(20)).len(), 50_000, "the window is what it was");
}

#[test]
fn a_loss_that_was_one_is_not_undone() {
    let mut s = sending_far(with_sack().ts(1, 0), 20);
    s.after(ms(RTT));
    let report = sack(&s, 0, &[(1, 8)]).ts(3, 0);
    s.pod(report);
    let echo = s.expect(ACK).ts.expect("a timestamp").0;
    s.after(ms(RTT));
    s.pod(ack(1, at(20)).ts(4, echo));
    s.upstream_sends(&pattern(6, 50_000));
    assert_eq!(s.octets(at(20)).len(), 10_000);
}

#[test]
fn a_timeout_spares_what_was_sent_a_moment_ago() {
    let mut s = sending_far(with_sack(), 3);
    s.after(ms(RTT));
    s.pod(ack(1, at(3)));
    s.upstream_sends(&pattern(5, 3_000));
    assert_eq!(starts(&mut s), [at(3), at(4), at(5)]);
    s.wait(secs(1));
    assert_eq!(starts(&mut s), [at(5)], "the probe");
    let due = s.engine.stack.poll_at().expect("a timer") - s.now;
    s.after(due - ms(RTT / 2));
    s.upstream_sends(b"late");
    assert_eq!(starts(&mut s), [at(6)]);
    // That is half of a round trip old when the timer fires.
    s.after(ms(RTT / 2));
    assert_eq!(starts(&mut s), [at(3)]);
    s.pod(ack(1, at(6)));
    s.quiet();
}
