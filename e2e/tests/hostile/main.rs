//! A pod that writes raw packets: the agent stays alive and bounded, counts what it drops, and other pods notice nothing.

mod lab;
mod neighbour;
mod packets;

use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tunproxy_e2e::{Path, Report, WorldOptions, rows};
use tunproxy_testkit::packet::{self, Tcp, flags};
use tunproxy_testkit::raw::{Pace, RawLink};
use tunproxy_testkit::topology::{BLACK_HOLE_V4, BLACK_HOLE_V6, UPLINK};
use tunproxy_testkit::{Host, root_or_skip, wait};

use lab::{LIMIT, Lab, works};

/// The agent's own bounds for a pod (docs/agent.md, docs/ARCHITECTURE.md).
const PINGS: u64 = 256;
const UDP_PEERS: u64 = 8_192;
/// Datagrams that the agent's reassembly keeps incomplete.
const INCOMPLETE: u64 = 64;

#[test]
fn raw_packets() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new(&WorldOptions::for_path(Path::AfterPtp)).unwrap();
    lab.silence().unwrap();
    let mut report = Report::default();
    for (from, to) in lab.pairs() {
        report.row(format!("overlapping data across the wrap of sequence numbers to {to}"), || {
            overlap(&lab, from, to)
        });
    }
    malformed(&mut report, &lab);
    too_many(&mut report, &lab);
    incomplete(&mut report, &lab);
    report.row("50,000 mutations", || mutations(&lab));
    report.row("the hostile pod's own programs work again", || {
        lab.let_speak()?;
        wait::until_true("a connection", Duration::from_secs(90), || works(&lab.world, &lab.hostile).is_ok())
    });
    report.row("descriptors are given back", || {
        wait::until_true("descriptors", Duration::from_secs(150), || {
            lab.world.agent().open_descriptors().is_ok_and(|now| now < lab.descriptors + 50)
        })
    });
    report.row("nothing with a pod's address arrived outside", || rows::no_leak(&lab.world, Path::AfterPtp));
    report.finish();
}

/// Packets that are acted upon in no way: each is counted once, under its reason.
fn malformed(report: &mut Report, lab: &Lab) {
    let each = |reason: &'static str, packets: packets::Packets| {
        lab.attack(&[(reason, packets.len() as u64)], packets)
    };
    report.row("truncated at every length", || each("truncated", packets::truncated(lab)));
    report.row("headers that contradict their packet", || each("bad-header", packets::bad_headers(lab)));
    report.row("wrong checksums", || each("bad-checksum", packets::wrong_checksums(lab)));
    report.row("land packets", || each("land", packets::land(lab)));
    report.row("sources of others, loopback, multicast", || {
        each("foreign-source", packets::foreign_sources(lab))
    });
    report.row("no hops left", || each("hop-limit", packets::no_hops_left(lab)));
    report.row("source routes", || each("source-route", packets::source_routes(lab)));
    report.row("destinations that are many", || each("multicast", packets::to_many(lab)));
    report.row("ICMP of every type", || each("icmp-type", packets::icmp_types(lab)));
    report.row("segments of no connection, every flag", || each("no-flow", packets::strays(lab)));
}

/// Good packets, more than there is room for.
fn too_many(report: &mut Report, lab: &Lab) {
    report.row("1,000 pings at once", || {
        lab.attack(&[("echo-limit", 1_000 - PINGS)], packets::pings(lab, 1_000))
    });
    for ip in Host::OtherWeb.both() {
        let to = SocketAddr::new(ip, 80);
        report.row(format!("SYNs with garbage for options to {to}"), || {
            syns(lab, to, None, Pace::AsTaken, &packets::garbage_options(lab, to))
        });
    }
    for ip in Host::Far.both() {
        let to = SocketAddr::new(ip, 80);
        report.row(format!("a SYN flood to the open port {to}"), || {
            syns(lab, to, Some("half-open-limit"), Pace::Flood, &packets::syns(lab, to, 30_000))
        });
    }
    for to in [SocketAddr::from((BLACK_HOLE_V4, 80)), (BLACK_HOLE_V6, 80).into()] {
        report.row(format!("a SYN flood into the black hole {to}"), || {
            syns(lab, to, Some("pending-limit"), Pace::Flood, &packets::syns(lab, to, 30_000))
        });
    }
    report.row("UDP from 20,000 ports", || udp_ports(lab));
    report.row("UDP from one port to 9,000", || udp_peers(lab));
    report.row("datagrams that wait for a neighbour that is not there", || udp_backlog(lab));
}

/// Fragments, last of all exact counts: those that wait for the rest are counted when their time is over.
fn incomplete(report: &mut Report, lab: &Lab) {
    report.row("unknown protocols and extension headers", || {
        // Of 256 numbers IPv4 has three that are known (1, 6, 17), IPv6 seven (0, 6, 17, 43, 44, 58, 60); the fragment waits.
        let expected = [
            ("unknown-protocol", 253 + 249),
            ("bad-checksum", 2 + 2),
            // UDP's length, twice; the chain.
            ("bad-header", 2 + 1),
            ("truncated", 2),
            ("source-route", 1),
        ];
        lab.attack(&expected, packets::protocols(lab))
    });
    report.row("fragments: overlapping, tiny, never complete", || {
        let packets = packets::fragments(lab);
        // Six became SYNs; one waited from the row before.
        let lost = packets.len() as u64 - 6 + 1 - INCOMPLETE;
        lab.attack(&[("fragment", lost)], packets)
    });
}

