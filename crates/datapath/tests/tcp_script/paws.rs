//! Timestamps (RFC 7323).

use tunproxy_datapath::DropReason;

use crate::script::{Script, ms, secs};
use crate::segment::{ACK, FIN, RST, SYN, Seg, ack, data, fin, rst, seg, syn};

/// A connection with timestamps; the pod's clock stands at `clock`.
fn stamped(clock: u32) -> Script {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_460).sack_ok().ts(clock, 0), |ack| ack.ts(clock, 0));
    s
}

#[test]
fn every_segment_bears_a_timestamp_that_echoes_the_pods() {
    let mut s = stamped(500);
    s.pod(data(1, 1, b"abc").ts(510, 0));
    assert_eq!(s.expect(ACK).ts.expect("a timestamp").1, 510);
    s.upstream_sends(b"x");
    assert_eq!(s.expect(ACK).ts.expect("a timestamp").1, 510);
    s.upstream_closes();
    assert_eq!(s.expect(FIN | ACK).ts.expect("a timestamp").1, 510);
}

#[test]
fn our_clock_runs_in_milliseconds() {
    let mut s = stamped(1);
    s.pod(data(1, 1, b"a").ts(2, 0));
    let first = s.expect(ACK).ts.expect("a timestamp").0;
    s.after(ms(1_234));
    s.pod(data(2, 1, b"b").ts(3, 0));
    let second = s.expect(ACK).ts.expect("a timestamp").0;
    assert_eq!(second.wrapping_sub(first), 1_234);
}

#[test]
fn an_old_timestamp_is_dropped_and_answered() {
    let mut s = stamped(1_000);
    s.pod(data(1, 1, b"abc").ts(1_010, 0));
    s.expect(ACK);
    s.pod(data(4, 1, b"evil").ts(900, 0));
    let answer = s.expect(ACK);
    answer.ack(4);
    assert_eq!(answer.ts.expect("a timestamp").1, 1_010, "TS.Recent is not the old one");
    assert_eq!(s.dropped(DropReason::OldTimestamp), 1);
    s.upstream_got(b"abc");
    s.pod(data(4, 1, b"def").ts(1_010, 0));
    s.expect(ACK).ack(7);
}

#[test]
fn timestamps_wrap() {
    let mut s = stamped(u32::MAX - 1);
    for (number, clock) in [u32::MAX, 0, 1, 50].into_iter().enumerate() {
        s.pod(data(1 + number as u32, 1, b"x").ts(clock, 0));
        assert_eq!(s.expect(ACK).ack(2 + number as u32).ts.expect("a timestamp").1, clock);
    }
    s.pod(data(5, 1, b"x").ts(u32::MAX, 0));
    s.expect(ACK).ack(5);
    assert_eq!(s.dropped(DropReason::OldTimestamp), 1);
}

#[test]
fn a_reset_is_exempt() {
    let mut s = stamped(1_000);
    s.pod(rst(1).ts(1, 0));
    s.gone();
}

#[test]
fn a_segment_without_timestamp_passes() {
    let mut s = stamped(1_000);
    s.pod(data(1, 1, b"abc"));
    s.expect(ACK).ack(4);
    s.upstream_got(b"abc");
}

#[test]
fn a_segment_out_of_order_does_not_set_the_echo() {
    let mut s = stamped(1_000);
    s.pod(data(101, 1, b"later").ts(1_050, 0));
    assert_eq!(s.expect(ACK).ts.expect("a timestamp").1, 1_000);
    s.pod(data(1, 1, &[1; 100]).ts(1_040, 0));
    assert_eq!(s.expect(ACK).ts.expect("a timestamp").1, 1_040);
}

#[test]
fn after_twenty_four_days_an_old_timestamp_says_nothing() {
    let mut s = stamped(1_000);
    s.after(ms(1));
    let day = secs(24 * 3_600);
    for _ in 0..25 {
        for _ in 0..12 {
            s.after(day / 12);
            // Keepalives are answered without a timestamp, so that TS.Recent stays.
            if !s.all().is_empty() {
                s.pod(ack(1, 1));
            }
        }
    }
    s.pod(data(1, 1, b"alive").ts(900, 0));
    s.expect(ACK).ack(6);
    s.upstream_got(b"alive");
}

#[test]
fn an_old_syn_of_the_same_ends_is_answered_with_an_ack() {
    let mut s = stamped(1_000);
    s.pod(seg(SYN, 0, 0).ts(900, 0));
    s.expect(ACK).seq(1).ack(1);
    assert_eq!(s.flows(), 1);
}

#[test]
fn in_the_handshake_old_timestamps_do_not_establish() {
    let mut s = Script::new();
    s.pod(syn().ts(1_000, 0));
    s.expect(SYN | ACK);
    s.pod(ack(1, 1).ts(10, 0));
    assert_eq!(s.counters().tcp_opened, 0);
    s.pod(ack(1, 1).ts(1_000, 0));
    assert_eq!(s.counters().tcp_opened, 1);
}

#[test]
fn malformed_timestamps_are_none() {
    let mut s = stamped(1_000);
    let raw = |segment: Seg| segment.raw(&[8, 6, 0, 0, 0, 1, 1, 1]);
    s.pod(raw(data(1, 1, b"abc")));
    s.expect(ACK).ack(4);
}

#[test]
fn an_old_fin_does_not_close() {
    let mut s = stamped(1_000);
    s.pod(fin(1, 1).ts(5, 0));
    s.expect(ACK).ack(1);
    assert!(!s.upstream().shut);
}

#[test]
fn the_last_ack_and_those_of_time_wait_bear_timestamps() {
    let mut s = stamped(1_000);
    s.upstream_closes();
    s.expect(FIN | ACK);
    s.pod(fin(1, 2).ts(1_005, 0));
    let last = s.expect(ACK);
    assert_eq!(last.ack(2).ts.expect("a timestamp").1, 1_005);
    assert!(last.window > 0);
    s.after(ms(700));
    s.pod(fin(1, 2).ts(1_006, 0));
    let again = s.expect(ACK);
    assert_eq!(again.ts.expect("a timestamp").0.wrapping_sub(last.ts.expect("a timestamp").0), 700);
}

#[test]
fn of_segments_acknowledged_together_the_first_is_echoed() {
    let mut s = stamped(1_000);
    s.pod_at_once(&[data(1, 1, b"abc").ts(1_010, 0), data(4, 1, b"def").ts(1_020, 0)]);
    let answer = s.expect(ACK);
    assert_eq!(answer.ack(7).ts.expect("a timestamp").1, 1_010);
    s.pod(data(7, 1, b"ghi").ts(1_030, 0));
    assert_eq!(s.expect(ACK).ts.expect("a timestamp").1, 1_030);
}

#[test]
fn our_reset_bears_a_timestamp() {
    let mut s = stamped(1_000);
    s.after(ms(50));
    let before = {
        s.upstream_sends(b"x");
        s.expect(ACK).ts.expect("a timestamp").0
    };
    s.after(ms(70));
    s.upstream_resets();
    let (value, echo) = s.expect(RST | ACK).ts.expect("a timestamp");
    assert_eq!((value.wrapping_sub(before), echo), (70, 1_000));
}
