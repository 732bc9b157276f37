//! Windows, both ways: respected, closed, probed, opened.

use crate::common::pattern;
use crate::script::{Script, ms, secs};
use crate::segment::{ACK, FIN, ack, data, fin, syn};
use tunproxy_datapath::{CloseReason, Duration};

// --- the pod's window ---

#[test]
fn no_octet_goes_beyond_the_pods_window() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000), |ack| ack.win(2_500));
    let octets = pattern(1, 10_000);
    s.upstream_sends(&octets);
    assert!(s.octets(1) == octets[..2_500]);
    s.after(ms(100));
    s.quiet();
    s.pod(ack(1, 1_001).win(2_500));
    assert!(s.octets(2_501) == octets[2_500..3_500]);
}

#[test]
fn a_window_update_lets_more_go() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000), |ack| ack.win(1_000));
    s.upstream_sends(&[1; 5_000]);
    assert_eq!(s.octets(1).len(), 1_000);
    s.pod(ack(1, 1_001).win(0));
    s.quiet();
    s.pod(ack(1, 1_001).win(3_000));
    assert_eq!(s.octets(1_001).len(), 3_000);
}

#[test]
fn an_old_segment_does_not_change_the_window() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000), |ack| ack.win(4_000));
    s.pod(data(1, 1, b"abc").win(4_000));
    s.pod(data(4, 1, b"def").win(1_000));
    s.expect(ACK).ack(4);
    s.expect(ACK).ack(7);
    // The same octets, late: the window they bear is yesterday's.
    s.pod(data(1, 1, b"abc").win(60_000));
    s.expect(ACK).ack(7);
    s.upstream_sends(&[1; 5_000]);
    assert_eq!(s.octets(1).len(), 1_000);
}

#[test]
fn a_window_that_shrinks_is_respected_by_what_was_not_sent() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000), |ack| ack.win(4_000));
    s.upstream_sends(&[1; 10_000]);
    assert_eq!(s.octets(1).len(), 4_000);
    s.pod(ack(1, 1_001).win(1_000));
    s.quiet();
    s.pod(ack(1, 4_001).win(1_000));
    assert_eq!(s.octets(4_001).len(), 1_000);
}

#[test]
fn a_reordered_acknowledgment_that_is_new_brings_its_window() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000).sack_ok(), |ack| ack.win(1_000));
    s.upstream_sends(&[1; 8_000]);
    assert_eq!(s.octets(1).len(), 1_000);
    // Ahead of the gap, and before anything was acknowledged.
    s.pod(data(101, 1, &[2; 10]).win(1_000));
    s.expect(ACK).ack(1);
    s.pod(data(1, 1_001, &[2; 100]).win(5_000));
    assert_eq!(s.octets(1_001).len(), 5_000);
}

#[test]
fn slivers_are_not_sent() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000), |ack| ack.win(4_000));
    s.upstream_sends(&vec![1; 20_000]);
    assert_eq!(s.octets(1).len(), 4_000);
    for step in 1..10 {
        // The window moves on by 100 octets at a time.
        s.pod(ack(1, 1 + step * 100).win(4_000));
        if step * 100 < 1_000 {
            s.quiet();
        }
    }
    s.pod(ack(1, 1_001).win(4_000));
    assert_eq!(s.octets(4_001).len(), 1_000);
}

#[test]
fn what_is_all_there_is_goes_however_small() {
    let mut s = Script::connected(syn().mss(1_460));
    for number in 0..5 {
        s.upstream_sends(b"abc");
        s.expect(ACK).seq(1 + 3 * number).payload(b"abc");
    }
}

#[test]
fn a_window_below_a_segment_is_used_after_a_while() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000).win(8_000), |ack| ack.win(8_000));
    s.upstream_sends(&[1; 8_000]);
    assert_eq!(s.octets(1).len(), 8_000);
    s.pod(ack(1, 8_001).win(300));
    s.upstream_sends(&[2; 5_000]);
    s.quiet();
    assert!(s.wait(secs(2)) >= ms(200));
    s.expect(ACK).seq(8_001).len_is(300);
}

