//! A pod that writes raw packets: the agent stays alive and bounded, and other pods notice nothing.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tunproxy_e2e::{Path, Pod, Report, World, WorldOptions, rows};
use tunproxy_testkit::packet::{self, Checksum, Tcp, flags, protocol};
use tunproxy_testkit::process::output_with_input;
use tunproxy_testkit::raw::{self, Pace, RawLink, Sent};
use tunproxy_testkit::topology::{BLACK_HOLE_V4, BLACK_HOLE_V6};
use tunproxy_testkit::{Host, root_or_skip, wait};

struct Lab {
    /// Dropped (and DELed) while their agent is still there.
    hostile: Pod,
    other: Pod,
    world: World,
    tun: String,
    /// The hostile pod's own addresses.
    v4: IpAddr,
    v6: IpAddr,
    memory: u64,
    descriptors: usize,
}

const LIMIT: Duration = Duration::from_mins(1);
/// What the agent may grow by while it is attacked: its pools and tables are bounded per pod.
const MEMORY_KIB: u64 = 96 * 1024;

impl Lab {
    fn new() -> Result<Self> {
        let world = World::new(&WorldOptions::for_path(Path::AfterPtp))?;
        let hostile = world.pod(Path::AfterPtp, "hostile")?;
        let other = world.pod(Path::AfterPtp, "other")?;
        let links = hostile.ip_json("link show type tun")?;
        let tun = links[0]["ifname"].as_str().context("the pod has no TUN")?.to_owned();
        let addresses = hostile.attachment().addresses();
        let find = |v4: bool| addresses.iter().copied().find(|ip| ip.is_ipv4() == v4).context("an address");
        let (v4, v6) = (find(true)?, find(false)?);
        // The pod's own kernel would answer SYN|ACKs to connections it knows nothing of with resets.
        let quiet = "table inet quiet {\nchain out {\ntype filter hook output priority 0;\ntcp flags & rst == rst drop\n}\n}\n";
        let output = output_with_input(hostile.command("nft").args(["-f", "-"]), quiet.as_bytes())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        works(&world, &other)?;
        let (memory, descriptors) = (world.agent().rss_kib()?, world.agent().open_descriptors()?);
        Ok(Self { hostile, other, world, tun, v4, v6, memory, descriptors })
    }

    fn pairs(&self) -> [(SocketAddr, SocketAddr); 2] {
        [
            (SocketAddr::new(self.v4, 40_000), SocketAddr::new(Host::Web.v4().into(), 80)),
            (SocketAddr::new(self.v6, 40_000), SocketAddr::new(Host::Web.v6().into(), 80)),
        ]
    }

    /// Sends while the other pod is used: it must not notice, during the attack and not only after it.
    fn send(&self, pace: Pace, packets: impl IntoIterator<Item = Vec<u8>> + Send) -> Result<Sent> {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let prober = scope.spawn(|| -> Result<u32> {
                let mut probes = 0;
                while probes == 0 || !over.load(Ordering::Relaxed) {
                    works(&self.world, &self.other).context("the other pod, during the attack")?;
                    probes += 1;
                }
                Ok(probes)
            });
            let sent = raw::send_all(&self.hostile, &self.tun, pace, packets);
            over.store(true, Ordering::Relaxed);
            let probes = prober.join().expect("the other pod's thread")?;
            let sent = sent?;
            println!("{sent:?}, {probes} probes meanwhile");
            ensure!(sent.carried > 0, "nothing of {} packets got into the TUN", sent.offered);
            Ok(sent)
        })
    }

    /// Sends; each of `reasons` must be counted; and then the agent must live, be bounded, and serve the other pod.
    fn attack(&self, reasons: &[&str], packets: impl IntoIterator<Item = Vec<u8>> + Send) -> Result<()> {
        let drops = |reason: &str| self.world.agent().drops("hostile", reason).unwrap_or(0);
        let before: Vec<u64> = reasons.iter().map(|reason| drops(reason)).collect();
        let sent = self.send(Pace::AsTaken, packets)?;
        ensure!(sent.carried >= sent.offered, "{sent:?}: the attack did not take place");
        for (reason, before) in reasons.iter().zip(before) {
            wait::until_true(format!("a drop for {reason}"), LIMIT, || drops(reason) > before)?;
        }
        self.survived()
    }

    fn survived(&self) -> Result<()> {
        works(&self.world, &self.other).context("the other pod")?;
        let grown = self.world.agent().rss_kib()?.saturating_sub(self.memory);
        ensure!(grown < MEMORY_KIB, "the agent grew by {grown} KiB");
        Ok(())
    }
}

fn works(world: &World, pod: &Pod) -> Result<()> {
    for family in ["-4", "-6"] {
        let text = pod.run(&world.curl(&format!("{family} https://allowed.test/")))?;
        ensure!(text.starts_with("allowed.test"), "{text}");
    }
    Ok(())
}

