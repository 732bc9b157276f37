//! What is lost on the way to the pod comes again, neither too early nor too often.

use tunproxy_datapath::{CloseReason, Duration};

use crate::common::pattern;
use crate::script::{Script, ms, secs};
use crate::segment::{ACK, FIN, Seen, Seg, ack, syn};

const MSS: u32 = 1_000;

/// Connected, and so many segments on their way to the pod.
pub fn sending(segments: u32) -> Script {
    let mut s = Script::connected(syn().mss(MSS as u16).sack_ok().wscale(7));
    s.upstream_sends(&pattern(4, (segments * MSS) as usize));
    assert_eq!(s.octets(1).len() as u32, segments * MSS);
    s
}

/// Lets the retransmission timer fire. The probe before it, which is segment `last`, is lost too.
pub fn time_out(s: &mut Script, last: u32) {
    s.wait(secs(2));
    s.expect(ACK).seq(at(last));
    s.quiet();
    s.wait(secs(2));
}

/// Where a segment of [`sending`] begins.
pub fn at(segment: u32) -> u32 {
    1 + segment * MSS
}

/// An ACK with SACK blocks, given in segments.
pub fn sack(s: &Script, acked: u32, blocks: &[(u32, u32)]) -> Seg {
    let iss = s.iss.expect("an ISS");
    let mut option = vec![1, 1, 5, (2 + 8 * blocks.len()) as u8];
    for &(start, end) in blocks {
        option.extend(at(start).wrapping_add(iss).to_be_bytes());
        option.extend(at(end).wrapping_add(iss).to_be_bytes());
    }
    ack(1, at(acked)).raw(&option)
}

fn starts(seen: &[Seen]) -> Vec<u32> {
    seen.iter().map(|seen| seen.seq).collect()
}

#[test]
fn the_timeout_sends_the_first_segment_again_and_doubles() {
    let mut s = sending(4);
    let mut waits = Vec::new();
    s.wait(ms(10));
    s.expect(ACK).seq(at(3));
    for _ in 0..6 {
        waits.push(s.wait(secs(130)));
        s.expect(ACK).seq(1).len_is(1_000);
        s.quiet();
    }
    assert!(waits[0] >= ms(200) && waits[0] <= ms(400), "{waits:?}");
    for pair in waits.windows(2) {
        assert!(pair[1] >= pair[0] * 2 - ms(5) && pair[1] <= pair[0] * 2 + ms(5), "{waits:?}");
    }
}

#[test]
fn the_timeout_is_capped_and_in_the_end_the_connection_is_given_up() {
    let mut s = sending(1);
    let mut waits = Vec::new();
    while s.flows() == 1 {
        let start = s.now;
        let Some(due) = s.engine.stack.poll_at() else { break };
        s.after(due - start);
        if s.all().iter().any(|seen| seen.len() > 0) {
            waits.push(s.now - start);
        }
        assert!(waits.len() < 30, "never given up");
    }
    assert!(waits.iter().all(|&wait| wait <= secs(120)), "{waits:?}");
    assert_eq!(waits.len(), 16, "a probe and 15 time-outs");
    let total: u64 = waits.iter().map(Duration::total_millis).sum();
    assert!((500_000..1_500_000).contains(&total), "{total} ms (Linux: 924 s)");
    assert_eq!(s.record().close, CloseReason::PodSilent);
    assert_eq!(s.engine.pool.held(), 0);
}

#[test]
fn three_duplicate_acks_bring_the_first_segment_at_once() {
    let mut s = Script::connected(syn().mss(MSS as u16));
    s.upstream_sends(&pattern(4, 10_000));
    s.all();
    s.pod(ack(1, at(2)));
    s.all();
    for _ in 0..2 {
        s.pod(ack(1, at(2)));
        s.quiet();
    }
    s.pod(ack(1, at(2)));
    s.expect(ACK).seq(at(2)).len_is(1_000);
    for _ in 0..5 {
        s.pod(ack(1, at(2)));
    }
    assert!(s.all().iter().all(|seen| seen.seq >= at(10)), "sent again more than once");
}

#[test]
fn a_partial_ack_brings_the_next_hole() {
    let mut s = Script::connected(syn().mss(MSS as u16));
    s.upstream_sends(&pattern(4, 10_000));
    s.all();
    for _ in 0..4 {
        s.pod(ack(1, at(0)));
    }
    s.expect(ACK).seq(at(0));
    s.all();
    s.pod(ack(1, at(5)));
    s.expect(ACK).seq(at(5)).len_is(1_000);
    s.pod(ack(1, at(10)));
    s.quiet();
    s.after(secs(5));
    s.quiet();
}

#[test]
fn an_ack_with_a_new_window_or_octets_is_no_duplicate() {
    let mut s = Script::connected(syn().mss(MSS as u16));
    s.upstream_sends(&pattern(4, 5_000));
    s.all();
    for number in 0..6u16 {
        s.pod(ack(1, 1).win(60_000 - number));
    }
    assert!(s.all().iter().all(|seen| seen.seq != 1));
    for number in 0..6u32 {
        s.pod(crate::segment::data(1 + number, 1, b"x").win(59_995));
    }
    assert!(s.all().iter().all(|seen| seen.payload.is_empty()));
}