#[test]
fn a_closed_window_is_probed_with_back_off() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000), |ack| ack.win(0));
    s.upstream_sends(&[1; 3_000]);
    s.quiet();
    let mut waits = Vec::new();
    for _ in 0..8 {
        waits.push(s.wait(secs(130)));
        s.expect(ACK).seq(0).ack(1).len_is(0);
        s.pod(ack(1, 1).win(0));
        s.quiet();
    }
    assert!(waits[0] >= ms(200) && waits[0] <= secs(1), "{waits:?}");
    for pair in waits.windows(2) {
        assert!(pair[1] > pair[0] || pair[1] >= secs(60), "{waits:?}");
        assert!(pair[1] <= pair[0] * 2 + ms(10), "{waits:?}");
    }
}

#[test]
fn a_closed_window_may_stay_closed_for_ever_if_probes_are_answered() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000), |ack| ack.win(0));
    let octets = pattern(2, 3_000);
    s.upstream_sends(&octets);
    for _ in 0..60 {
        s.wait(secs(130));
        s.all();
        s.pod(ack(1, 1).win(0));
    }
    assert_eq!(s.flows(), 1);
    s.pod(ack(1, 1).win(5_000));
    assert!(s.octets(1) == octets);
    // What the probing had come to does not slow down the repair of a loss, and does not end the connection.
    let again = s.wait(secs(120));
    assert!(again <= secs(1), "again only after {again}");
    s.all();
    s.pod(ack(1, 3_001));
    s.after(secs(600));
    assert_eq!(s.flows(), 1);
}

#[test]
fn probes_that_nobody_answers_end_the_connection() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000), |ack| ack.win(0));
    s.upstream_sends(b"x");
    s.after(secs(3_000));
    let probes = s.all().len();
    assert!((10..=20).contains(&probes), "{probes} probes");
    assert_eq!(s.record().close, CloseReason::PodSilent);
    s.gone();
}

#[test]
fn the_window_opens_by_the_answer_to_a_probe() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000), |ack| ack.win(0));
    s.upstream_sends(b"hello");
    s.wait(secs(2));
    s.expect(ACK).seq(0);
    s.pod(ack(1, 1).win(100));
    s.expect(ACK).seq(1).payload(b"hello");
}

#[test]
fn a_fin_waits_behind_a_closed_window_like_an_octet() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000), |ack| ack.win(5));
    s.upstream_sends(b"hello");
    s.upstream_closes();
    s.expect(ACK).seq(1).payload(b"hello");
    s.quiet();
    s.pod(ack(1, 6).win(0));
    s.quiet();
    s.wait(secs(2));
    s.expect(ACK).seq(5).len_is(0);
    s.pod(ack(1, 6).win(1));
    s.expect(FIN | ACK).seq(6);
    s.pod(fin(1, 7));
    s.expect(ACK).ack(2);
    s.gone();
}

#[test]
fn the_fin_does_not_go_with_octets_that_fill_the_window() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000), |ack| ack.win(0));
    s.upstream_sends(&[1; 300]);
    s.upstream_closes();
    s.quiet();
    s.pod(ack(1, 1).win(300));
    s.expect(ACK).seq(1).len_is(300);
    s.quiet();
    s.pod(ack(1, 301).win(300));
    s.expect(FIN | ACK).seq(301).len_is(0);
}

#[test]
fn a_window_closed_over_octets_under_way_is_probed_not_flooded() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000), |ack| ack.win(4_000));
    s.upstream_sends(&[1; 4_000]);
    assert_eq!(s.octets(1).len(), 4_000);
    s.pod(ack(1, 1_001).win(0));
    s.after(secs(5));
    let seen = s.all();
    assert!(seen.len() <= 8, "{} segments into a closed window", seen.len());
    assert!(!seen.is_empty());
    s.pod(ack(1, 1_001).win(8_000));
    s.after(secs(10));
    assert!(s.all().iter().any(|seen| seen.seq == 1_001 && seen.payload.len() == 1_000));
}

