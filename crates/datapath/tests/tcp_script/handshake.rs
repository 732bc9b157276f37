//! From the SYN to the first octet.

use tunproxy_datapath::{CloseReason, DropReason};
use tunproxy_testkit::packet::Checksum;

use crate::common::Dial;
use crate::script::{Script, ms, secs};
use crate::segment::{ACK, FIN, RST, SYN, Seg, ack, data, fin, rst, seg, syn};

fn full_syn() -> Seg {
    syn().mss(1_460).sack_ok().ts(100, 0).wscale(7)
}

/// The SYN|ACK for `syn`, and how long the first segments of a long answer are.
fn answered(first: Seg) -> (crate::segment::Seen, usize) {
    let mut s = Script::new();
    s.pod(first);
    let answer = s.expect(SYN | ACK);
    let stamp = answer.ts.map(|(value, _)| value);
    s.pod(stamp.map_or_else(|| ack(1, 1), |value| ack(1, 1).ts(101, value)));
    s.upstream_sends(&[7; 4_000]);
    (answer, s.expect(ACK).payload.len())
}

#[test]
fn the_syn_ack_comes_only_after_the_upstream_connected() {
    let mut s = Script::new();
    s.dial(Dial::Never);
    s.pod(full_syn());
    s.after(ms(500));
    s.quiet();
    s.upstream_connects();
    s.expect(SYN | ACK).seq(0).ack(1).len_is(0);
    s.quiet();
}

#[test]
fn all_options_are_answered_in_kind() {
    let (answer, segment) = answered(full_syn());
    assert_eq!((answer.mss, answer.sack_ok), (Some(1_460), true));
    assert!(answer.wscale.is_some());
    assert_eq!(answer.ts.map(|(_, echo)| echo), Some(100));
    assert_eq!(segment, 1_448);
}

#[test]
fn no_option_is_answered_that_was_not_offered() {
    let (answer, segment) = answered(syn());
    assert_eq!((answer.wscale, answer.sack_ok, answer.ts), (None, false, None));
    assert_eq!(answer.mss, Some(1_460), "the MSS is always told");
    assert_eq!(segment, 536, "RFC 9293 3.7.1");
}

#[test]
fn each_option_alone() {
    let (scale, sack, ts) = (syn().wscale(3), syn().sack_ok(), syn().ts(9, 0));
    let offers = |first: Seg| {
        let (answer, _) = answered(first);
        (answer.wscale.is_some(), answer.sack_ok, answer.ts.is_some())
    };
    assert_eq!(offers(scale), (true, false, false));
    assert_eq!(offers(sack), (false, true, false));
    assert_eq!(offers(ts), (false, false, true));
}

#[test]
fn the_pods_mss_is_kept() {
    for (mss, segment) in
        [(1_460, 1_460), (1_000, 1_000), (536, 536), (100, 100), (65_535, 1_460), (9_000, 1_460)]
    {
        assert_eq!(answered(syn().mss(mss)).1, segment, "MSS {mss}");
    }
}

#[test]
fn a_tiny_mss_is_not_followed_below_the_floor() {
    for mss in [1, 8, 47, 48] {
        assert_eq!(answered(syn().mss(mss)).1, 48, "MSS {mss}");
    }
}

#[test]
fn an_mss_of_zero_counts_as_none() {
    assert_eq!(answered(syn().mss(0)).1, 536);
}

#[test]
fn timestamps_take_their_room_from_the_segment() {
    assert_eq!(answered(syn().mss(1_000).ts(1, 0)).1, 988);
}

#[test]
fn a_window_scale_above_fourteen_is_fourteen() {
    for shift in [0, 14, 15, 200] {
        let mut s = Script::new();
        s.pod(syn().mss(1_460).wscale(shift));
        s.expect(SYN | ACK);
        // 1 << 14 is 16384: enough for all of it at once only where the shift is taken for 14.
        s.pod(ack(1, 1).win(if shift == 0 { 16_384 } else { 1 }));
        s.upstream_sends(&vec![1; 20_000]);
        assert!((16_000..=16_384).contains(&s.octets(1).len()), "shift {shift}");
    }
}

#[test]
fn without_a_scale_windows_are_plain_both_ways() {
    let mut s = Script::connected(syn().mss(1_460));
    s.upstream_sends(&vec![1; 200_000]);
    assert!((64_000..=65_535).contains(&s.octets(1).len()));
    s.pod(data(1, 1, b"x"));
    let seen = s.all().pop().expect("an ACK");
    assert!(seen.window > 60_000, "{seen:?}");
}

