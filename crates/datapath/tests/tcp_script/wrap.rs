//! Sequence numbers wrap, in both directions, in the middle of everything.

use crate::common::pattern;
use crate::script::{Script, ms, secs};
use crate::segment::{ACK, FIN, SYN, ack, data, fin, rst, syn};

/// The pod's first octet is `before` octets from the wrap.
fn from(before: u32) -> Script {
    let mut s = Script::new();
    s.irs = 0u32.wrapping_sub(before + 1);
    s.connect(syn().mss(1_000).sack_ok());
    s
}

#[test]
fn the_syn_itself_may_be_the_last_number() {
    for irs in [u32::MAX, u32::MAX - 1, 0, 0x7fff_ffff, 0x8000_0000] {
        let mut s = Script::new();
        s.irs = irs;
        s.connect(syn());
        s.pod(data(1, 1, b"abc"));
        s.expect(ACK).ack(4);
        s.upstream_got(b"abc");
        s.close(true, 4, 1);
    }
}

#[test]
fn octets_across_the_wrap_arrive() {
    let octets = pattern(1, 10_000);
    let mut s = from(4_500);
    for at in (0..10_000).step_by(1_000) {
        s.pod(data(1 + at as u32, 1, &octets[at..at + 1_000]));
        s.expect(ACK).ack(1_001 + at as u32);
    }
    s.upstream_got(&octets);
}

#[test]
fn gaps_and_overlaps_across_the_wrap() {
    let octets = pattern(2, 3_000);
    let mut s = from(1_500);
    s.pod(data(2_001, 1, &octets[2_000..]));
    s.expect(ACK).ack(1).sacks(&[(2_001, 3_001)]);
    s.pod(data(1_001, 1, &octets[1_000..2_100]));
    s.expect(ACK).ack(1).sacks(&[(1_001, 3_001)]);
    s.pod(data(1, 1, &octets[..1_200]));
    s.expect(ACK).ack(3_001);
    s.upstream_got(&octets);
}

#[test]
fn a_reset_just_across_the_wrap_is_exact_or_challenged() {
    let mut s = from(0);
    s.pod(rst(5));
    s.expect(ACK).ack(1);
    s.pod(rst(1));
    s.gone();
}

#[test]
fn a_fin_at_the_wrap() {
    let mut s = from(3);
    s.pod(fin(1, 1).payload(b"abc"));
    s.expect(ACK).ack(5);
    assert!(s.upstream().shut);
}

/// A connection whose ISS is close below the wrap: the clock decides, so it is waited for.
fn ours_near_the_wrap(before: u32) -> Script {
    let probe = {
        let mut s = Script::new();
        s.pod(syn());
        s.expect(SYN | ACK);
        s.iss.expect("an ISS")
    };
    let mut s = Script::new();
    let missing = u64::from(u32::MAX - before - probe);
    s.now += tunproxy_datapath::Duration::from_micros(missing * 4);
    s.connect(syn().mss(1_000).sack_ok().wscale(7));
    assert!(s.iss.expect("an ISS") > u32::MAX - before - 10);
    s
}

#[test]
fn our_octets_across_the_wrap_arrive() {
    let octets = pattern(3, 60_000);
    let mut s = ours_near_the_wrap(5_000);
    s.upstream_sends(&octets);
    assert!(s.octets(1) == octets);
    s.pod(ack(1, 30_001));
    s.pod(ack(1, 60_001));
    s.after(secs(5));
    s.quiet();
    assert_eq!(s.engine.pool.held(), 0);
}

#[test]
fn a_timeout_across_the_wrap_repairs() {
    let octets = pattern(4, 6_000);
    let mut s = ours_near_the_wrap(2_500);
    s.upstream_sends(&octets);
    s.all();
    s.wait(ms(10));
    s.expect(ACK).seq(5_001).payload(&octets[5_000..]);
    s.wait(secs(2));
    let again = s.expect(ACK);
    again.seq(1);
    s.pod(ack(1, 1_001));
    s.pod(ack(1, 2_001));
    let all: Vec<_> = s.all();
    for seen in &all {
        assert!(seen.payload == octets[seen.seq as usize - 1..][..seen.payload.len()]);
    }
    s.pod(ack(1, 6_001));
    s.after(secs(5));
    s.quiet();
}

#[test]
fn sack_across_the_wrap_repairs() {
    let octets = pattern(5, 10_000);
    let mut s = ours_near_the_wrap(3_500);
    s.upstream_sends(&octets);
    s.all();
    let iss = s.iss.expect("an ISS");
    let mut option = vec![1, 1, 5, 10];
    option.extend(iss.wrapping_add(1_001).to_be_bytes());
    option.extend(iss.wrapping_add(9_001).to_be_bytes());
    s.pod(ack(1, 1).raw(&option));
    let again = s.expect(ACK);
    again.seq(1);
    assert!(again.payload == octets[..again.payload.len()]);
    assert!(s.all().iter().all(|seen| seen.seq < 1_001 || seen.seq >= 9_001));
}

#[test]
fn our_fin_at_the_wrap() {
    let mut s = ours_near_the_wrap(0);
    s.upstream_closes();
    s.expect(FIN | ACK).seq(1);
    s.wait(secs(2));
    s.expect(FIN | ACK).seq(1);
    s.pod(fin(1, 2));
    s.expect(ACK).ack(2).seq(2);
    s.gone();
}

#[test]
fn acknowledgments_out_of_range_at_the_wrap_are_ignored() {
    let mut s = ours_near_the_wrap(100);
    s.upstream_sends(&[1; 500]);
    s.all();
    s.pod(data(1, 502, b"evil"));
    s.pod(data(1, 0x8000_0000, b"evil"));
    s.upstream_got(b"");
    s.pod(data(1, 501, b"good"));
    s.upstream_got(b"good");
}