#[test]
fn raw_packets() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let mut report = Report::default();
    // First: half-open flows of the attacks fill the pod's own share for a while.
    for (from, to) in lab.pairs() {
        report.row(format!("overlapping data across the wrap of sequence numbers to {to}"), || {
            overlap(&lab, from, to)
        });
    }
    report.row("truncated at every length", || lab.attack(&["truncated"], truncated(&lab)));
    report.row("wrong checksums", || lab.attack(&["bad-checksum"], wrong_checksums(&lab)));
    report.row("garbage in options and header lengths", || lab.attack(&["truncated"], garbage_options(&lab)));
    report.row("land packets", || lab.attack(&["land"], land(&lab)));
    report.row("sources of others, loopback, multicast", || {
        lab.attack(&["foreign-source"], foreign_sources(&lab))
    });
    report.row("fragments: overlapping, tiny, never complete", || lab.attack(&["fragment"], fragments(&lab)));
    report.row("segments of no connection, every flag", || lab.attack(&["no-flow"], strays(&lab)));
    report.row("unknown protocols and extension headers", || {
        lab.attack(&["unknown-protocol"], protocols(&lab))
    });
    report.row("50,000 mutations", || lab.attack(&["bad-checksum"], mutations(&lab, 50_000)));
    report.row("UDP from 20,000 ports", || lab.attack(&[], ports(&lab)));
    for (_, to) in lab.pairs() {
        report.row(format!("a SYN flood to the open port {to}"), || flood(&lab, to));
    }
    for to in [SocketAddr::from((BLACK_HOLE_V4, 80)), (BLACK_HOLE_V6, 80).into()] {
        report.row(format!("a SYN flood into the black hole {to}"), || flood(&lab, to));
    }
    report.row("the hostile pod's own programs work again", || {
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

fn truncated(lab: &Lab) -> Vec<Vec<u8>> {
    let whole = lab.pairs().map(|(from, to)| {
        [Tcp::syn(from, to, 1, 1460).with_payload(b"data").build(), packet::udp(from, to, b"data")]
    });
    whole
        .iter()
        .flatten()
        .flat_map(|packet| (1..packet.len()).map(|length| packet[..length].to_vec()))
        .collect()
}

fn wrong_checksums(lab: &Lab) -> Vec<Vec<u8>> {
    let of = |(from, to): (SocketAddr, SocketAddr)| {
        let syn = |seq| Tcp { checksum: Checksum::Wrong, ..Tcp::syn(from, to, seq, 1460) }.build();
        let mut header = Tcp::syn(from, to, 9, 1460).build();
        header[10] ^= 0x55;
        [syn(1), syn(2), packet::udp_with(from, to, b"x", Checksum::Wrong), header]
    };
    lab.pairs().into_iter().flat_map(of).collect()
}

fn garbage_options(lab: &Lab) -> Vec<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut packets = Vec::new();
    for (from, to) in lab.pairs() {
        for index in 0..500u16 {
            let length = random.usize(0..=40);
            let options = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            let from = SocketAddr::new(from.ip(), 41_000 + index);
            packets.push(
                Tcp { options, window: random.u16(..), ..Tcp::syn(from, to, random.u32(..), 1460) }.build(),
            );
        }
        for offset in 0..16u8 {
            let mut packet = Tcp::syn(from, to, 5, 1460).build();
            let header = packet::addresses(&packet).2;
            packet[header + 12] = offset << 4;
            packet::finish_checksum(&mut packet);
            packets.push(packet);
        }
        // MSS 0, 1 and 65535; window scale 15 and 255.
        for options in
            [vec![2, 4, 0, 0], vec![2, 4, 0, 1], vec![2, 4, 255, 255], vec![3, 3, 15, 1], vec![3, 3, 255, 1]]
        {
            packets.push(Tcp { options, ..Tcp::syn(from, to, 6, 1460) }.build());
        }
    }
    packets
}

fn land(lab: &Lab) -> Vec<Vec<u8>> {
    let of = |(_, to): (SocketAddr, SocketAddr)| {
        let own = SocketAddr::new(if to.is_ipv4() { lab.v4 } else { lab.v6 }, 80);
        [Tcp::syn(to, to, 1, 1460).build(), Tcp::syn(own, own, 1, 1460).build(), packet::udp(to, to, b"land")]
    };
    lab.pairs().into_iter().flat_map(of).collect()
}

fn foreign_sources(lab: &Lab) -> Vec<Vec<u8>> {
    let sources = [
        "10.244.99.99",
        "127.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "198.51.100.1",
        "169.254.1.1",
    ];
    let sources =
        sources.into_iter().chain(["fd00:244:0:63::9", "::1", "::", "ff02::1", "2001:db8:100::1", "fe80::1"]);
    let mut packets = Vec::new();
    for source in sources {
        let source = SocketAddr::new(source.parse().expect("an address"), 4444);
        let to = lab.pairs()[usize::from(source.is_ipv6())].1;
        packets.push(Tcp::syn(source, to, 1, 1460).build());
        packets.push(packet::udp(source, to, b"who am I"));
        packets.push(packet::echo_request(source.ip(), to.ip(), 1, 1, b"x"));
    }
    packets
}

fn fragments(lab: &Lab) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (from, to) in lab.pairs() {
        let whole = packet::udp(from, to, &[9; 4000]);
        // The same identification, other sizes: the parts overlap. Without its last one the first datagram stays open.
        let mut open = packet::fragments(&whole, 1000, 1);
        open.pop();
        packets.extend(open);
        packets.extend(packet::fragments(&whole, 648, 1));
        packets.extend(packet::fragments(&Tcp::syn(from, to, 3, 1460).build(), 8, 2));
        for identification in 100..5_100 {
            packets.extend(packet::fragments(&whole, 1200, identification).into_iter().next());
        }
    }
    packets
}

