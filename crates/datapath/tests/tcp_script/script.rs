//! The script's stage: a pod that sends what the script says, the engine, and an upstream that exists in memory, all
//! under one virtual clock.
//!
//! Whatever a script is about, each packet the pod sees is held to what TCP promises: right checksums, no segment above
//! the pod's MSS, no octet beyond its window, no step back of our own window, timestamps once negotiated.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant as Wall;

use tunproxy_datapath::{
    Counters, Cx, DialFailure, DropReason, Duration, FlowId, FlowRecord, Instant, StackConfig, Target, vnet,
};
use tunproxy_testkit::packet;

use super::segment::{ACK, FIN, PSH, RST, SYN, Seen, Seg};
use crate::common::{Dial, Engine, Upstream, allow_all, config};

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub struct Script {
    pub engine: Engine,
    pub now: Instant,
    pub pod: SocketAddr,
    pub remote: SocketAddr,
    /// The pod's initial sequence number, and ours once it was seen.
    pub irs: u32,
    pub iss: Option<u32>,
    /// A window that steps back is what the script is about.
    pub window_may_shrink: bool,
    seen: VecDeque<Seen>,
    icmp: VecDeque<Vec<u8>>,
    pod_says: PodSays,
    edge: Option<u32>,
    mtu: usize,
    pub our_scale: u8,
}

/// What the pod promised and asked for.
#[derive(Debug, Default)]
struct PodSays {
    mss: Option<u16>,
    scale: Option<u8>,
    timestamps: bool,
    /// The furthest right edge it offered, relative.
    edge: u32,
    sent: u32,
}