#[test]
fn the_windows_of_syns_are_never_scaled() {
    let mut s = Script::new();
    s.pod(syn().mss(1_460).wscale(10).win(400));
    s.expect(SYN | ACK).win(65_535);
    s.pod(ack(1, 1).win(1));
    s.upstream_sends(&[1; 3_000]);
    assert_eq!(s.octets(1).len(), 1_024, "the window of the third segment is scaled");
}

#[test]
fn garbage_options_do_not_hide_good_ones() {
    let (answer, segment) = answered(syn().raw(&[254, 4, 1, 2, 1, 1]).mss(800).raw(&[99, 2]));
    assert_eq!(segment, 800);
    assert!(answer.wscale.is_none());
}

#[test]
fn options_of_wrong_lengths_are_skipped() {
    let (answer, segment) = answered(syn().raw(&[2, 3, 9, 3, 4, 1, 1, 4, 3, 0, 8, 4, 0, 0]).mss(900));
    assert_eq!((answer.wscale, answer.sack_ok, answer.ts, segment), (None, false, None, 900));
}

#[test]
fn an_option_that_leaves_the_header_ends_the_list() {
    for bad in [&[8u8, 40][..], &[5, 0], &[5, 1], &[77, 255, 1]] {
        let (_, segment) = answered(syn().mss(700).raw(bad));
        assert_eq!(segment, 700, "{bad:?}");
    }
}

#[test]
fn forty_octets_of_options() {
    let (answer, _) = answered(syn().mss(1_460).raw(&[1; 36]));
    assert_eq!(answer.mss, Some(1_460));
}

#[test]
fn a_syn_sent_again_joins_the_pending_connect() {
    let mut s = Script::new();
    s.dial(Dial::Never);
    for _ in 0..4 {
        s.pod(syn().mss(1_460));
        s.after(secs(1));
    }
    s.quiet();
    assert_eq!((s.connects().len(), s.flows()), (1, 1));
    s.upstream_connects();
    s.expect(SYN | ACK).ack(1);
    s.quiet();
}

#[test]
fn a_syn_with_another_number_takes_the_place_of_a_pending_one() {
    let mut s = Script::new();
    s.dial(Dial::Never);
    s.pod(syn().mss(1_460));
    s.irs += 50_000;
    s.pod(syn().mss(600));
    assert_eq!(s.connects().len(), 1);
    s.upstream_connects();
    s.expect(SYN | ACK).ack(1);
    s.pod(ack(1, 1));
    s.upstream_sends(&[1; 2_000]);
    s.expect(ACK).len_is(600);
}

#[test]
fn a_syn_with_fin_or_rst_opens_nothing() {
    for flags in [SYN | FIN, SYN | RST, SYN | FIN | RST, SYN | FIN | ACK] {
        let mut s = Script::new();
        s.pod(seg(flags, 0, 7));
        assert_eq!((s.connects().len(), s.flows()), (0, 0), "flags {flags:#x}");
        assert!(s.all().iter().all(|seen| seen.has(RST)));
    }
}

#[test]
fn a_syn_with_fin_does_not_replace_a_pending_one() {
    let mut s = Script::new();
    s.dial(Dial::Never);
    s.pod(syn());
    s.pod(seg(SYN | FIN, 500, 0));
    s.upstream_connects();
    s.expect(SYN | ACK).ack(1);
}

#[test]
fn a_syn_ack_out_of_nowhere_is_reset() {
    let mut s = Script::new();
    s.pod(seg(SYN | ACK, 0, 4_711));
    s.expect(RST).seq(4_711);
    s.gone();
}

#[test]
fn octets_on_the_syn_are_not_acknowledged_and_come_again() {
    let mut s = Script::new();
    s.pod(syn().payload(b"hello"));
    s.expect(SYN | ACK).ack(1);
    s.pod(data(1, 1, b"hello"));
    s.expect(ACK).ack(6);
    s.upstream_got(b"hello");
}

#[test]
fn the_syn_ack_backs_off_and_ends() {
    let mut s = Script::new();
    s.pod(full_syn());
    s.expect(SYN | ACK);
    for due in [1, 2, 4, 8, 16] {
        assert_eq!(s.wait(secs(60)), secs(due));
        s.expect(SYN | ACK).seq(0).ack(1);
    }
    s.after(secs(33));
    assert_eq!(s.record().close, CloseReason::PodSilent);
    s.gone();
}

