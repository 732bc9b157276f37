//! A link behind the pod that is smaller than our segments (RFC 1191, RFC 8201, RFC 5927).

use tunproxy_datapath::{DropReason, StackConfig};
use tunproxy_testkit::packet;

use crate::common::{allow_all, config, pattern};
use crate::script::{Script, secs};
use crate::segment::{ACK, FIN, ack, seg, syn};

/// An error of the pod that quotes our segment at `seq`, which had `length` octets with its headers.
fn too_big(s: &mut Script, seq: u32, length: u16, mtu: u32) {
    let ours = seg(ACK, seq, 1).build((s.remote, s.pod), s.iss.expect("an ISS"), s.irs);
    let v4 = s.pod.is_ipv4();
    let mut rest = mtu.to_be_bytes().to_vec();
    rest.extend(&ours[..if v4 { 28 } else { 48 }]);
    if v4 {
        rest[6..8].copy_from_slice(&length.to_be_bytes());
    }
    let kind = if v4 { [3, 4] } else { [2, 0] };
    s.packet(&packet::icmp(s.pod.ip(), s.remote.ip(), kind, &rest));
}

/// Four full segments are under way.
fn sending() -> Script {
    let mut s = Script::connected(syn().mss(1_460).sack_ok());
    s.upstream_sends(&pattern(1, 4 * 1_460));
    assert_eq!(s.octets(1).len(), 4 * 1_460);
    s
}

/// Beginnings and lengths of what went.
fn went(s: &mut Script) -> Vec<(u32, usize)> {
    s.all().iter().map(|seen| (seen.seq, seen.payload.len())).collect()
}

/// A segment is more than a read is rounded down to, and than half a window of an unscaled one.
#[test]
fn a_segment_may_be_nearly_as_large_as_the_window() {
    for mss in [65_468, 65_495] {
        let mut s = Script::with(StackConfig { mtu: 65_535, ..config(allow_all()) });
        s.connect(syn().mss(mss).win(65_535));
        for (sent, length) in [(0, 1_000), (1_000, 64_000), (65_000, 300_000)] {
            s.upstream_sends(&pattern(sent, length));
            let end = sent as u32 + length as u32;
            let mut seen = sent as u32;
            while seen < end {
                let went = went(&mut s);
                assert!(!went.is_empty(), "{seen} of {end} octets have gone");
                for (at, count) in went {
                    assert_eq!(at, seen + 1);
                    seen += count as u32;
                }
                s.pod(ack(1, 1 + seen).win(65_535));
            }
        }
    }
}

#[test]
fn what_was_too_large_goes_again_in_smaller_segments() {
    let mut s = sending();
    too_big(&mut s, 1, 1_500, 1_040);
    let again = s.all();
    let mut got = vec![0; 5_840];
    for seen in &again {
        assert!(seen.payload.len() <= 1_000, "{} octets", seen.payload.len());
        got[seen.seq as usize - 1..][..seen.payload.len()].copy_from_slice(&seen.payload);
    }
    assert!(got == pattern(1, 5_840));
    s.pod(ack(1, 5_841));
    // For the rest of the connection, and with the window that was.
    s.upstream_sends(&pattern(2, 50_000));
    let new = went(&mut s);
    assert!(new.iter().all(|&(_, len)| len <= 1_000));
    assert_eq!(new.iter().map(|&(_, len)| len).sum::<usize>(), 50_000);
}

#[test]
fn timestamps_take_their_room() {
    let mut s = Script::new();
    s.pod(syn().mss(1_460).ts(1, 0));
    s.all();
    s.pod(ack(1, 1).ts(1, 0));
    s.upstream_sends(&[1; 1_448]);
    s.expect(ACK).len_is(1_448);
    too_big(&mut s, 1, 1_500, 1_040);
    assert_eq!(went(&mut s), [(1, 988), (989, 460)]);
}

#[test]
fn one_error_for_each_segment_sends_nothing_twice() {
    let mut s = sending();
    for number in 0..4 {
        too_big(&mut s, 1 + number * 1_460, 1_500, 1_040);
    }
    assert_eq!(went(&mut s).iter().map(|&(_, len)| len).sum::<usize>(), 5_840);
    assert_eq!(s.dropped(DropReason::IcmpType), 3);
}

#[test]
fn a_router_that_names_no_mtu_means_the_next_one_below() {
    let mut s = sending();
    too_big(&mut s, 1, 1_500, 0);
    assert_eq!(went(&mut s)[0], (1, 1_452));
    too_big(&mut s, 1, 1_492, 0);
    assert_eq!(went(&mut s)[0], (1, 966));
}

#[test]
fn an_error_about_nothing_under_way_changes_nothing() {
    let mut s = sending();
    s.pod(ack(1, 1_461));
    for seq in [0, 1, 1_460, 5_841, 100_000, 0x8000_0000] {
        too_big(&mut s, seq, 1_500, 576);
    }
    s.quiet();
    // Nor does one that would make segments larger, or of another connection.
    too_big(&mut s, 1_461, 1_500, 1_500);
    too_big(&mut s, 1_461, 1_500, 9_000);
    s.pod.set_port(40_001);
    too_big(&mut s, 1_461, 1_500, 576);
    s.pod.set_port(40_000);
    s.quiet();
    assert_eq!(s.dropped(DropReason::IcmpType), 9);
    s.pod(ack(1, 5_841));
    s.upstream_sends(&[1; 1_460]);
    s.expect(ACK).len_is(1_460);
}

#[test]
fn errors_cut_short_are_dropped() {
    let mut s = sending();
    let ours = seg(ACK, 1, 1).build((s.remote, s.pod), s.iss.expect("an ISS"), s.irs);
    for length in 0..28 {
        let rest = [&[0, 0, 2, 64], &ours[..length]].concat();
        s.packet(&packet::icmp(s.pod.ip(), s.remote.ip(), [3, 4], &rest));
    }
    s.quiet();
    assert_eq!(s.dropped(DropReason::IcmpType), 28);
}

#[test]
fn however_small_the_link_segments_have_some_octets() {
    let mut s = sending();
    too_big(&mut s, 1, 1_500, 1);
    assert_eq!(went(&mut s)[0], (1, 48));
}

#[test]
fn ipv6_never_goes_below_1280() {
    let mut s = Script::v6();
    s.connect(syn().mss(1_440).sack_ok());
    s.upstream_sends(&[1; 2_880]);
    assert_eq!(went(&mut s), [(1, 1_440), (1_441, 1_440)]);
    too_big(&mut s, 1, 0, 1_400);
    assert_eq!(went(&mut s), [(1, 1_340), (1_341, 1_340), (2_681, 200)]);
    too_big(&mut s, 1, 0, 600);
    assert_eq!(went(&mut s)[0], (1, 1_220));
}

#[test]
fn a_fin_and_a_lost_segment_survive_it() {
    let mut s = sending();
    s.upstream_closes();
    s.expect(FIN | ACK);
    too_big(&mut s, 1, 1_500, 1_040);
    let again = s.all();
    assert!(again.last().is_some_and(|seen| seen.has(FIN)));
    // One of the smaller ones is lost.
    s.after(secs(2));
    assert!(s.all().iter().any(|seen| seen.seq == 1 && seen.payload.len() == 1_000));
    s.pod(ack(1, 5_842));
    s.after(secs(10));
    s.quiet();
}
