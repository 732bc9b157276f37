//! Segments of no connection, and packets that are none of ours.

use tunproxy_datapath::{DropReason, Limits, StackConfig};
use tunproxy_testkit::packet::{self, Checksum};

use crate::common::{allow_all, config};
use crate::script::{Script, ms};
use crate::segment::{ACK, FIN, PSH, RST, SYN, Seg, ack, data, fin, rst, seg, syn};

#[test]
fn an_acknowledgment_of_nothing_is_reset_with_its_number() {
    for segment in [ack(5, 900), data(5, 900, b"mid-stream"), fin(5, 900), seg(FIN | PSH | ACK, 5, 900)] {
        let mut s = Script::new();
        s.pod(segment);
        s.expect(RST).seq(900);
        assert_eq!(s.dropped(DropReason::NoFlow), 1);
        s.gone();
    }
}

#[test]
fn a_reset_of_nothing_is_met_with_silence() {
    let mut s = Script::new();
    s.pod(rst(5));
    s.pod(seg(RST | ACK, 5, 9));
    s.gone();
}

#[test]
fn what_carries_neither_syn_nor_ack_is_dropped() {
    let mut s = Script::new();
    for flags in [0, FIN, PSH, FIN | PSH] {
        s.pod(seg(flags, 5, 0).payload(b"x"));
    }
    s.gone();
}

#[test]
fn resets_of_strays_are_rationed() {
    let mut limited = config(allow_all());
    limited.limits = Limits { errors_per_second: 10, ..Limits::default() };
    let mut s = Script::with(limited);
    for number in 0..100 {
        s.pod(ack(5, number));
    }
    assert_eq!(s.all().len(), 10);
    assert_eq!(s.dropped(DropReason::ErrorRate), 90);
    s.after(ms(500));
    for number in 0..100 {
        s.pod(ack(5, number));
    }
    assert_eq!(s.all().len(), 5);
}

#[test]
fn bad_checksums_are_dropped_in_every_state() {
    let bad = |segment: Seg| Seg { checksum: Checksum::Wrong, ..segment };
    let mut s = Script::new();
    s.pod(bad(ack(1, 5)));
    s.pod(syn());
    s.expect(SYN | ACK);
    s.pod(bad(ack(1, 1)));
    s.pod(bad(rst(1)));
    assert_eq!(s.counters().tcp_opened, 0);
    s.pod(ack(1, 1));
    s.pod(bad(data(1, 1, b"evil")));
    s.pod(bad(rst(1)));
    s.quiet();
    s.pod(data(1, 1, b"good"));
    s.expect(ACK).ack(5);
    s.upstream_got(b"good");
    assert_eq!(s.dropped(DropReason::BadChecksum), 5);
}

#[test]
fn a_bad_ip_header_checksum_is_dropped() {
    let mut s = Script::new();
    let mut packet = syn().build((s.pod, s.remote), 1, 0);
    packet[10] ^= 1;
    s.packet(&packet);
    s.gone();
    assert_eq!(s.dropped(DropReason::BadChecksum), 1);
}

#[test]
fn every_cut_of_a_packet_is_dropped() {
    let mut s = Script::new();
    let packet = syn().mss(1_460).wscale(7).build((s.pod, s.remote), 1, 0);
    for len in 0..packet.len() {
        s.packet(&packet[..len]);
    }
    s.gone();
}

#[test]
fn a_data_offset_outside_the_packet_is_dropped() {
    let mut s = Script::new();
    for offset in [0u8, 1, 4, 6, 15] {
        let mut packet = syn().build((s.pod, s.remote), 1, 0);
        packet[32] = offset << 4;
        packet::finish_checksum(&mut packet);
        s.packet(&packet);
    }
    s.gone();
    assert_eq!(s.dropped(DropReason::BadHeader), 5);
}

#[test]
fn land_opens_nothing() {
    let mut s = Script::new();
    s.remote = s.pod;
    s.pod(syn());
    s.gone();
    assert_eq!(s.dropped(DropReason::Land), 1);
}

#[test]
fn a_foreign_source_opens_nothing() {
    let mut own = config(allow_all());
    own.addresses = vec!["10.244.0.5".parse().expect("an address")];
    let mut s = Script::with(own);
    s.pod = "10.244.0.6:40000".parse().expect("an address");
    s.pod(syn());
    s.gone();
    assert_eq!(s.dropped(DropReason::ForeignSource), 1);
    s.pod = "10.244.0.5:40000".parse().expect("an address");
    s.pod(syn());
    s.expect(SYN | ACK);
}

#[test]
fn destinations_that_are_no_host_open_nothing() {
    for remote in ["255.255.255.255:80", "224.0.0.1:80", "0.0.0.0:80", "10.244.0.255:80"] {
        let broadcasts = vec![[10, 244, 0, 255].into()];
        let mut s = Script::with(StackConfig { broadcasts, ..config(allow_all()) });
        s.remote = remote.parse().expect("an address");
        s.pod(syn());
        s.gone();
        assert_eq!(s.dropped(DropReason::Multicast), 1, "{remote}");
    }
}

#[test]
fn loopback_is_refused_by_the_node() {
    let mut s = Script::new();
    s.remote = "127.0.0.1:80".parse().expect("an address");
    s.pod(syn());
    s.expect(RST | ACK).seq(0).ack(1);
    assert!(s.connects().is_empty());
}

#[test]
fn port_zero_is_dropped() {
    let mut s = Script::new();
    s.pod.set_port(0);
    s.pod(syn());
    s.pod.set_port(5);
    s.remote.set_port(0);
    s.pod(syn());
    s.gone();
}