#[test]
fn only_what_sack_leaves_out_is_sent_again() {
    let mut s = sending(10);
    s.pod(sack(&s, 0, &[(1, 3), (4, 5), (7, 10)]));
    let seen = s.all();
    assert_eq!(starts(&seen)[0], at(0));
    s.pod(sack(&s, 1, &[(1, 3), (4, 5), (7, 10)]));
    s.pod(sack(&s, 3, &[(4, 5), (7, 10)]));
    let mut again = starts(&seen);
    again.extend(starts(&s.all()));
    again.sort_unstable();
    again.dedup();
    assert_eq!(again, [at(0), at(3), at(5), at(6)]);
}

#[test]
fn the_holes_of_one_window_are_repaired_without_a_timeout() {
    let mut s = sending(20);
    let mut have: Vec<bool> = (0..20).map(|segment| ![2, 3, 9, 15].contains(&segment)).collect();
    let mut rounds = 0;
    while have.contains(&false) {
        rounds += 1;
        assert!(rounds < 20, "still missing: {have:?}");
        let acked = have.iter().position(|&here| !here).unwrap_or(20) as u32;
        let blocks = blocks_of(&have, acked as usize);
        s.pod(sack(&s, acked, &blocks));
        for seen in s.all() {
            for segment in 0..20 {
                let inside = seen.seq <= at(segment) && seen.seq + seen.len() >= at(segment + 1);
                have[segment as usize] |= inside;
            }
        }
    }
    s.pod(ack(1, at(20)));
    s.after(secs(5));
    assert!(s.all().is_empty());
}

/// Up to four runs of received segments beyond `acked`, the last ones.
fn blocks_of(have: &[bool], acked: usize) -> Vec<(u32, u32)> {
    let mut blocks: Vec<(u32, u32)> = Vec::new();
    for (index, _) in have.iter().enumerate().filter(|&(index, &here)| here && index > acked) {
        match blocks.last_mut() {
            Some((_, end)) if *end == index as u32 => *end += 1,
            _ => blocks.push((index as u32, index as u32 + 1)),
        }
    }
    blocks.reverse();
    blocks.truncate(4);
    blocks
}

#[test]
fn sack_blocks_that_make_no_sense_are_ignored() {
    let mut s = sending(5);
    s.pod(ack(1, at(1)));
    for blocks in [[(3, 2)], [(0, 1)], [(1, 9)], [(50, 60)], [(5, 5)], [(2_000_000, 2_000_001)]] {
        s.pod(sack(&s, 1, &blocks));
    }
    assert!(s.all().iter().all(|seen| seen.payload.is_empty() || seen.seq == at(1)));
    s.pod(ack(1, at(5)));
    s.after(secs(3));
    s.all();
    assert_eq!(s.flows(), 1);
}

#[test]
fn a_pod_that_breaks_its_sack_promise_gets_everything() {
    let mut s = sending(5);
    s.pod(sack(&s, 0, &[(1, 5)]));
    s.all();
    s.pod(ack(1, at(1)));
    s.all();
    // It dropped what it had reported: only the timer helps.
    let mut got = vec![false; 5];
    got[0] = true;
    for _ in 0..40 {
        s.after(ms(500));
        for seen in s.all().iter().filter(|seen| !seen.payload.is_empty()) {
            got[((seen.seq - 1) / MSS) as usize] = true;
        }
        let acked = got.iter().position(|&here| !here).unwrap_or(5) as u32;
        s.pod(ack(1, at(acked)));
    }
    assert!(got.iter().all(|&here| here), "{got:?}");
}

#[test]
fn thirty_three_ranges_of_sack_are_survived() {
    let mut s = sending(120);
    for block in 0..50 {
        s.pod(sack(&s, 0, &[(1 + 2 * block, 2 + 2 * block)]));
        s.all();
    }
    s.pod(ack(1, at(120)));
    s.after(secs(2));
    s.all();
    assert_eq!(s.engine.pool.held(), 0);
}

#[test]
fn more_ranges_than_are_kept_are_survived() {
    let octets = pattern(4, 1_000_000);
    let mut s = sending(1_000);
    let mut got = vec![false; 1_000];
    // Every second segment is there; of each the pod reports once, one by one.
    for segment in (1..1_000).step_by(2) {
        got[segment as usize] = true;
        s.pod(sack(&s, 0, &[(segment, segment + 1)]));
    }
    for _ in 0..2_000 {
        let seen = s.all();
        for seen in seen.iter().filter(|seen| !seen.payload.is_empty()) {
            assert!(seen.payload == octets[seen.seq as usize - 1..][..seen.payload.len()]);
            let (first, end) = ((seen.seq - 1).div_ceil(MSS), (seen.seq - 1 + seen.len()) / MSS);
            got[first as usize..end as usize].fill(true);
        }
        let acked = got.iter().position(|&here| !here).unwrap_or(1_000) as u32;
        s.pod(ack(1, at(acked)));
        if acked == 1_000 {
            break;
        }
        if seen.is_empty() {
            s.after(ms(100));
        }
    }
    assert!(got.iter().all(|&here| here));
    assert_eq!(s.engine.pool.held(), 0);
}

