//! The retransmission timer to the millisecond (RFC 6298). The floor is 200 ms under the variance term.

use tunproxy_datapath::Duration;

use crate::script::{Script, ms, secs};
use crate::segment::{ACK, SYN, ack, syn};

/// A connection whose handshake took `rtt`.
fn after_handshake_of(rtt: Duration) -> Script {
    let mut s = Script::new();
    s.pod(syn());
    s.expect(SYN | ACK);
    s.after(rtt);
    s.pod(ack(1, 1));
    s
}

/// Sends the octet `seq`; the pod acknowledges it after `rtt`.
fn round_trip(s: &mut Script, seq: u32, rtt: Duration) {
    s.upstream_sends(b"x");
    s.expect(ACK).seq(seq).len_is(1);
    s.after(rtt);
    s.quiet();
    s.pod(ack(1, seq + 1));
}

/// Sends the octet `seq` and says when it comes again.
fn timeout(s: &mut Script, seq: u32) -> Duration {
    s.upstream_sends(b"x");
    s.expect(ACK).seq(seq).len_is(1);
    let waited = s.wait(secs(130));
    s.expect(ACK).seq(seq).len_is(1);
    waited
}

#[test]
fn the_first_measurement_counts_threefold() {
    let mut s = after_handshake_of(ms(200));
    assert_eq!(timeout(&mut s, 1), ms(600), "200 + 4 * 100");
}

#[test]
fn the_next_moves_the_variance_before_the_mean() {
    let mut s = after_handshake_of(ms(200));
    round_trip(&mut s, 1, ms(400));
    // Variance: 3/4 * 100 + 1/4 * |200 - 400|; mean: 7/8 * 200 + 1/8 * 400.
    assert_eq!(timeout(&mut s, 2), ms(225 + 4 * 125));
}

#[test]
fn a_steady_path_ends_at_the_floor_above_its_mean() {
    let mut s = after_handshake_of(ms(300));
    for seq in 1..40 {
        round_trip(&mut s, seq, ms(300));
    }
    let waited = timeout(&mut s, 40);
    assert!(waited >= ms(500) && waited <= ms(501), "{waited}");
}

#[test]
fn a_handshake_that_timed_out_leaves_three_seconds() {
    let mut s = after_handshake_of(ms(1_100));
    s.expect(SYN | ACK);
    assert_eq!(timeout(&mut s, 1), secs(3));
    // The first measurement takes its place.
    s.pod(ack(1, 2));
    round_trip(&mut s, 2, ms(40));
    assert_eq!(timeout(&mut s, 3), ms(240));
}

#[test]
fn an_acknowledgment_of_everything_stops_the_timer() {
    let mut s = after_handshake_of(ms(10));
    round_trip(&mut s, 1, ms(10));
    // Were it not stopped, it would fire until the pod counts as gone.
    s.after(secs(5_000));
    s.quiet();
    assert_eq!(s.flows(), 1);
}