#[test]
fn urgent_data_is_data() {
    let mut s = Script::connected(syn());
    for (urgent, seq) in [(1, 1), (0, 4), (65_535, 7), (3, 10)] {
        let segment = data(seq, 1, b"abc");
        s.pod(Seg { urgent, flags: segment.flags | crate::segment::URG, ..segment });
        s.expect(ACK).ack(seq + 3);
    }
    s.upstream_got(b"abcabcabcabc");
}

#[test]
fn reserved_bits_and_ecn_flags_change_nothing() {
    let mut s = Script::new();
    s.pod(syn().flags(SYN | 0xc0));
    let answer = s.expect(SYN | ACK);
    assert_eq!(answer.flags & 0xc0, 0, "ECN is not negotiated");
    s.pod(ack(1, 1));
    s.pod(data(1, 1, b"x").flags(ACK | PSH | 0x80));
    s.expect(ACK).ack(2);
}

#[test]
fn marks_of_congestion_change_nothing_and_we_bear_none() {
    let mut s = Script::connected(syn().flags(SYN | 0xc0));
    for (number, class) in [0x01, 0x02, 0x03, 0xb8, 0xbb].into_iter().enumerate() {
        let seq = 1 + number as u32;
        let mut packet = data(seq, 1, b"x").build((s.pod, s.remote), s.irs, s.iss.expect("an ISS"));
        packet[1] = class;
        packet::fix_ipv4_header(&mut packet);
        s.engine.inject(s.now, &packet);
        let answers = s.engine.drain();
        // An acknowledgment without ECE, in a packet that is not capable of ECN.
        assert_eq!(answers.len(), 1);
        assert_eq!((answers[0][1], answers[0][33]), (0, ACK));
    }
    s.upstream_got(b"xxxxx");
}

#[test]
fn what_the_pod_marks_is_passed_on_without_ecn() {
    let mut s = Script::new();
    let marked = |s: &mut Script, seg: Seg, class: u8| {
        let mut packet = seg.build((s.pod, s.remote), s.irs, s.iss.unwrap_or(0));
        packet[1] = class;
        packet::fix_ipv4_header(&mut packet);
        s.packet(&packet);
    };
    marked(&mut s, syn(), 0x8b);
    let (flow, target, _) = s.engine.connects.last().cloned().expect("a connect");
    assert_eq!((target.dscp, s.engine.stack.dscp(flow)), (0x88, 0x88));
    s.expect(SYN | ACK);
    marked(&mut s, ack(1, 1), 0);
    assert_eq!(s.engine.stack.dscp(flow), 0x88, "an acknowledgment says nothing of octets");
    for (number, class) in [0xb8, 0x2b, 0x03].into_iter().enumerate() {
        marked(&mut s, data(1 + number as u32, 1, b"x"), class);
        assert_eq!(s.engine.stack.dscp(flow), class & 0xfc);
    }
}

#[test]
fn octets_behind_the_ip_packet_are_not_part_of_it() {
    let mut s = Script::connected(syn());
    let mut packet = data(1, 1, b"abc").build((s.pod, s.remote), s.irs, s.iss.expect("an ISS"));
    packet.extend([9; 40]);
    s.packet(&packet);
    s.expect(ACK).ack(4);
    s.upstream_got(b"abc");
}

#[test]
fn options_of_ip_are_skipped_and_source_routes_refused() {
    // Record route, timestamp, router alert, one that nobody knows.
    for option in [&[7, 7, 4, 0, 0, 0, 0, 0][..], &[68, 8, 5, 0, 0, 0, 0, 0], &[148, 4, 0, 0], &[30, 4, 1, 2]]
    {
        let mut s = Script::new();
        let plain = syn().build((s.pod, s.remote), s.irs, 0);
        s.packet(&packet::with_ipv4_options(&plain, option));
        s.expect(SYN | ACK).ack(1);
        s.pod(ack(1, 1));
        let plain = data(1, 1, b"abc").build((s.pod, s.remote), s.irs, s.iss.expect("an ISS"));
        s.packet(&packet::with_ipv4_options(&plain, option));
        s.expect(ACK).ack(4);
        s.upstream_got(b"abc");
    }
    for option in [131, 137] {
        let mut s = Script::new();
        let plain = syn().build((s.pod, s.remote), s.irs, 0);
        s.packet(&packet::with_ipv4_options(&plain, &[option, 7, 4, 192, 0, 2, 9, 0]));
        s.gone();
        assert_eq!(s.dropped(DropReason::SourceRoute), 1);
    }
}

#[test]
fn sources_that_are_no_host_open_nothing() {
    for pod in ["255.255.255.255:40000", "224.0.0.1:40000", "239.1.2.3:40000", "0.0.0.0:40000"] {
        let mut s = Script::new();
        s.pod = pod.parse().expect("an address");
        s.pod(syn());
        s.gone();
        assert_eq!(s.dropped(DropReason::Multicast), 1, "{pod}");
    }
}

#[test]
fn errors_of_icmp_from_the_pod_end_no_connection() {
    let mut s = Script::connected(syn());
    s.upstream_sends(b"answer");
    s.expect(ACK);
    let ours = ack(1, 1).build((s.remote, s.pod), s.iss.expect("an ISS"), s.irs);
    let kinds = [[3, 0], [3, 1], [3, 2], [3, 3], [3, 4], [3, 5], [4, 0], [11, 0], [11, 1], [12, 0]];
    for kind in kinds {
        let rest = [&[0; 4][..], &ours[..28]].concat();
        s.packet(&packet::icmp(s.pod.ip(), s.remote.ip(), kind, &rest));
    }
    s.quiet();
    assert_eq!((s.flows(), s.dropped(DropReason::IcmpType)), (1, kinds.len() as u64));
    s.pod(data(1, 7, b"still"));
    s.expect(ACK).ack(6);
    s.upstream_got(b"still");
}