#[test]
fn a_retransmitted_segment_measures_nothing() {
    let mut s = Script::connected(syn().mss(MSS as u16));
    s.upstream_sends(b"first");
    s.all();
    s.wait(secs(2));
    s.all();
    s.after(ms(30));
    // Was this for the first or the second? (Karn)
    s.pod(ack(1, 6));
    s.upstream_sends(b"second");
    s.all();
    let again = s.wait(secs(2));
    assert!(again >= ms(200) && again <= ms(210), "{again}: the ambiguous round trip counted");
}

#[test]
fn a_slow_path_is_learnt() {
    let mut s = Script::connected(syn().mss(MSS as u16));
    let mut sent = 1;
    for _ in 0..12 {
        s.upstream_sends(b"x");
        s.expect(ACK).seq(sent);
        sent += 1;
        s.after(ms(150));
        s.quiet();
        s.pod(ack(1, sent));
    }
    s.upstream_sends(b"x");
    s.expect(ACK);
    let again = s.wait(secs(5));
    assert!(again >= ms(300), "the round trip is 150 ms, and it came again after {again}");
}

#[test]
fn progress_restarts_the_timer() {
    let mut s = sending(3);
    let rto = {
        let mut other = sending(3);
        time_out(&mut other, 2);
        other.now - s.now
    };
    s.after(rto - ms(20));
    s.expect(ACK).seq(at(2));
    s.pod(ack(1, at(1)));
    s.after(ms(100));
    s.quiet();
    s.pod(ack(1, at(3)));
    s.after(secs(10));
    s.quiet();
}

#[test]
fn after_a_timeout_everything_comes_again_in_order() {
    let mut s = sending(6);
    let octets = pattern(4, 6_000);
    let mut got = Vec::new();
    for _ in 0..50 {
        if got.len() == octets.len() {
            break;
        }
        let mut seen = s.all();
        if seen.is_empty() {
            s.wait(secs(130));
            seen = s.all();
        }
        for seen in seen {
            if seen.seq as usize == got.len() + 1 {
                got.extend(seen.payload);
            }
        }
        s.pod(ack(1, 1 + got.len() as u32));
    }
    assert!(got == octets);
}

#[test]
fn duplicate_acks_for_what_a_timeout_covered_bring_nothing() {
    let mut s = sending(6);
    time_out(&mut s, 5);
    s.expect(ACK).seq(1);
    s.quiet();
    for _ in 0..8 {
        s.pod(ack(1, 1));
    }
    s.quiet();
}

#[test]
fn a_lost_fin_comes_again() {
    let mut s = Script::connected(syn());
    s.upstream_closes();
    s.expect(FIN | ACK).seq(1);
    for _ in 0..3 {
        s.wait(secs(10));
        s.expect(FIN | ACK).seq(1);
    }
    s.pod(ack(1, 2));
    s.after(secs(60));
    s.quiet();
    assert_eq!(s.flows(), 1);
}

#[test]
fn the_fin_comes_again_with_the_octets_before_it() {
    let mut s = Script::connected(syn());
    s.upstream_sends(b"bye");
    s.upstream_closes();
    let sent: u32 = s.all().iter().map(Seen::len).sum();
    assert_eq!(sent, 4);
    s.wait(secs(2));
    let seen = s.expect(FIN | ACK);
    seen.seq(1).payload(b"bye");
    s.pod(ack(1, 5));
    s.after(secs(10));
    s.quiet();
}

#[test]
fn an_acknowledgment_within_a_segment_is_taken() {
    let mut s = sending(3);
    let octets = pattern(4, 3_000);
    s.pod(ack(1, 1_501));
    s.wait(ms(10));
    let probe = s.expect(ACK);
    assert!(probe.payload == octets[probe.seq as usize - 1..]);
    s.wait(secs(2));
    let again = s.expect(ACK);
    again.seq(1_501);
    assert!(again.payload == octets[1_500..1_500 + again.payload.len()]);
}

#[test]
fn retransmissions_respect_a_window_that_has_shrunk() {
    let mut s = sending(10);
    // 2048 octets from segment 1 on: the holes behind them wait.
    s.pod(sack(&s, 1, &[(4, 6), (8, 10)]).win(16));
    let seen = s.all();
    assert_eq!(starts(&seen)[0], at(1));
    assert!(seen.iter().all(|seen| seen.seq + seen.len() <= at(1) + 2_048), "{:?}", starts(&seen));
}