/// SYNs of which none is ever answered by the pod: what waits is bounded, in descriptors too. Each that was read either
/// began a flow, which has a record, or was dropped for one of the two limits; where there are too many, for `limit`.
/// Then the pod resets them all: each reset ends a flow or belongs to none.
fn syns(
    lab: &Lab,
    to: SocketAddr,
    limit: Option<&str>,
    pace: Pace,
    packets: &packets::Packets,
) -> Result<()> {
    let (descriptors, unlogged) = (lab.world.agent().open_descriptors()?, lab.unlogged()?);
    let mut counts = lab.send(pace, packets.clone())?;
    let grown = lab.world.agent().open_descriptors()?.saturating_sub(descriptors);
    ensure!(grown < 1_500, "{grown} descriptors more under the flood");
    ensure!(counts.total("tcpOpened")? == 0, "a connection that nobody acknowledged was opened");
    let [pending, half_open] =
        ["pending-limit", "half-open-limit"].map(|reason| counts.drops.remove(reason).unwrap_or(0));
    ensure!(counts.drops.is_empty(), "also dropped: {:?}", counts.drops);
    let as_wanted = match limit {
        Some("half-open-limit") => half_open > 0,
        Some(_) => pending > 0 && half_open == 0,
        None => pending + half_open == 0,
    };
    ensure!(as_wanted, "dropped: {pending} for pending, {half_open} for half-open");
    let resets = lab.send(Pace::AsTaken, packets.iter().map(|syn| packets::reset_of(syn)))?;
    let begun = usize::try_from(counts.total("packetsIn")? - pending - half_open)?;
    let ends = wait::until(format!("{begun} records"), LIMIT, || {
        let ends = lab.ends(to);
        (ends.len() >= begun).then_some(ends)
    })?;
    ensure!(ends.len() == begun && lab.unlogged()? == unlogged, "{} records of {begun} flows", ends.len());
    let reset = ends.iter().filter(|end| ["abandoned", "reset-by-pod"].contains(&end.as_str())).count();
    let expected = (packets.len() - reset) as u64;
    ensure!(
        resets.dropped("no-flow") == expected,
        "{} resets belonged to no flow, {reset} of {begun} ended one",
        resets.dropped("no-flow")
    );
    lab.survived()
}

/// Each port has a mapping; the least recently used gives way, and each that did is counted and recorded as such. To port
/// 123, whose mappings idle for ten seconds only.
fn udp_ports(lab: &Lab) -> Result<()> {
    const PORTS: u16 = 20_000;
    const MAPPINGS: u64 = 4_096;
    let to = SocketAddr::from((BLACK_HOLE_V4, 123));
    let unlogged = lab.unlogged()?;
    let mut counts = lab.send(Pace::AsTaken, packets::ports(lab, to, PORTS))?;
    let evicted = counts.drops.remove("mapping-limit").unwrap_or(0);
    ensure!(counts.drops.is_empty(), "also dropped: {:?}", counts.drops);
    // On a slow machine the first ones are idle already.
    ensure!(evicted > 0 && evicted <= u64::from(PORTS) - MAPPINGS, "{evicted} gave way");
    let ends = wait::until("the end of all mappings", LIMIT, || {
        let ends = lab.ends(to);
        (ends.len() >= usize::from(PORTS)).then_some(ends)
    })?;
    let of = |close: &str| ends.iter().filter(|end| *end == close).count() as u64;
    ensure!(lab.unlogged()? == unlogged, "the flow log lost records");
    let (recorded, idle) = (of("evicted"), of("idle"));
    ensure!(
        recorded == evicted && evicted + idle == u64::from(PORTS),
        "{evicted} counted, {recorded} recorded as evicted, {idle} idle"
    );
    lab.survived()
}

/// What a socket has no room for is counted: it waits for a neighbour that does not answer, until the kernel gives up.
fn udp_backlog(lab: &Lab) -> Result<()> {
    const DATAGRAMS: usize = 1_000;
    let node = &lab.world.topology.node;
    node.sysctl(&format!("net.ipv4.neigh.{UPLINK}.unres_qlen_bytes"), "16777216")?;
    let [first, second, third, _] = Host::Web.v4().octets();
    let nobody = SocketAddr::from(([first, second, third, 222], 4_000));
    // A port that has its mapping already.
    let from = SocketAddr::new(lab.v4, 1_999);
    let packets = std::iter::repeat_n(packet::udp(from, nobody, &[7; 1_400]), DATAGRAMS);
    let counts = lab.send(Pace::AsTaken, packets)?;
    let lost = counts.dropped("send-failed");
    ensure!(lost > 0 && lost < DATAGRAMS as u64, "{lost} of {DATAGRAMS} found no room: {:?}", counts.drops);
    ensure!(counts.drops.len() == 1, "also dropped: {:?}", counts.drops);
    lab.survived()
}

