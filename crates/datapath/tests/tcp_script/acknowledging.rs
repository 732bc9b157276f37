//! When the pod's octets are acknowledged: at once, or with the answer.

use crate::script::{Script, ms, secs};
use crate::segment::{ACK, data, fin, syn};

const FULL: u32 = 1_000;

/// Connected, and one question was answered at once: `seq` and `ack` are what the pod goes on with.
fn interactive() -> (Script, u32, u32) {
    let mut s = Script::connected(syn().mss(FULL as u16).sack_ok());
    s.after(secs(1));
    s.pod(data(1, 1, b"first"));
    s.expect(ACK).ack(6).len_is(0);
    s.upstream_sends(b"answer");
    s.expect(ACK).seq(1).len_is(6);
    (s, 6, 7)
}

#[test]
fn an_answer_bears_the_acknowledgment_of_its_question() {
    let (mut s, mut seq, mut ack) = interactive();
    for _ in 0..5 {
        s.pod(data(seq, ack, b"more"));
        s.quiet();
        s.after(ms(39));
        s.quiet();
        s.upstream_sends(b"answer");
        seq += 4;
        s.expect(ACK).seq(ack).ack(seq).len_is(6);
        ack += 6;
        s.quiet();
    }
}

#[test]
fn a_question_without_an_answer_is_acknowledged_after_40_ms_and_the_next_at_once() {
    let (mut s, seq, ack) = interactive();
    s.pod(data(seq, ack, b"more"));
    assert_eq!(s.wait(secs(1)), ms(40));
    s.expect(ACK).ack(seq + 4).len_is(0);
    s.pod(data(seq + 4, ack, b"more"));
    s.expect(ACK).ack(seq + 8);
}

#[test]
fn an_answer_that_takes_longer_makes_no_conversation() {
    let mut s = Script::connected(syn().mss(FULL as u16));
    s.after(secs(1));
    let mut seq = 1;
    for number in 0..5 {
        s.pod(data(seq, 1 + number, b"slow"));
        seq += 4;
        s.expect(ACK).ack(seq).len_is(0);
        s.after(ms(41));
        s.upstream_sends(b"x");
        s.expect(ACK).seq(1 + number).len_is(1);
    }
}

#[test]
fn more_than_a_full_segment_is_acknowledged_at_once() {
    let (mut s, seq, ack) = interactive();
    s.pod(data(seq, ack, &[1; FULL as usize]));
    s.quiet();
    s.pod(data(seq + FULL, ack, b"x"));
    s.expect(ACK).ack(seq + FULL + 1);
    // What the kernel of the pod leaves to us to cut counts by its octets.
    s.pod(data(seq + FULL + 1, ack, &[1; 2 * FULL as usize]));
    s.expect(ACK).ack(seq + 3 * FULL + 1);
}

#[test]
fn small_segments_do_not_put_the_acknowledgment_off() {
    let (mut s, seq, ack) = interactive();
    for number in 0..4 {
        s.pod(data(seq + number, ack, b"x"));
        s.quiet();
        s.after(ms(9));
    }
    assert_eq!(s.wait(secs(1)), ms(4));
    s.expect(ACK).ack(seq + 4);
}

#[test]
fn gaps_ends_and_repetitions_are_not_held_back() {
    let (mut s, seq, ack) = interactive();
    s.pod(data(seq + 10, ack, b"later"));
    s.expect(ACK).ack(seq);
    let (mut s, seq, ack) = interactive();
    s.pod(data(1, ack, b"first"));
    s.expect(ACK).ack(seq);
    let (mut s, seq, ack) = interactive();
    s.pod(fin(seq, ack));
    s.expect(ACK).ack(seq + 1);
    // An octet that was held back goes with the rest.
    let (mut s, seq, ack) = interactive();
    s.pod(data(seq, ack, b"x"));
    s.quiet();
    s.pod(data(seq + 10, ack, b"later"));
    s.expect(ACK).ack(seq + 1);
    s.after(ms(40));
    s.quiet();
}

#[test]
fn what_fills_a_gap_is_acknowledged_at_once_in_a_conversation_too() {
    let (mut s, seq, ack) = interactive();
    s.pod(data(seq + 1, ack, b"b"));
    s.expect(ACK).ack(seq);
    s.upstream_sends(b"x");
    s.expect(ACK).seq(ack);
    s.pod(data(seq, ack + 1, b"a"));
    s.expect(ACK).ack(seq + 2);
}

#[test]
fn a_window_that_is_nearly_full_is_not_held_back() {
    let (mut s, seq, ack) = interactive();
    s.upstream_stalls();
    let mut next = seq;
    // In steps that are each held back while there is room.
    loop {
        s.pod(data(next, ack, &[1; FULL as usize]));
        next += FULL;
        if s.all().iter().any(|seen| seen.ack == next && u32::from(seen.window) < 2 * FULL) {
            break;
        }
        s.upstream_sends(b"x");
        s.all();
        assert!(next < 200_000, "the window never closes");
    }
}