// --- our window ---

/// Sends until the window is closed; returns the next sequence number.
fn fill(s: &mut Script, segment: usize) -> u32 {
    let (mut seq, mut room) = (1u32, u32::from(u16::MAX));
    let octets = vec![7; segment];
    while room > 0 {
        let len = segment.min(room as usize);
        s.pod(data(seq, 1, &octets[..len]));
        seq += len as u32;
        let seen = s.all().pop().expect("an ACK");
        assert_eq!(seen.ack, seq, "an octet within the window was dropped");
        room = u32::from(seen.window) << s.our_scale;
        assert!(seq < 9_000_000, "the window never closes");
    }
    seq
}

#[test]
fn the_window_closes_when_the_upstream_reads_nothing() {
    for scaled in [false, true] {
        let first = if scaled { syn().mss(1_460).wscale(7) } else { syn().mss(1_460) };
        let mut s = Script::connected(first);
        s.upstream_stalls();
        let taken = fill(&mut s, 1_460) - 1;
        assert!(taken <= 2 << 20, "{taken} octets taken");
        assert!(taken >= 60_000);
        let flow = s.flow();
        assert_eq!(s.engine.stack.uplink(flow).map(<[u8]>::len).sum::<usize>(), taken as usize);
    }
}

#[test]
fn single_octets_do_not_push_the_window_on_for_ever() {
    let mut s = Script::connected(syn().mss(1_460).wscale(7));
    s.upstream_stalls();
    s.window_may_shrink = true;
    let mut seq = 1;
    for round in 0u32.. {
        let len = if round < 60 { 1_460 } else { 1 };
        s.pod(data(seq, 1, &[7; 1_460][..len]));
        seq += len as u32;
        let seen = s.all().pop().expect("an ACK");
        if seen.window == 0 {
            break;
        }
        assert!(seq < 400_000, "the window never closes");
    }
    assert!(seq < 170_000, "{seq} octets");
    // The edge that rounding had promised holds.
    s.pod(data(seq, 1, b"x"));
    s.expect(ACK).ack(seq + 1);
}

#[test]
fn octets_beyond_a_closed_window_are_refused_and_answered() {
    let mut s = Script::connected(syn().mss(1_460));
    s.upstream_stalls();
    let seq = fill(&mut s, 1_460);
    for _ in 0..3 {
        s.pod(data(seq, 1, b"more"));
        s.expect(ACK).ack(seq).win(0);
    }
    s.upstream_reads();
    s.expect(ACK).ack(seq);
    assert_eq!(s.upstream().received.len(), seq as usize - 1);
}

#[test]
fn the_pods_window_probes_are_answered() {
    let mut s = Script::connected(syn().mss(1_460));
    s.upstream_stalls();
    let seq = fill(&mut s, 1_460);
    // As Linux probes: an old sequence number, no octet.
    s.after(secs(1));
    s.pod(ack(seq - 1, 1));
    s.expect(ACK).ack(seq).win(0);
    // As RFC 9293 3.8.6.1 does: one octet.
    s.pod(data(seq, 1, b"x"));
    s.expect(ACK).ack(seq).win(0);
}

#[test]
fn the_window_opens_again_by_an_update_when_the_upstream_reads() {
    let mut s = Script::connected(syn().mss(1_460));
    s.upstream_stalls();
    let seq = fill(&mut s, 1_460);
    s.upstream_reads();
    let update = s.expect(ACK);
    update.ack(seq).len_is(0);
    assert!(update.window >= 60_000, "{update:?}");
    s.quiet();
}

