//! Octets from the pod: order, gaps, overlaps, and what is said about them.

use tunproxy_datapath::DropReason;

use crate::common::pattern;
use crate::script::{Script, ms, secs};
use crate::segment::{ACK, RST, ack, data, fin, syn};

fn with_sack() -> Script {
    Script::connected(syn().mss(1_460).sack_ok())
}

#[test]
fn octets_in_order_are_acknowledged_and_passed_on() {
    let mut s = Script::connected(syn());
    s.pod(data(1, 1, b"one"));
    s.expect(ACK).seq(1).ack(4).len_is(0);
    s.pod(data(4, 1, b"two"));
    s.expect(ACK).seq(1).ack(7);
    s.upstream_got(b"onetwo");
    s.quiet();
}

#[test]
fn a_gap_is_kept_back_and_told_at_once() {
    let mut s = Script::connected(syn());
    s.pod(data(4, 1, b"def"));
    s.expect(ACK).ack(1);
    s.upstream_got(b"");
    s.pod(data(7, 1, b"ghi"));
    s.expect(ACK).ack(1);
    s.pod(data(1, 1, b"abc"));
    s.expect(ACK).ack(10);
    s.upstream_got(b"abcdefghi");
}

#[test]
fn without_the_option_no_sack_is_sent() {
    let mut s = Script::connected(syn());
    s.pod(data(4, 1, b"def"));
    assert!(s.expect(ACK).sack.is_empty());
}

#[test]
fn the_latest_range_is_the_first_block() {
    let mut s = with_sack();
    s.pod(data(101, 1, &[1; 100]));
    s.expect(ACK).ack(1).sacks(&[(101, 201)]);
    s.pod(data(301, 1, &[3; 100]));
    s.expect(ACK).sacks(&[(301, 401), (101, 201)]);
    s.pod(data(501, 1, &[5; 100]));
    s.expect(ACK).sacks(&[(501, 601), (101, 201), (301, 401)]);
    s.pod(data(201, 1, &[2; 100]));
    s.expect(ACK).sacks(&[(101, 401), (501, 601)]);
}

#[test]
fn at_most_four_blocks_and_three_beside_timestamps() {
    for (stamped, most) in [(false, 4), (true, 3)] {
        let first = syn().sack_ok();
        let mut s = Script::new();
        let stamp = |segment: crate::segment::Seg| if stamped { segment.ts(5, 0) } else { segment };
        s.connect_with(stamp(first), stamp);
        let mut blocks = 0;
        for number in 0..6 {
            s.pod(stamp(data(101 + 200 * number, 1, &[1; 100])));
            blocks = s.expect(ACK).sack.len();
        }
        assert_eq!(blocks, most);
    }
}

#[test]
fn the_blocks_end_when_the_gap_is_filled() {
    let mut s = with_sack();
    s.pod(data(101, 1, &[1; 100]));
    s.expect(ACK).sacks(&[(101, 201)]);
    s.pod(data(1, 1, &[0; 100]));
    s.expect(ACK).ack(201).sacks(&[]);
}

#[test]
fn a_whole_duplicate_is_reported_once() {
    let mut s = with_sack();
    s.pod(data(1, 1, &[1; 100]));
    s.expect(ACK).ack(101);
    s.pod(data(1, 1, &[1; 100]));
    s.expect(ACK).ack(101).sacks(&[(1, 101)]);
    s.pod(data(101, 1, &[2; 100]));
    s.expect(ACK).ack(201).sacks(&[]);
    s.upstream_got(&[[1; 100], [2; 100]].concat());
}

#[test]
fn a_duplicate_inside_a_kept_range_is_reported_before_it() {
    let mut s = with_sack();
    s.pod(data(101, 1, &[1; 100]));
    s.expect(ACK);
    s.pod(data(101, 1, &[1; 50]));
    s.expect(ACK).ack(1).sacks(&[(101, 151), (101, 201)]);
}

#[test]
fn the_old_part_of_an_overlap_is_reported() {
    let mut s = with_sack();
    s.pod(data(1, 1, &[1; 100]));
    s.expect(ACK);
    s.pod(data(51, 1, &[2; 100]));
    s.expect(ACK).ack(151).sacks(&[(51, 101)]);
    s.upstream_got(&[vec![1; 100], vec![2; 50]].concat());
}

#[test]
fn the_first_octets_win_every_overlap_of_kept_ranges() {
    let mut s = with_sack();
    s.pod(data(11, 1, b"BBBBBBBBBB"));
    s.pod(data(6, 1, b"cccccccccccccccccccc"));
    s.pod(data(1, 1, b"a"));
    s.pod(data(2, 1, b"dddd"));
    let last = s.all().pop().expect("ACKs");
    last.ack(26);
    s.upstream_got(b"addddcccccBBBBBBBBBBccccc");
}

#[test]
fn octets_once_kept_cannot_be_changed() {
    let mut s = with_sack();
    s.pod(data(4, 1, b"def"));
    s.pod(data(4, 1, b"XXX"));
    s.pod(data(2, 1, b"bcXYZ"));
    s.pod(data(1, 1, b"a"));
    s.upstream_got(b"abcdef");
}