#[test]
fn a_syn_sent_again_gets_the_same_syn_ack() {
    let mut s = Script::new();
    s.pod(full_syn());
    let first = s.expect(SYN | ACK);
    s.after(ms(300));
    s.pod(full_syn());
    let second = s.expect(SYN | ACK);
    assert_eq!(
        (second.seq, second.ack, second.mss, second.window),
        (first.seq, first.ack, first.mss, first.window)
    );
    s.quiet();
    assert_eq!(s.connects().len(), 1);
}

#[test]
fn another_syn_on_a_half_open_flow_is_challenged_and_the_pods_reset_frees_it() {
    for new in [900_000u32, 2_000_000] {
        let mut s = Script::new();
        s.pod(syn());
        s.expect(SYN | ACK);
        let old = s.irs;
        // The pod has forgotten the first SYN and sends another.
        s.pod(seg(SYN, new.wrapping_sub(old), 0));
        s.expect(ACK).seq(1).ack(1);
        // It answers what it cannot place with a reset (RFC 9293 3.10.7.3).
        s.pod(rst(1));
        assert_eq!(s.flows(), 0);
        s.begin_anew(new);
        s.pod(syn());
        s.expect(SYN | ACK).ack(1);
    }
}

#[test]
fn a_reset_cancels_a_pending_connect() {
    for seq in [0, 1] {
        let mut s = Script::new();
        s.dial(Dial::Never);
        s.pod(syn());
        s.pod(seg(RST, seq, 0));
        assert_eq!(s.record().close, CloseReason::Abandoned);
        s.gone();
    }
}

#[test]
fn a_reset_elsewhere_does_not_cancel_a_pending_connect() {
    let mut s = Script::new();
    s.dial(Dial::Never);
    s.pod(syn());
    for seq in [2, 1_000, u32::MAX] {
        s.pod(rst(seq));
    }
    assert_eq!(s.flows(), 1);
    s.upstream_connects();
    s.expect(SYN | ACK);
}

#[test]
fn an_ack_before_our_syn_ack_is_reset() {
    let mut s = Script::new();
    s.dial(Dial::Never);
    s.pod(syn());
    s.pod(ack(1, 77));
    s.expect(RST).seq(77);
    s.upstream_connects();
    s.expect(SYN | ACK);
}

#[test]
fn a_wrong_ack_of_the_syn_ack_is_reset_and_the_handshake_goes_on() {
    let mut s = Script::new();
    s.pod(syn());
    s.expect(SYN | ACK);
    for wrong in [0, 2, 1_000, u32::MAX] {
        s.pod(ack(1, wrong));
        s.expect(RST).seq(wrong);
    }
    s.pod(ack(1, 1));
    s.quiet();
    s.upstream_sends(b"hi");
    s.expect(ACK).payload(b"hi");
}

#[test]
fn a_reset_of_the_half_open_flow_ends_it() {
    let mut s = Script::new();
    s.pod(syn());
    s.expect(SYN | ACK);
    s.pod(rst(1));
    assert_eq!(s.record().close, CloseReason::ResetByPod);
    s.gone();
}

#[test]
fn a_reset_beside_the_number_does_not_end_the_half_open_flow() {
    let mut s = Script::new();
    s.pod(syn());
    s.expect(SYN | ACK);
    s.pod(rst(2));
    s.expect(ACK).seq(1).ack(1);
    s.pod(rst(u32::MAX));
    s.quiet();
    s.pod(ack(1, 1));
    assert_eq!(s.counters().tcp_opened, 1);
}

#[test]
fn the_third_segment_may_carry_octets() {
    let mut s = Script::new();
    s.pod(syn());
    s.expect(SYN | ACK);
    s.pod(data(1, 1, b"GET"));
    s.expect(ACK).ack(4);
    s.upstream_got(b"GET");
}

#[test]
fn the_third_segment_may_carry_octets_and_the_fin() {
    let mut s = Script::new();
    s.pod(syn());
    s.expect(SYN | ACK);
    s.pod(fin(1, 1).payload(b"all"));
    s.expect(ACK).ack(5);
    s.upstream_got(b"all");
    assert!(s.upstream().shut);
    s.upstream_sends(b"answer");
    s.expect(ACK).payload(b"answer");
    s.upstream_closes();
    s.expect(FIN | ACK).seq(7);
    s.pod(ack(5, 8));
    assert_eq!(s.record().close, CloseReason::Finished);
    s.gone();
}