fn strays(lab: &Lab) -> Vec<Vec<u8>> {
    let of = |(from, to): (SocketAddr, SocketAddr)| {
        (0..=255u8).map(move |bits| {
            let seq = u32::MAX - u32::from(bits);
            Tcp { seq, ack: seq, flags: bits, urgent: 3, ..Tcp::new(from, to) }.with_payload(b"stray").build()
        })
    };
    lab.pairs().into_iter().flat_map(of).collect()
}

fn protocols(lab: &Lab) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (from, to) in lab.pairs() {
        packets.extend((0..=255u8).map(|number| packet::ip(from.ip(), to.ip(), number, &[0x11; 64])));
    }
    // A chain of hop-by-hop options headers (RFC 8200: the first may be one, and only the first).
    let (from, to) = lab.pairs()[1];
    let mut chain = Vec::new();
    for _ in 0..30 {
        chain.extend([0, 0, 1, 4, 0, 0, 0, 0]);
    }
    chain.extend([protocol::TCP, 0, 1, 4, 0, 0, 0, 0]);
    packets.push(packet::ip(from.ip(), to.ip(), 0, &chain));
    packets
}

/// Good packets with a few bytes changed.
fn mutations(lab: &Lab, count: usize) -> impl Iterator<Item = Vec<u8>> + Send {
    let pairs = lab.pairs();
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(move || {
        let (from, to) = pairs[random.usize(0..2)];
        let from = SocketAddr::new(from.ip(), random.u16(1024..));
        let mut packet = match random.u8(0..4) {
            0 => packet::udp(from, to, &[1; 32]),
            1 => packet::echo_request(from.ip(), to.ip(), random.u16(..), 1, &[2; 32]),
            _ => {
                let flags = *random
                    .choice(&[flags::SYN, flags::ACK, flags::SYN | flags::ACK, flags::RST, flags::FIN])
                    .expect("some");
                Tcp { flags, seq: random.u32(..), ack: random.u32(..), ..Tcp::new(from, to) }
                    .with_payload(&[3; 32])
                    .build()
            }
        };
        for _ in 0..random.usize(1..6) {
            let at = random.usize(0..packet.len());
            packet[at] = random.u8(..);
        }
        packet
    })
    .take(count)
}

/// To port 123, whose mappings idle for ten seconds only.
fn ports(lab: &Lab) -> impl Iterator<Item = Vec<u8>> + Send {
    let (from, to) = (lab.v4, SocketAddr::new(Host::Web.v4().into(), 123));
    (0..20_000u16).map(move |index| packet::udp(SocketAddr::new(from, 2000 + index), to, b"x"))
}

/// 30,000 SYNs from as many ends; what waits is bounded, in descriptors too, and the other pod still connects.
fn flood(lab: &Lab, to: SocketAddr) -> Result<()> {
    let before = lab.world.agent().open_descriptors()?;
    let own = if to.is_ipv4() { lab.v4 } else { lab.v6 };
    let ends = (0..30_000u16).map(|index| SocketAddr::new(own, 20_000 + index));
    lab.send(Pace::Flood, ends.map(|from| Tcp::syn(from, to, u32::from(from.port()) << 12, 1460).build()))?;
    let grown = lab.world.agent().open_descriptors()?.saturating_sub(before);
    ensure!(grown < 1_500, "{grown} descriptors more under the flood");
    lab.survived()
}

/// A real handshake by hand from a first sequence number just below the wrap, then data out of order with overlaps that
/// contradict each other, and data far outside the window: the server gets each octet once, from one of its versions.
fn overlap(lab: &Lab, from: SocketAddr, to: SocketAddr) -> Result<()> {
    const FIRST: u32 = u32::MAX - 5;
    let listener = lab.world.topology.outside.tcp_listen(SocketAddr::new(to.ip(), 0))?;
    let (from, to) = (SocketAddr::new(from.ip(), 45_001), listener.local_addr()?);
    let ignored = |reason: &str| lab.world.agent().drops("hostile", reason).unwrap_or(0);
    let before = ignored("out-of-window");
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
    wait::until_true("the drop outside the window", LIMIT, || ignored("out-of-window") > before)?;
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