/// A port's peers give way one by one; its socket stays. To ports whose flows idle for three minutes.
fn udp_peers(lab: &Lab) -> Result<()> {
    const PEERS: u16 = 9_000;
    let descriptors = lab.world.agent().open_descriptors()?;
    let counts = lab.send(Pace::AsTaken, packets::peers(lab, BLACK_HOLE_V4.into(), PEERS))?;
    let evicted = counts.total("udpEvictions")?;
    ensure!(counts.drops.is_empty(), "dropped: {:?}", counts.drops);
    ensure!(evicted == u64::from(PEERS) - UDP_PEERS, "{evicted} gave way");
    // The other pod's queries have some, too.
    let now = lab.world.agent().open_descriptors()?;
    ensure!(now < descriptors + 300, "{descriptors} descriptors became {now}");
    lab.survived()
}

/// Most have a checksum that is wrong now; what the others are depends on the dice.
fn mutations(lab: &Lab) -> Result<()> {
    const MUTATIONS: usize = 50_000;
    let counts = lab.send(Pace::AsTaken, packets::mutations(lab, MUTATIONS))?;
    let dropped = counts.drops.iter().filter(|(reason, _)| *reason != "error-rate").map(|(_, count)| count);
    let (dropped, wrong) = (dropped.sum::<u64>(), counts.dropped("bad-checksum"));
    ensure!(dropped <= MUTATIONS as u64, "{dropped} drops of {MUTATIONS} packets: {:?}", counts.drops);
    ensure!(wrong > MUTATIONS as u64 / 2, "{wrong} wrong checksums: {:?}", counts.drops);
    for reason in ["truncated", "bad-header", "no-flow"] {
        ensure!(counts.dropped(reason) > 0, "no {reason}: {:?}", counts.drops);
    }
    lab.survived()
}

/// A real handshake by hand from a first sequence number just below the wrap, then data out of order with overlaps that
/// contradict each other, and data far outside the window: the server gets each octet once, from one of its versions.
fn overlap(lab: &Lab, from: SocketAddr, to: SocketAddr) -> Result<()> {
    const FIRST: u32 = u32::MAX - 5;
    let listener = lab.world.topology.outside.tcp_listen(SocketAddr::new(to.ip(), 0))?;
    let (from, to) = (SocketAddr::new(from.ip(), 45_001), listener.local_addr()?);
    let ignored = || {
        let counts = lab.counts();
        counts.map_or((0, 0), |counts| (counts.dropped("out-of-window"), counts.dropped("old-segment")))
    };
    let (outside, old) = ignored();
    RawLink::with(&lab.hostile, &lab.tun, |link| -> Result<()> {
        // The largest window there is: 65,535 << 14 (RFC 7323 section 2.3).
        let options = vec![2, 4, 0x05, 0xb4, 3, 3, 14, 1];
        link.send(&Tcp { options, ..Tcp::syn(from, to, FIRST, 1460) }.build());
        let answer = link.recv(LIMIT, |packet| is_syn_ack(packet, to, from)).context("no SYN|ACK")?;
        let theirs = u32::from_be_bytes(tcp_of(&answer)[4..8].try_into()?).wrapping_add(1);
        let segment = |offset: u32, flags: u8, payload: &[u8]| {
            let seq = FIRST.wrapping_add(1).wrapping_add(offset);
            Tcp { seq, ack: theirs, flags, ..Tcp::new(from, to) }.with_payload(payload).build()
        };
        link.send(&segment(0, flags::ACK, b""));
        link.send(&segment(5, flags::ACK, b"fghijklmno"));
        link.send(&segment(1 << 31, flags::ACK, b"far outside"));
        link.send(&segment(7, flags::ACK, b"HIJ"));
        link.send(&segment(0, flags::ACK, b"abcdeFGHIJ"));
        link.send(&segment(3, flags::ACK, b"DEFGHIJKLM"));
        link.send(&segment(15, flags::ACK | flags::FIN, b""));
        Ok(())
    })??;
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(LIMIT))?;
    let mut received = Vec::new();
    server.read_to_end(&mut received)?;
    let text = String::from_utf8_lossy(&received).to_lowercase();
    ensure!(text == "abcdefghijklmno", "{:?}", String::from_utf8_lossy(&received));
    // What lies far outside, and what had all been received before.
    wait::until_true("both drops, each under its reason", LIMIT, || ignored() == (outside + 1, old + 1))?;
    lab.survived()
}

/// The TCP header and what follows.
fn tcp_of(packet: &[u8]) -> &[u8] {
    &packet[packet::addresses(packet).2..]
}

fn is_syn_ack(packet: &[u8], from: SocketAddr, to: SocketAddr) -> bool {
    if packet.len() < 40 || !matches!(packet[0] >> 4, 4 | 6) {
        return false;
    }
    let (source, destination, header) = packet::addresses(packet);
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    (source, destination) == (from.ip(), to.ip())
        && packet.get(header..header + 4) == Some(&ports[..])
        && packet.get(header + 13) == Some(&(flags::SYN | flags::ACK))
}
