//! How octets become segments, and what every packet of ours looks like.

use tunproxy_testkit::packet;

use crate::common::{allow_all, config, pattern};
use crate::script::{Script, ms, secs};
use crate::segment::{ACK, FIN, PSH, RST, SYN, ack, data, syn};

#[test]
fn the_last_octets_there_are_bear_psh_and_those_before_do_not() {
    let mut s = Script::connected(syn().mss(1_000).wscale(7));
    s.upstream_sends(&[1; 3_500]);
    let pushed: Vec<_> = s.all().iter().map(|seen| seen.has(PSH)).collect();
    assert_eq!(pushed, [false, false, false, true]);
    s.upstream_sends(b"x");
    assert!(s.expect(ACK).has(PSH));
    // More than fits one packet to the kernel.
    s.pod(ack(1, 3_502));
    s.upstream_sends(&vec![1; 200_000]);
    assert_eq!(s.all().iter().filter(|seen| seen.has(PSH)).count(), 1);
    s.pod(data(1, 3_502, b"y"));
    s.wait(ms(40));
    assert!(!s.expect(ACK).has(PSH), "there is nothing to push");
}

#[test]
fn the_last_octets_bear_psh_when_they_are_sent_again() {
    let mut s = Script::connected(syn());
    s.upstream_sends(b"lost");
    s.all();
    s.wait(secs(2));
    assert!(s.expect(ACK).has(PSH));
}

#[test]
fn octets_that_had_to_wait_go_in_whole_segments() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_000), |ack| ack.win(0));
    let octets = pattern(3, 3_500);
    for octet in &octets {
        s.upstream_sends(&[*octet]);
    }
    s.quiet();
    s.pod(ack(1, 1).win(60_000));
    let lengths: Vec<_> = s.all().iter().map(|seen| seen.payload.len()).collect();
    assert_eq!(lengths, [1_000, 1_000, 1_000, 500]);
}

#[test]
fn a_large_read_goes_in_whole_segments() {
    let mut s = Script::connected(syn().mss(1_000).wscale(7));
    s.upstream_sends(&vec![1; 200_000]);
    let seen = s.all();
    assert_eq!(seen.iter().map(|seen| seen.payload.len()).sum::<usize>(), 200_000);
    assert!(seen.iter().all(|seen| seen.payload.len() == 1_000));
}

#[test]
fn a_window_beyond_sixteen_bits_is_used() {
    let mut s = Script::connected(syn().mss(1_460).wscale(14));
    s.upstream_sends(&vec![1; 1 << 20]);
    assert_eq!(s.octets(1).len(), 1 << 20);
}

#[test]
fn without_the_kernels_help_checksums_and_cuts_are_ours() {
    let mut own = config(allow_all());
    own.offload = false;
    let mut s = Script::with(own);
    s.connect(syn().mss(1_000).sack_ok());
    // The script verifies the checksum of each packet.
    let octets = pattern(6, 9_999);
    s.upstream_sends(&octets);
    assert!(s.octets(1) == octets);
    s.pod(data(101, 10_000, b"gap"));
    s.expect(ACK).ack(1);
    s.upstream_closes();
    s.expect(FIN | ACK);
    s.upstream_resets();
    s.expect(RST | ACK);
    s.gone();
}

#[test]
fn packets_forbid_fragments_and_bear_no_options_of_ip() {
    let mut s = Script::new();
    let first = syn().build((s.pod, s.remote), 77, 0);
    s.engine.inject(s.now, &first);
    let answer = &s.engine.drain()[0];
    assert_eq!(answer[0], 0x45, "a header of 20 octets");
    assert_eq!(answer[6..8], [0x40, 0], "DF, and no fragment");
    assert_eq!((answer[1], answer[8]), (0, 64), "traffic class and hop limit");
    assert_eq!(packet::next_header(answer), packet::protocol::TCP);
    assert_eq!(answer[33] & (SYN | ACK), SYN | ACK);
}