#[test]
fn overlaps_of_every_kind_end_in_the_same_octets() {
    let octets = pattern(5, 400);
    for seed in 0..200u64 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut s = with_sack();
        let mut done = 1;
        for _ in 0..400 {
            let start = random.usize(0..400);
            let end = random.usize(start..=400);
            s.pod(data(1 + start as u32, 1, &octets[start..end]));
            for seen in s.all() {
                assert!(seen.ack >= done, "the acknowledgment went back");
                done = seen.ack;
            }
        }
        s.pod(data(1, 1, &octets));
        s.upstream_got(&octets);
        assert_eq!(s.engine.pool.held(), 0, "seed {seed}");
    }
}

#[test]
fn more_gaps_than_are_kept_cost_nothing_but_themselves() {
    let mut s = Script::connected(syn().mss(1_460).sack_ok().wscale(7));
    let octets = pattern(9, 1_000);
    for at in (1..1_000).step_by(2) {
        s.pod(data(1 + at as u32, 1, &octets[at..=at]));
    }
    assert!(s.dropped(DropReason::Reassembly) > 400);
    for at in (0..1_000).step_by(2) {
        s.pod(data(1 + at as u32, 1, &octets[at..=at]));
    }
    for chunk in (0..1_000).step_by(100) {
        s.pod(data(1 + chunk as u32, 1, &octets[chunk..chunk + 100]));
    }
    s.upstream_got(&octets);
    assert_eq!(s.engine.pool.held(), 0);
}

#[test]
fn single_octets_out_of_order_do_not_pile_up_as_chunks() {
    let mut s = Script::connected(syn());
    s.upstream_stalls();
    for round in 0..500u32 {
        let base = 1 + round * 20;
        for odd in (1..20).step_by(2) {
            s.pod(data(base + odd, 1, b"o"));
        }
        for even in (0..20).step_by(2) {
            s.pod(data(base + even, 1, b"e"));
        }
    }
    let flow = s.flow();
    assert_eq!(s.engine.stack.uplink(flow).map(<[u8]>::len).sum::<usize>(), 10_000);
    let chunks = s.engine.stack.uplink(flow).count();
    assert!(chunks < 10, "{chunks} chunks for 10000 octets");
}

#[test]
fn data_and_blocks_are_told_in_two_segments() {
    let mut s = with_sack();
    s.upstream_sends(&[7; 100]);
    s.expect(ACK).len_is(100);
    // Octets wait for the pod while it leaves a gap: the gap is told by an ACK of its own, so that it counts as one.
    let flow = s.flow();
    let mut buffer = s.engine.pool.take();
    let now = s.now;
    let gap = data(101, 101, &[1; 50]).build((s.pod, s.remote), s.irs, s.iss.expect("an ISS"));
    buffer.space()[..10].fill(0);
    buffer.space()[10..10 + gap.len()].copy_from_slice(&gap);
    buffer.len = 10 + gap.len();
    let cx = &mut tunproxy_datapath::Cx { now, pool: &mut s.engine.pool };
    s.engine.stack.handle_packet(cx, &mut buffer);
    buffer.space()[..100].fill(8);
    let cx = &mut tunproxy_datapath::Cx { now, pool: &mut s.engine.pool };
    s.engine.stack.downlink_data(cx, flow, &mut buffer, 100);
    s.engine.pool.give(buffer);
    s.settle();
    s.expect(ACK).ack(1).len_is(0).sacks(&[(101, 151)]);
    s.expect(ACK).ack(1).seq(101).len_is(100);
}

#[test]
fn a_fin_out_of_order_waits_for_the_octets_before_it() {
    let mut s = with_sack();
    s.pod(fin(4, 1).payload(b"def"));
    s.expect(ACK).ack(1);
    assert!(!s.upstream().shut);
    s.pod(data(1, 1, b"abc"));
    s.expect(ACK).ack(8);
    s.upstream_got(b"abcdef");
    assert!(s.upstream().shut);
}

#[test]
fn a_bare_fin_out_of_order_waits_too() {
    let mut s = with_sack();
    s.pod(fin(4, 1));
    s.expect(ACK).ack(1);
    s.pod(data(1, 1, b"abc"));
    s.expect(ACK).ack(5);
    assert!(s.upstream().shut);
}

#[test]
fn octets_behind_the_fin_are_ignored() {
    let mut s = with_sack();
    s.pod(fin(4, 1));
    s.pod(data(1, 1, b"abcXXXX"));
    s.upstream_got(b"abc");
    assert!(s.upstream().shut);
    s.pod(data(5, 1, b"more"));
    s.upstream_got(b"abc");
    assert_eq!(s.all().pop().expect("ACKs").ack, 5);
}

#[test]
fn a_fin_before_octets_that_are_here_is_not_believed() {
    let mut s = with_sack();
    s.pod(data(11, 1, &[2; 20]));
    s.pod(fin(15, 1));
    s.pod(fin(5, 1));
    s.pod(data(1, 1, &[1; 10]));
    assert!(!s.upstream().shut);
    s.upstream_got(&[vec![1; 10], vec![2; 20]].concat());
    s.pod(fin(31, 1));
    assert_eq!(s.all().pop().expect("ACKs").ack, 32);
    assert!(s.upstream().shut);
}

