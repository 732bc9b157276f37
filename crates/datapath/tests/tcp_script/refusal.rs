//! What the outside says, as the pod hears it.

use tunproxy_datapath::{CloseReason, DialFailure, Limits};
use tunproxy_policy::NodeDefault;
use tunproxy_policy::model::Policies;

use crate::common::{Dial, allow_all, config, policy};
use crate::script::{Script, secs};
use crate::segment::{ACK, RST, SYN, ack, data, syn};

fn failed(failure: DialFailure) -> Script {
    let mut s = Script::new();
    s.fail(failure);
    s.pod(syn().mss(1_460));
    s
}

#[test]
fn refused_is_a_reset_of_the_syn() {
    for failure in [DialFailure::Refused, DialFailure::Failed, DialFailure::Unsupported, DialFailure::Limit] {
        let mut s = failed(failure);
        s.expect(RST | ACK).seq(0).ack(1).win(0);
        s.gone();
    }
}

#[test]
fn unreachable_is_an_icmp_error_that_quotes_the_syn() {
    for (failure, code) in [(DialFailure::NetworkUnreachable, 0), (DialFailure::HostUnreachable, 1)] {
        let mut s = failed(failure);
        let (kind, quoted) = s.expect_icmp();
        assert_eq!(kind, (3, code));
        assert_eq!(quoted[9], 6);
        assert_eq!(quoted[12..20], [10, 244, 0, 5, 192, 0, 2, 1]);
        let mut transport = 40_000u16.to_be_bytes().to_vec();
        transport.extend(80u16.to_be_bytes());
        transport.extend(s.irs.to_be_bytes());
        assert_eq!(quoted[20..28], transport);
        s.gone();
    }
}

#[test]
fn timed_out_is_silence() {
    let mut s = failed(DialFailure::TimedOut);
    assert_eq!(s.record().close, CloseReason::TimedOut);
    s.gone();
}

#[test]
fn a_connect_nobody_answers_is_forgotten_in_silence() {
    let mut s = Script::new();
    s.dial(Dial::Never);
    s.pod(syn());
    s.after(secs(31));
    assert_eq!(s.record().close, CloseReason::TimedOut);
    s.gone();
    s.dial(Dial::Connect);
    s.pod(syn());
    s.expect(SYN | ACK).ack(1);
}

#[test]
fn a_connect_that_succeeds_too_late_opens_nothing() {
    let mut s = Script::new();
    s.dial(Dial::Never);
    s.pod(syn());
    s.after(secs(31));
    s.upstream_connects();
    s.upstream_fails(DialFailure::Refused);
    s.gone();
}

#[test]
fn a_refused_syn_may_be_tried_again() {
    let mut s = failed(DialFailure::Refused);
    s.expect(RST | ACK);
    s.dial(Dial::Connect);
    s.pod(syn());
    s.expect(SYN | ACK);
    s.pod(ack(1, 1));
    s.pod(data(1, 1, b"now"));
    s.expect(ACK).ack(4);
    s.upstream_got(b"now");
}

#[test]
fn policy_refuses_at_once_with_a_reset() {
    let mut s = Script::with(config(policy(&Policies::default(), NodeDefault::Deny)));
    s.pod(syn());
    s.expect(RST | ACK).seq(0).ack(1);
    assert!(s.connects().is_empty());
    assert_eq!(s.record().close, CloseReason::Denied);
    s.gone();
}

#[test]
fn refusals_are_not_rationed() {
    let mut limited = config(policy(&Policies::default(), NodeDefault::Deny));
    limited.limits = Limits { errors_per_second: 10, ..Limits::default() };
    let mut s = Script::with(limited);
    for port in 0..500 {
        s.reconnect_from(10_000 + port, 5);
        s.pod(syn());
        s.expect(RST | ACK).ack(1);
    }
    let mut limited = config(allow_all());
    limited.limits = Limits { errors_per_second: 10, ..Limits::default() };
    let mut s = Script::with(limited);
    s.fail(DialFailure::Refused);
    for port in 0..500 {
        s.reconnect_from(10_000 + port, 5);
        s.pod(syn());
        s.expect(RST | ACK).ack(1);
    }
}

#[test]
fn a_refusal_does_not_need_room_in_the_tables() {
    let mut full = config(policy(&Policies::default(), NodeDefault::Deny));
    full.limits = Limits { pending: 0, half_open: 0, flows: 0, ..Limits::default() };
    let mut s = Script::with(full);
    s.pod(syn());
    s.expect(RST | ACK).seq(0).ack(1);
}