impl Script {
    pub fn new() -> Self {
        Self::with(config(allow_all()))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the engine's harness counts from a wall clock it never looks at again"
    )]
    pub fn with(config: StackConfig) -> Self {
        Self {
            mtu: usize::from(config.mtu),
            engine: Engine::new(config, Wall::now()),
            now: Instant::from_secs(1),
            pod: "10.244.0.5:40000".parse().expect("an address"),
            remote: "192.0.2.1:80".parse().expect("an address"),
            irs: 1_000_000,
            iss: None,
            window_may_shrink: false,
            seen: VecDeque::new(),
            icmp: VecDeque::new(),
            pod_says: PodSays::default(),
            edge: None,
            our_scale: 0,
        }
    }

    pub fn v6() -> Self {
        let mut script = Self::new();
        script.pod = "[fd00::5]:40000".parse().expect("an address");
        script.remote = "[2001:db8::1]:80".parse().expect("an address");
        script
    }

    /// A connection whose SYN is `syn`, past the handshake.
    pub fn connected(syn: Seg) -> Self {
        let mut script = Self::new();
        script.connect(syn);
        script
    }

    pub fn connect(&mut self, syn: Seg) {
        self.connect_with(syn, |ack| ack);
    }

    /// `third` shapes the segment that completes the handshake (its options, its window).
    pub fn connect_with(&mut self, syn: Seg, third: impl FnOnce(Seg) -> Seg) {
        self.pod(syn);
        self.expect(SYN | ACK).seq(0).ack(1);
        self.pod(third(super::segment::ack(1, 1)));
        self.quiet();
    }

    /// Another connection of the same pod, from another port; everything relative begins anew.
    pub fn reconnect_from(&mut self, port: u16, irs: u32) {
        self.pod.set_port(port);
        self.begin_anew(irs);
    }

    /// The same ends, but new sequence numbers.
    pub fn begin_anew(&mut self, irs: u32) {
        self.irs = irs;
        self.iss = None;
        self.edge = None;
        self.our_scale = 0;
        self.pod_says = PodSays::default();
    }

    // --- the pod ---

    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "scripts read better without borrows")]
    pub fn pod(&mut self, segment: Seg) {
        self.note_promises(&segment);
        let packet = segment.build((self.pod, self.remote), self.irs, self.iss.unwrap_or(0));
        self.packet(&packet);
    }

    /// Segments that are read from the TUN in one go.
    #[track_caller]
    pub fn pod_at_once(&mut self, segments: &[Seg]) {
        for segment in segments {
            self.note_promises(segment);
            let packet = segment.build((self.pod, self.remote), self.irs, self.iss.unwrap_or(0));
            let mut buffer = self.engine.pool.take();
            buffer.space()[..vnet::LEN].fill(0);
            buffer.space()[vnet::LEN..vnet::LEN + packet.len()].copy_from_slice(&packet);
            buffer.len = vnet::LEN + packet.len();
            let cx = &mut Cx { now: self.now, pool: &mut self.engine.pool };
            self.engine.stack.handle_packet(cx, &mut buffer);
            self.engine.pool.give(buffer);
        }
        self.settle();
    }

    #[track_caller]
    pub fn packet(&mut self, packet: &[u8]) {
        self.engine.inject(self.now, packet);
        self.collect();
    }

    fn note_promises(&mut self, segment: &Seg) {
        let says = &mut self.pod_says;
        if segment.flags & SYN != 0 && self.iss.is_none() {
            let seen = option_values(&segment.options);
            (says.mss, says.scale, says.timestamps) = seen;
            says.edge = 1 + u32::from(segment.window);
            return;
        }
        let honest = segment.flags & ACK != 0 && segment.ack <= says.sent;
        if honest && segment.flags & SYN == 0 {
            let window = u32::from(segment.window) << says.scale.unwrap_or(0).min(14);
            says.edge = says.edge.max(segment.ack.saturating_add(window));
        }
    }

    /// Takes what the engine put on the wire.
    #[track_caller]
    fn collect(&mut self) {
        for packet in self.engine.drain() {
            if packet::next_header(&packet) != packet::protocol::TCP {
                self.icmp.push_back(packet);
                continue;
            }
            assert!(packet::checksum_is_right(&packet), "a wrong checksum");
            let (source, destination, _) = packet::addresses(&packet);
            assert_eq!((source, destination), (self.remote.ip(), self.pod.ip()));
            let raw = Seen::parse(&packet, self.irs, 0);
            if raw.has(SYN) && self.iss.is_none() {
                self.iss = Some(raw.seq);
                self.our_scale = raw.wscale.unwrap_or(0);
            }
            let seen = Seen::parse(&packet, self.irs, self.iss.unwrap_or(0));
            self.hold_to_promises(&seen);
            self.seen.push_back(seen);
        }
    }

    #[track_caller]
    fn hold_to_promises(&mut self, seen: &Seen) {
        assert!(seen.length <= self.mtu, "larger than the MTU: {} octets", seen.length);
        if seen.has(RST) || self.iss.is_none() {
            return;
        }
        let says = &mut self.pod_says;
        let mss = says.mss.filter(|&mss| mss > 0).unwrap_or(if self.pod.is_ipv4() { 536 } else { 1_220 });
        assert!(
            seen.payload.len() <= usize::from(mss.max(48)),
            "{} octets above MSS {mss}",
            seen.payload.len()
        );
        assert_eq!(seen.ts.is_some(), says.timestamps, "timestamps of {seen:?}");
        let end = seen.seq.wrapping_add(seen.len());
        if end < u32::MAX / 2 {
            says.sent = says.sent.max(end);
            assert!(seen.len() == 0 || seen.has(SYN) || end <= says.edge, "{end} beyond {}", says.edge);
        }
        let shift = if seen.has(SYN) { 0 } else { self.our_scale };
        let edge = seen.ack.wrapping_add(u32::from(seen.window) << shift);
        let back = self.edge.is_some_and(|before| (edge.wrapping_sub(before) as i32) < 0);
        assert!(!back || self.window_may_shrink, "our window stepped back from {:?} to {edge}", self.edge);
        self.edge = Some(edge);
    }

    // --- what the pod sees ---

    /// The next segment, which has exactly these flags (PSH aside).
    #[track_caller]
    pub fn expect(&mut self, flags: u8) -> Seen {
        let seen =
            self.seen.pop_front().unwrap_or_else(|| panic!("nothing, where flags {flags:#04x} were due"));
        assert_eq!(seen.flags & !PSH, flags, "flags of {seen:?}");
        seen
    }

    /// All segments there are.
    pub fn all(&mut self) -> Vec<Seen> {
        self.seen.drain(..).collect()
    }

    /// All octets there are in order, sent once each from `seq` on.
    #[track_caller]
    pub fn octets(&mut self, mut seq: u32) -> Vec<u8> {
        let mut octets = Vec::new();
        for seen in self.all() {
            if !seen.payload.is_empty() {
                seen.seq(seq);
                seq += seen.payload.len() as u32;
                octets.extend(seen.payload);
            }
        }
        octets
    }

    #[track_caller]
    pub fn quiet(&mut self) {
        assert!(self.seen.is_empty(), "silence was due, not {:?}", self.seen);
        assert!(self.icmp.is_empty(), "no ICMP was due");
    }

    /// The next ICMP message: its type and code, and the packet it quotes.
    #[track_caller]
    pub fn expect_icmp(&mut self) -> ((u8, u8), Vec<u8>) {
        let packet = self.icmp.pop_front().expect("an ICMP message");
        let (source, destination, header) = packet::addresses(&packet);
        assert_eq!((source, destination), (self.remote.ip(), self.pod.ip()));
        ((packet[header], packet[header + 1]), packet[header + 8..].to_vec())
    }

    // --- time ---

    /// Lets `by` pass; each timer runs when it is due.
    #[track_caller]
    pub fn after(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(at) = self.engine.stack.poll_at().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.engine.advance(self.now);
            self.collect();
        }
        self.now = end;
    }

    /// Lets time pass until a segment goes out; at most `most`. Returns how long it took.
    #[track_caller]
    pub fn wait(&mut self, most: Duration) -> Duration {
        let start = self.now;
        while self.seen.is_empty() {
            let at = self.engine.stack.poll_at().expect("a timer");
            assert!(at <= start + most, "nothing within {most}");
            self.after(if at > self.now { at - self.now } else { Duration::ZERO });
        }
        self.now - start
    }

    // --- the upstream ---

    pub fn dial(&mut self, dial: Dial) {
        self.engine.dial = dial;
    }

    pub fn fail(&mut self, failure: DialFailure) {
        self.dial(Dial::Fail(failure));
    }

    #[track_caller]
    pub fn flow(&self) -> FlowId {
        self.engine.connects.last().expect("a connect").0
    }

    pub fn connects(&self) -> Vec<&Target> {
        self.engine.connects.iter().map(|(_, target, _)| target).collect()
    }

    /// The connect that was left pending succeeds.
    pub fn upstream_connects(&mut self) {
        let flow = self.flow();
        self.engine.upstreams.insert(flow, (self.engine.script)());
        let cx = &mut Cx { now: self.now, pool: &mut self.engine.pool };
        self.engine.stack.upstream_connected(cx, flow, None);
        self.engine.settle(self.now);
        self.collect();
    }

    pub fn upstream_fails(&mut self, failure: DialFailure) {
        let flow = self.flow();
        let cx = &mut Cx { now: self.now, pool: &mut self.engine.pool };
        self.engine.stack.upstream_failed(cx, flow, failure);
        self.engine.settle(self.now);
        self.collect();
    }

    #[track_caller]
    pub fn upstream(&mut self) -> &mut Upstream {
        let flow = self.flow();
        self.engine.upstreams.get_mut(&flow).expect("a connected upstream")
    }

    pub fn upstream_sends(&mut self, octets: &[u8]) {
        self.upstream().to_send.extend(octets);
        self.turn();
    }

    pub fn upstream_closes(&mut self) {
        self.upstream().close = true;
        self.turn();
    }

    pub fn upstream_resets(&mut self) {
        let flow = self.flow();
        let cx = &mut Cx { now: self.now, pool: &mut self.engine.pool };
        self.engine.stack.upstream_reset(cx, flow);
        self.engine.settle(self.now);
        self.collect();
    }

    /// It takes nothing until [`Script::upstream_reads`].
    pub fn upstream_stalls(&mut self) {
        self.upstream().blocked = true;
    }

    /// It takes everything there is, and what comes.
    pub fn upstream_reads(&mut self) {
        self.upstream().blocked = false;
        let flow = self.flow();
        while self.engine.write_up(self.now, flow) {}
        self.engine.settle(self.now);
        self.collect();
    }

    /// It takes `octets` and stalls again.
    pub fn upstream_takes(&mut self, octets: usize) {
        let flow = self.flow();
        let waiting: Vec<u8> = self.engine.stack.uplink(flow).flatten().copied().take(octets).collect();
        self.upstream().received.extend(&waiting);
        let cx = &mut Cx { now: self.now, pool: &mut self.engine.pool };
        self.engine.stack.uplink_sent(cx, flow, waiting.len());
        self.engine.settle(self.now);
        self.collect();
    }

    fn turn(&mut self) {
        let flow = self.flow();
        self.engine.read_down(self.now, flow);
        self.engine.settle(self.now);
        self.collect();
    }

    pub fn settle(&mut self) {
        self.engine.settle(self.now);
        self.collect();
    }

    #[track_caller]
    pub fn upstream_got(&mut self, octets: &[u8]) {
        let received = &self.upstream().received;
        assert!(received == octets, "the upstream got {} octets, not these {}", received.len(), octets.len());
    }

    // --- the books ---

    pub fn counters(&self) -> &Counters {
        self.engine.stack.counters()
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.counters().dropped(reason)
    }

    pub fn flows(&self) -> usize {
        self.engine.stack.flow_counts().0
    }

    #[track_caller]
    pub fn record(&self) -> &FlowRecord {
        self.engine.records.last().expect("a record")
    }

    /// Nothing is left of any flow.
    #[track_caller]
    pub fn gone(&mut self) {
        self.quiet();
        assert_eq!(self.flows(), 0, "flows are left");
        assert_eq!(self.engine.pool.held(), 0, "buffers are left");
    }

    /// Walks an established connection through an orderly close from the pod, into TIME-WAIT on our side where
    /// `upstream_first`, else into nothing.
    #[track_caller]
    pub fn close(&mut self, upstream_first: bool, seq: u32, sent: u32) {
        let options = self.timestamps();
        if upstream_first {
            self.upstream_closes();
            self.expect(FIN | ACK).seq(sent);
            self.pod(options(super::segment::fin(seq, sent + 1)));
            self.expect(ACK).seq(sent + 1).ack(seq + 1);
        } else {
            self.pod(options(super::segment::fin(seq, sent)));
            self.expect(ACK).ack(seq + 1);
            self.upstream_closes();
            self.expect(FIN | ACK).seq(sent).ack(seq + 1);
            self.pod(options(super::segment::ack(seq + 1, sent + 1)));
        }
        self.gone();
    }

    fn timestamps(&self) -> impl Fn(Seg) -> Seg + use<> {
        let wanted = self.pod_says.timestamps;
        move |segment| if wanted { segment.ts(1_000_000, 0) } else { segment }
    }
}

/// MSS, window scale and whether there are timestamps, read leniently.
fn option_values(mut options: &[u8]) -> (Option<u16>, Option<u8>, bool) {
    let mut values = (None, None, false);
    while let [kind, rest @ ..] = options {
        if *kind == 0 {
            break;
        }
        if *kind == 1 {
            options = rest;
            continue;
        }
        let Some(&len) = rest.first() else { break };
        let Some(option) = options.get(..usize::from(len)).filter(|option| option.len() >= 2) else { break };
        match option {
            [2, 4, high, low] => values.0 = Some(u16::from_be_bytes([*high, *low])),
            [3, 3, shift] => values.1 = Some(*shift),
            [8, 10, ..] => values.2 = true,
            _ => {}
        }
        options = &options[option.len()..];
    }
    values
}