#[test]
fn a_fin_sent_again_is_acknowledged_again() {
    let mut s = with_sack();
    s.pod(fin(1, 1));
    s.expect(ACK).ack(2);
    s.pod(fin(1, 1));
    s.expect(ACK).ack(2);
    s.quiet();
}

#[test]
fn octets_without_ack_are_ignored() {
    let mut s = Script::connected(syn());
    s.pod(data(1, 0, b"evil").flags(crate::segment::PSH));
    s.upstream_got(b"");
    s.quiet();
    s.pod(data(1, 1, b"good"));
    s.expect(ACK).ack(5);
    s.upstream_got(b"good");
}

#[test]
fn an_empty_segment_is_not_answered() {
    let mut s = Script::connected(syn());
    for _ in 0..10 {
        s.pod(ack(1, 1));
    }
    s.after(secs(10));
    s.quiet();
}

#[test]
fn octets_before_the_window_are_answered_each_time() {
    let mut s = Script::connected(syn());
    s.pod(data(1, 1, b"abc"));
    s.expect(ACK);
    for _ in 0..5 {
        s.pod(data(1, 1, b"abc"));
        s.expect(ACK).ack(4);
    }
    s.upstream_got(b"abc");
}

#[test]
fn octets_far_behind_the_window_are_dropped_and_answered() {
    let mut s = Script::connected(syn());
    for far in [100_000_000u32, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, 0xf000_0000] {
        s.pod(data(far, 1, b"abc"));
        s.expect(ACK).ack(1);
    }
    s.upstream_got(b"");
    assert_eq!(s.flows(), 1);
}

#[test]
fn a_megabyte_in_large_and_small_segments_arrives_whole() {
    let octets = pattern(3, 1 << 20);
    let mut s = Script::connected(syn().mss(1_460).wscale(7));
    let mut random = fastrand::Rng::with_seed(1);
    let mut at = 0;
    while at < octets.len() {
        let len = random.usize(1..1_460).min(octets.len() - at);
        s.pod(data(1 + at as u32, 1, &octets[at..at + len]));
        at += len;
        assert_eq!(s.expect(ACK).ack, 1 + at as u32);
    }
    s.upstream_got(&octets);
    assert_eq!(s.engine.pool.held(), 0);
}

#[test]
fn spent_memory_refuses_octets_but_starves_nobody() {
    let mut s = Script::connected(syn());
    s.upstream_stalls();
    // A pod alone has half of it.
    s.engine.pool = tunproxy_datapath::Pool::new(8_000);
    s.pod(data(1, 1, &[1; 1_000]));
    s.pod(data(1_001, 1, &[1; 3_500]));
    s.pod(data(4_501, 1, &[1; 1_000]));
    assert_eq!(s.all().pop().expect("ACKs").ack, 4_501);
    assert_eq!(s.dropped(DropReason::Memory), 1);
    // Another flow moves although the memory is spent.
    s.reconnect_from(50_000, 77);
    s.connect(syn());
    s.pod(data(1, 1, &[9; 1_400]));
    s.expect(ACK).ack(1_401);
    s.upstream_got(&[9; 1_400]);
}

#[test]
fn a_reset_by_the_upstream_reaches_the_pod() {
    let mut s = Script::connected(syn());
    s.pod(data(1, 1, b"abc"));
    s.expect(ACK);
    s.upstream_resets();
    s.expect(RST | ACK).seq(1).ack(4);
    s.gone();
    s.after(ms(100));
    s.pod(fin(4, 1));
    s.expect(RST).seq(1);
}

#[test]
fn segments_read_in_one_go_are_acknowledged_together() {
    let mut s = Script::connected(syn().mss(1_000));
    let segments: Vec<_> = (0..10).map(|number| data(1 + number * 1_000, 1, &[7; 1_000])).collect();
    s.pod_at_once(&segments);
    s.expect(ACK).ack(10_001);
    s.quiet();
    s.upstream_got(&[7; 10_000]);
}

#[test]
fn what_is_old_and_what_lies_beyond_the_window_are_counted_apart() {
    let mut s = Script::connected(syn());
    s.pod(data(1, 1, b"abc"));
    s.expect(ACK).ack(4);
    // A repetition, a keepalive without and with an octet.
    for old in [data(1, 1, b"abc"), ack(3, 1), data(3, 1, b"?")] {
        s.pod(old);
        s.expect(ACK).ack(4);
        s.after(secs(1));
    }
    let counts = |s: &Script| (s.dropped(DropReason::OldSegment), s.dropped(DropReason::OutOfWindow));
    assert_eq!(counts(&s), (3, 0));
    for beyond in [data(200_000, 1, b"x"), data(4 + (1 << 31), 1, b"far"), data(5 + (1 << 31), 1, b"far")] {
        s.pod(beyond);
    }
    assert_eq!(counts(&s), (3, 3));
}