#[test]
fn a_lost_third_segment_is_made_good_by_data() {
    let mut s = Script::new();
    s.pod(syn());
    s.expect(SYN | ACK);
    s.after(ms(1_000));
    s.expect(SYN | ACK);
    s.pod(data(1, 1, b"late"));
    s.expect(ACK).ack(5);
    s.upstream_got(b"late");
    s.after(secs(30));
    s.quiet();
}

#[test]
fn octets_out_of_order_complete_the_handshake_and_wait() {
    let mut s = Script::new();
    s.pod(syn().sack_ok());
    s.expect(SYN | ACK);
    s.pod(data(4, 1, b"def"));
    s.expect(ACK).ack(1).sacks(&[(4, 7)]);
    s.pod(data(1, 1, b"abc"));
    s.expect(ACK).ack(7);
    s.upstream_got(b"abcdef");
}

#[test]
fn what_the_server_says_first_waits_for_the_third_segment() {
    let mut s = Script::new();
    s.engine.script =
        Box::new(|| crate::common::Upstream { to_send: b"220 ready".to_vec().into(), ..Default::default() });
    s.pod(syn());
    s.expect(SYN | ACK);
    s.quiet();
    s.pod(ack(1, 1));
    s.expect(ACK).seq(1).payload(b"220 ready");
}

#[test]
fn an_upstream_that_dies_before_the_third_segment_resets() {
    let mut s = Script::new();
    s.pod(syn());
    s.expect(SYN | ACK);
    s.upstream_resets();
    s.expect(RST | ACK).seq(1).ack(1);
    s.gone();
}

#[test]
fn initial_sequence_numbers_say_nothing_about_each_other() {
    let mut numbers = Vec::new();
    let mut s = Script::new();
    for port in 0..200 {
        s.reconnect_from(20_000 + port, 1);
        s.pod(syn());
        s.expect(SYN | ACK);
        numbers.push(s.iss.expect("an ISS"));
    }
    let mut distances: Vec<_> = numbers.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    distances.sort_unstable();
    distances.dedup();
    assert!(distances.len() > 195, "the numbers follow one another");
    let close = numbers.windows(2).filter(|pair| pair[1].wrapping_sub(pair[0]) < 1 << 20).count();
    assert!(close < 5, "{close} of 200 are close together");
}

#[test]
fn another_seed_gives_other_numbers_and_the_same_ends_move_with_the_clock() {
    let number = |seed: u8, wait: u64| {
        let mut config = crate::common::config(crate::common::allow_all());
        config.seed = [seed; 16];
        let mut s = Script::with(config);
        s.after(secs(wait));
        s.pod(syn());
        s.expect(SYN | ACK);
        s.iss.expect("an ISS")
    };
    assert_ne!(number(1, 0), number(2, 0));
    assert_eq!(
        number(1, 10).wrapping_sub(number(1, 0)),
        2_500_000,
        "RFC 9293 3.4.1: a clock of 4 microseconds"
    );
}

#[test]
fn timestamps_begin_at_an_offset_of_the_flows_own() {
    let value = |port: u16| {
        let mut s = Script::new();
        s.pod.set_port(port);
        s.pod(full_syn());
        s.expect(SYN | ACK).ts.expect("a timestamp").0
    };
    assert_ne!(value(1_000).abs_diff(value(1_001)), 0);
}

#[test]
fn a_syn_with_a_bad_checksum_is_dropped() {
    let mut s = Script::new();
    s.pod(Seg { checksum: Checksum::Wrong, ..syn() });
    s.gone();
    assert_eq!(s.dropped(DropReason::BadChecksum), 1);
}

#[test]
fn the_handshake_measures_the_round_trip() {
    let mut s = Script::new();
    s.pod(syn());
    s.expect(SYN | ACK);
    s.after(ms(20));
    s.pod(ack(1, 1));
    s.upstream_sends(b"x");
    s.expect(ACK);
    let again = s.wait(secs(2));
    assert!(again >= ms(200) && again <= ms(300), "again after {again}");
}

#[test]
fn a_handshake_repeated_measures_nothing() {
    let mut s = Script::new();
    s.pod(syn());
    s.expect(SYN | ACK);
    s.after(ms(1_000));
    s.expect(SYN | ACK);
    s.after(ms(5));
    s.pod(ack(1, 1));
    s.upstream_sends(b"x");
    s.expect(ACK);
    assert_eq!(s.wait(secs(5)), secs(3), "RFC 6298 5.7");
}
