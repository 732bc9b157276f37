//! The core once more over IPv6.

use tunproxy_datapath::{DialFailure, DropReason};
use tunproxy_policy::NodeDefault;
use tunproxy_policy::model::Policies;
use tunproxy_testkit::packet::Checksum;

use crate::common::pattern;
use crate::script::{Script, ms, secs};
use crate::segment::{ACK, FIN, RST, SYN, Seg, ack, data, fin, rst, seg, syn};

fn connected() -> Script {
    let mut s = Script::v6();
    s.connect(syn().mss(1_440).sack_ok().wscale(7));
    s
}

#[test]
fn the_handshake_names_the_mss_of_the_larger_header() {
    let mut s = Script::v6();
    s.pod(syn().mss(65_535).wscale(7));
    assert_eq!(s.expect(SYN | ACK).mss, Some(1_440));
    s.pod(ack(1, 1));
    s.upstream_sends(&pattern(1, 20_000));
    assert!(s.octets(1) == pattern(1, 20_000));
}

#[test]
fn without_an_mss_segments_are_of_1220() {
    let mut s = Script::v6();
    s.connect(syn());
    s.upstream_sends(&[1; 5_000]);
    s.expect(ACK).len_is(1_220);
}

#[test]
fn octets_both_ways_and_the_close() {
    let mut s = connected();
    s.pod(data(1, 1, b"question"));
    s.expect(ACK).ack(9);
    s.upstream_got(b"question");
    s.upstream_sends(b"answer");
    s.expect(ACK).payload(b"answer");
    s.pod(ack(9, 7));
    s.close(true, 9, 7);
    s.pod(fin(9, 8));
    s.expect(ACK).ack(10);
}

#[test]
fn gaps_are_told_and_filled() {
    let mut s = connected();
    s.pod(data(101, 1, &[1; 100]));
    s.expect(ACK).ack(1).sacks(&[(101, 201)]);
    s.pod(data(1, 1, &[0; 100]));
    s.expect(ACK).ack(201);
}

#[test]
fn losses_come_again() {
    let mut s = connected();
    s.upstream_sends(&[1; 3_000]);
    s.all();
    s.wait(ms(10));
    s.expect(ACK).seq(2_881).len_is(120);
    assert!(s.wait(secs(2)) >= ms(200));
    s.expect(ACK).seq(1).len_is(1_440);
}

#[test]
fn refused_unreachable_and_timed_out() {
    let mut s = Script::v6();
    s.fail(DialFailure::Refused);
    s.pod(syn());
    s.expect(RST | ACK).seq(0).ack(1);
    for (failure, code) in [(DialFailure::NetworkUnreachable, (1, 0)), (DialFailure::HostUnreachable, (1, 3))]
    {
        s.fail(failure);
        s.pod(syn());
        let (kind, quoted) = s.expect_icmp();
        assert_eq!((kind, quoted[6]), (code, 6));
        assert_eq!(quoted[44..48], s.irs.to_be_bytes());
    }
    s.fail(DialFailure::TimedOut);
    s.pod(syn());
    s.gone();
}

#[test]
fn policy_refuses_with_a_reset() {
    let policy = crate::common::policy(&Policies::default(), NodeDefault::Deny);
    let mut s = Script::with(crate::common::config(policy));
    (s.pod, s.remote) = (Script::v6().pod, Script::v6().remote);
    s.pod(syn());
    s.expect(RST | ACK).seq(0).ack(1);
}

#[test]
fn the_window_is_respected_and_probed() {
    let mut s = Script::v6();
    s.connect_with(syn().mss(1_000), |ack| ack.win(0));
    s.upstream_sends(b"x");
    s.wait(secs(2));
    s.expect(ACK).seq(0);
    s.pod(ack(1, 1).win(10));
    s.expect(ACK).payload(b"x");
}

#[test]
fn blind_resets_are_challenged() {
    let mut s = connected();
    s.pod(rst(100));
    s.expect(ACK).seq(1).ack(1);
    s.pod(rst(1));
    s.gone();
}

#[test]
fn strays_checksums_land_and_loopback() {
    let mut s = Script::v6();
    s.pod(ack(1, 55));
    s.expect(RST).seq(55);
    s.pod(Seg { checksum: Checksum::Wrong, ..syn() });
    assert_eq!(s.dropped(DropReason::BadChecksum), 1);
    let remote = s.remote;
    s.remote = s.pod;
    s.pod(syn());
    assert_eq!(s.dropped(DropReason::Land), 1);
    s.remote = "[::1]:80".parse().expect("an address");
    s.pod(syn());
    s.expect(RST | ACK);
    s.remote = "[ff02::1]:80".parse().expect("an address");
    s.pod(syn());
    s.remote = remote;
    assert!(s.connects().is_empty());
    s.pod(seg(RST, 9, 0));
    s.gone();
}

#[test]
fn a_half_close_both_ways() {
    let mut s = connected();
    s.pod(fin(1, 1));
    s.expect(ACK).ack(2);
    s.upstream_sends(b"late");
    s.expect(ACK).payload(b"late");
    s.upstream_closes();
    s.expect(FIN | ACK).seq(5);
    s.pod(ack(2, 6));
    s.gone();
}