#[test]
fn no_update_is_sent_for_slivers() {
    let mut s = Script::connected(syn().mss(1_460));
    s.upstream_stalls();
    let seq = fill(&mut s, 1_460);
    for taken in 1.. {
        assert!(taken < 200, "no update at all");
        s.upstream_takes(10);
        // An ACK that goes out anyway does not offer a sliver either.
        s.after(secs(1));
        s.pod(ack(seq - 1, 1));
        let seen = s.all();
        if let Some(update) = seen.iter().find(|seen| seen.window > 0) {
            assert!(update.window >= 1_460, "{update:?}");
            break;
        }
    }
}

#[test]
fn the_window_grows_with_use() {
    let mut s = Script::connected(syn().mss(1_460).wscale(7));
    let mut seq = 1;
    let mut largest = 0;
    for _ in 0..3_000 {
        s.pod(data(seq, 1, &[7; 1_460]));
        seq += 1_460;
        largest = largest.max(u32::from(s.expect(ACK).window) << 7);
    }
    assert!(largest >= 1 << 20, "{largest}");
}

#[test]
fn a_fin_in_a_closed_window_is_taken_when_there_is_room_and_not_lost() {
    let mut s = Script::connected(syn().mss(1_460));
    s.upstream_stalls();
    let seq = fill(&mut s, 1_460);
    s.pod(fin(seq, 1));
    let answer = s.all().pop().expect("an ACK");
    if answer.ack == seq {
        s.upstream_reads();
        s.all();
        s.pod(fin(seq, 1));
        s.expect(ACK).ack(seq + 1);
    } else {
        s.upstream_reads();
    }
    assert!(s.upstream().shut);
    assert_eq!(s.upstream().received.len(), seq as usize - 1);
}

#[test]
fn an_idle_flow_owns_no_buffer() {
    let mut s = Script::connected(syn().mss(1_460).wscale(7));
    s.pod(data(1, 1, &[1; 1_000]));
    s.upstream_sends(&vec![2; 100_000]);
    s.pod(ack(1_001, 100_001));
    s.all();
    assert_eq!(s.engine.pool.held(), 0);
    s.after(Duration::from_secs(60));
    assert_eq!((s.flows(), s.engine.pool.held()), (1, 0));
}

#[test]
fn what_lies_behind_a_window_that_closed_does_not_end_the_connection() {
    let octets = pattern(8, 4_000);
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000), |ack| ack.win(4_000));
    s.upstream_sends(&octets);
    assert!(s.octets(1) == octets);
    // The pod takes one segment, and for hours nothing more; it answers all that is asked.
    s.pod(ack(1, 1_001).win(0));
    for _ in 0..200 {
        s.wait(secs(130));
        for seen in s.all() {
            assert!(seen.seq <= 1_001 && seen.payload.len() <= 1_000, "{seen:?} into a closed window");
            s.pod(ack(1, 1_001).win(0));
        }
    }
    assert_eq!(s.flows(), 1);
    s.pod(ack(1, 1_001).win(4_000));
    let mut got = 1_001;
    for _ in 0..20 {
        for seen in s.all() {
            if seen.seq == got {
                assert!(seen.payload == octets[got as usize - 1..][..seen.payload.len()]);
                got += seen.payload.len() as u32;
            }
        }
        s.pod(ack(1, got).win(4_000));
        s.after(ms(500));
    }
    assert_eq!(got, 4_001);
}

#[test]
fn a_closed_window_takes_resets_and_acknowledgments() {
    let mut s = Script::connected(syn().mss(1_460));
    s.upstream_stalls();
    let seq = fill(&mut s, 1_460);
    s.upstream_sends(b"answer");
    s.expect(ACK).payload(b"answer").win(0);
    s.pod(ack(seq, 7));
    s.after(secs(60));
    s.quiet();
    // Beside octets that find no room, too.
    s.upstream_sends(b"more");
    s.expect(ACK).seq(7);
    s.pod(data(seq, 11, b"no room").flags(ACK | crate::segment::URG));
    s.expect(ACK).ack(seq).win(0);
    s.after(secs(60));
    s.quiet();
    s.pod(crate::segment::rst(seq));
    assert_eq!(s.record().close, CloseReason::ResetByPod);
    s.gone();
}
