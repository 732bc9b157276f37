//! Options: where they may stand, what is made of them, and which of ours go where.

use crate::common::{allow_all, config, pattern};
use crate::script::{Script, ms};
use crate::segment::{ACK, FIN, RST, SYN, ack, data, fin, syn};

/// How long the first segment of a long answer is.
fn first_segment(s: &mut Script) -> usize {
    s.upstream_sends(&[7; 4_000]);
    s.all()[0].payload.len()
}

#[test]
fn what_stands_behind_the_end_of_the_list_is_padding() {
    let mut s = Script::new();
    s.pod(syn().mss(900).raw(&[0, 2, 4, 1, 0, 4, 2, 0]));
    assert!(!s.expect(SYN | ACK).sack_ok);
    s.pod(ack(1, 1));
    assert_eq!(first_segment(&mut s), 900);
}

#[test]
fn options_need_no_alignment() {
    for before in 1..4 {
        let mut s = Script::new();
        s.pod(syn().raw(&[1; 3][..before]).raw(&[2, 4, 3, 32]).raw(&[8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 4, 2]));
        let answer = s.expect(SYN | ACK);
        assert!(answer.sack_ok, "{before} octets before");
        assert_eq!(answer.ts.map(|(_, echo)| echo), Some(9));
        s.pod(ack(1, 1).ts(10, 0));
        assert_eq!(first_segment(&mut s), 800 - 12);
    }
}

#[test]
fn any_segment_may_bear_any_option() {
    let unknown = [254, 6, 0xde, 0xad, 1, 2, 77, 2];
    let mut s = Script::new();
    s.pod(syn().raw(&unknown).mss(1_000));
    s.expect(SYN | ACK);
    s.pod(ack(1, 1).raw(&unknown));
    // What belongs on a SYN changes nothing later.
    s.pod(data(1, 1, b"abc").raw(&unknown).mss(100).wscale(14).sack_ok());
    s.expect(ACK).ack(4);
    assert_eq!(first_segment(&mut s), 1_000);
    s.pod(ack(4, 4_001).win(2_000));
    s.upstream_sends(&[1; 10_000]);
    assert_eq!(s.octets(4_001).len(), 2_000);
    s.pod(fin(4, 6_001).raw(&unknown).win(0));
    s.expect(ACK).ack(5).sacks(&[]);
    s.upstream_got(b"abc");
    assert!(s.upstream().shut);
}

#[test]
fn only_our_syn_bears_the_options_of_a_syn() {
    let mut s = Script::new();
    s.connect_with(syn().mss(1_460).sack_ok().wscale(7).ts(5, 0), |ack| ack.ts(5, 0));
    s.pod(data(101, 1, b"gap").ts(6, 0));
    s.upstream_sends(&pattern(1, 5_000));
    s.after(ms(500));
    s.upstream_closes();
    s.pod(ack(1, 5_001).ts(7, 0));
    s.upstream_resets();
    let seen = s.all();
    for flags in [ACK, FIN | ACK, RST | ACK] {
        assert!(seen.iter().any(|seen| seen.flags & !crate::segment::PSH == flags), "{flags:#x}");
    }
    for seen in seen {
        assert_eq!((seen.mss, seen.wscale, seen.sack_ok), (None, None, false), "{seen:?}");
    }
}

#[test]
fn the_mss_told_is_what_the_mtu_leaves() {
    for mtu in [576, 1_280, 1_500, 9_000] {
        let mut config = config(allow_all());
        config.mtu = mtu;
        let mut s = Script::with(config);
        s.pod(syn().mss(1_000).ts(1, 0));
        assert_eq!(s.expect(SYN | ACK).mss, Some(mtu - 40), "IPv4, whatever options segments will bear");
        (s.pod, s.remote) = (Script::v6().pod, Script::v6().remote);
        s.begin_anew(5);
        s.pod(syn());
        assert_eq!(s.expect(SYN | ACK).mss, Some(mtu - 60), "IPv6");
    }
}

#[test]
fn timestamps_nobody_agreed_on_are_ignored() {
    let mut s = Script::connected(syn());
    for (number, clock) in [1_000_000, 5, 0x9000_0000, 6].into_iter().enumerate() {
        let seq = 1 + number as u32;
        s.pod(data(seq, 1, b"x").ts(clock, 0));
        assert_eq!(s.expect(ACK).ack(seq + 1).ts, None);
    }
    s.upstream_got(b"xxxx");
}
