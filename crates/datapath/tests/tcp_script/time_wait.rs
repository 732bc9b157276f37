//! TIME-WAIT: strays are answered, a new connection may come.

use std::sync::Arc;

use tunproxy_datapath::{Cx, Instant};
use tunproxy_policy::model::Policies;
use tunproxy_policy::{NodeDefault, WorkloadPolicy};

use crate::script::{Script, ms, secs};
use crate::segment::{ACK, FIN, RST, SYN, Seg, ack, data, fin, rst, seg, syn};

/// In TIME-WAIT; the pod's next number is 2, ours too.
fn waiting() -> Script {
    let mut s = Script::connected(syn());
    s.close(true, 1, 1);
    s
}

fn waiting_with_timestamps(clock: u32) -> Script {
    let mut s = Script::new();
    s.connect_with(syn().ts(clock, 0), |ack| ack.ts(clock, 0));
    s.upstream_closes();
    s.expect(FIN | ACK);
    s.pod(fin(1, 2).ts(clock, 0));
    s.expect(ACK);
    s
}

fn set_policy(s: &mut Script, policy: Arc<WorkloadPolicy>) {
    let cx = &mut Cx { now: s.now, pool: &mut s.engine.pool };
    s.engine.stack.set_policy(cx, policy);
    s.settle();
}

/// Whether `syn` opens a connection.
fn opens(mut s: Script, irs: u32, syn: Seg) -> bool {
    let old = s.irs;
    s.window_may_shrink = true;
    s.pod(Seg { seq: irs.wrapping_sub(old), ..syn });
    let seen = s.all().pop().expect("an answer");
    seen.has(SYN)
}

#[test]
fn the_fin_again_is_acknowledged_again_and_the_wait_begins_anew() {
    let mut s = waiting();
    for _ in 0..5 {
        s.after(secs(40));
        s.pod(fin(1, 2));
        s.expect(ACK).seq(2).ack(2);
    }
}

#[test]
fn the_wait_ends_after_a_minute() {
    let mut s = waiting();
    s.after(secs(59));
    s.pod(data(2, 2, b"stray"));
    s.expect(ACK).seq(2).ack(2);
    s.after(secs(2));
    s.pod(data(2, 2, b"stray"));
    s.expect(RST).seq(2);
    assert_eq!(s.engine.stack.poll_at(), None, "nothing is left to wait for");
}

#[test]
fn a_reset_does_not_end_the_wait() {
    let mut s = waiting();
    s.pod(rst(2));
    s.pod(seg(RST | ACK, 2, 2));
    s.quiet();
    s.pod(fin(1, 2));
    s.expect(ACK).seq(2).ack(2);
}

#[test]
fn the_last_ack_of_a_simultaneous_close_is_not_answered() {
    let mut s = waiting();
    s.pod(ack(2, 2));
    s.quiet();
}

#[test]
fn a_newer_syn_opens_a_new_connection() {
    let s = waiting();
    let next = s.irs + 3;
    assert!(opens(s, next, syn()));
}

#[test]
fn an_old_syn_is_answered_with_an_ack() {
    let s = waiting();
    let old = s.irs;
    assert!(!opens(s, old, syn()));
    let s = waiting();
    let older = s.irs - 70_000;
    assert!(!opens(s, older, syn()));
}

#[test]
fn a_newer_timestamp_opens_whatever_the_number() {
    for irs in [1u32, 1_000_000, 0x9000_0000] {
        assert!(opens(waiting_with_timestamps(1_000), irs, syn().ts(1_001, 0)), "{irs}");
    }
}

#[test]
fn an_older_timestamp_does_not_open_whatever_the_number() {
    assert!(!opens(waiting_with_timestamps(1_000), 5_000_000, syn().ts(999, 0)));
}

#[test]
fn the_same_timestamp_opens_by_the_number() {
    assert!(opens(waiting_with_timestamps(1_000), 5_000_000, syn().ts(1_000, 0)));
    assert!(!opens(waiting_with_timestamps(1_000), 900_000, syn().ts(1_000, 0)));
}

#[test]
fn the_new_connection_works_and_waits_again() {
    let mut s = waiting();
    for round in 1..20 {
        s.after(ms(10));
        s.begin_anew(1_000_000 + round * 1_000);
        s.connect(syn());
        s.pod(data(1, 1, b"again"));
        s.expect(ACK).ack(6);
        s.upstream_got(b"again");
        s.close(true, 6, 1);
    }
}

#[test]
fn a_syn_with_fin_opens_nothing() {
    let mut s = waiting();
    s.pod(seg(SYN | FIN, 5_000, 0));
    assert!(s.all().iter().all(|seen| !seen.has(SYN)));
    assert_eq!(s.flows(), 0);
    s.pod(fin(1, 2));
    s.expect(ACK).seq(2).ack(2);
}

#[test]
fn a_flood_of_fins_leaves_nothing_behind() {
    let mut s = waiting();
    for _ in 0..20_000 {
        s.pod(fin(1, 2));
        s.all();
    }
    s.after(secs(61));
    assert_eq!(s.engine.stack.poll_at(), None);
}

#[test]
fn the_table_is_bounded_and_the_oldest_gives_way() {
    let mut config = crate::common::config(crate::common::allow_all());
    config.limits.time_wait = 10;
    let mut s = Script::with(config);
    for port in 0..30 {
        s.reconnect_from(10_000 + port, 5);
        s.connect(syn());
        s.close(true, 1, 1);
        s.after(ms(1));
    }
    s.pod(fin(1, 2));
    s.expect(ACK).ack(2);
    s.pod.set_port(10_000);
    s.pod(fin(1, 2));
    s.expect(RST);
}

#[test]
fn the_side_that_closes_last_does_not_wait() {
    let mut s = Script::connected(syn());
    s.close(false, 1, 1);
    assert_eq!(s.engine.stack.poll_at(), None);
    s.pod(ack(2, 2));
    s.expect(RST).seq(2);
}

#[test]
fn the_new_connections_numbers_are_above_those_of_the_old() {
    let mut s = Script::connected(syn().mss(1_460).wscale(10));
    // Faster than the clock of our initial numbers: it does not move at all.
    let octets = vec![1; 3_000_000];
    s.upstream_sends(&octets);
    s.all();
    s.pod(ack(1, 3_000_001));
    s.close(true, 1, 3_000_001);
    let last = s.iss.expect("an ISS").wrapping_add(3_000_002);
    let next = s.irs + 1_000;
    s.begin_anew(next);
    // A SYN that policy refuses opens nothing and does not use the place up.
    set_policy(&mut s, crate::common::policy(&Policies::default(), NodeDefault::Deny));
    s.pod(syn());
    s.expect(RST | ACK);
    set_policy(&mut s, crate::common::allow_all());
    s.pod(syn());
    s.expect(SYN | ACK).ack(1);
    let above = s.iss.expect("an ISS").wrapping_sub(last);
    assert!((1..1 << 20).contains(&above), "{above} above the last");
}

#[test]
fn where_the_clock_is_ahead_it_gives_the_number() {
    let number = |used: bool| {
        let mut s = Script::new();
        if used {
            s.connect(syn());
            s.close(true, 1, 1);
        }
        s.now = Instant::from_secs(30);
        s.begin_anew(2_000_000);
        s.pod(syn());
        s.expect(SYN | ACK);
        s.iss.expect("an ISS")
    };
    assert_eq!(number(true), number(false));
}
