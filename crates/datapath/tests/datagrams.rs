//! UDP mappings and ICMP echo flows under virtual time: how long they live, how many there may be, whose replies they
//! take, and what the pod is told when policy or the outside refuses.

#![expect(
    clippy::disallowed_methods,
    reason = "the ban is the crate's own: a test has a clock and an environment"
)]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant as Wall;

use common::{Engine, allow_all, config, egress, policy, rule, seconds};
use tunproxy_datapath::{
    CloseReason, Cx, DialFailure, DropReason, Duration, EchoId, Input, Instant, IpFields, Limits, MappingId,
    Report, internet_checksum,
};
use tunproxy_policy::model::{Destination, EgressAction, EgressPolicy, Policies, UdpFiltering};
use tunproxy_policy::{Decision, NodeDefault, Protocol, WorkloadPolicy};
use tunproxy_testkit::packet;

/// A pod and two hosts of one family.
#[derive(Clone, Copy, Debug)]
struct Family {
    pod: IpAddr,
    host: IpAddr,
    other: IpAddr,
    /// Type and code of ICMP's errors.
    network_unreachable: [u8; 2],
    host_unreachable: [u8; 2],
    port_unreachable: [u8; 2],
    prohibited: [u8; 2],
    /// Type of an echo request.
    echo_request: u8,
}

impl Family {
    /// What the outside said, and what the pod is told: nothing at all of a time-out, which it sees for itself.
    fn failures(&self) -> [(DialFailure, Option<[u8; 2]>, CloseReason); 7] {
        let prohibited = Some(self.prohibited);
        [
            (DialFailure::Refused, Some(self.port_unreachable), CloseReason::Refused),
            (
                DialFailure::NetworkUnreachable,
                Some(self.network_unreachable),
                CloseReason::NetworkUnreachable,
            ),
            (DialFailure::HostUnreachable, Some(self.host_unreachable), CloseReason::HostUnreachable),
            (DialFailure::TimedOut, None, CloseReason::TimedOut),
            (DialFailure::Failed, prohibited, CloseReason::UpstreamFailed),
            (DialFailure::Unsupported, prohibited, CloseReason::UpstreamUnsupported),
            (DialFailure::Limit, prohibited, CloseReason::Limit),
        ]
    }
}

fn families() -> [Family; 2] {
    let ip = |text: &str| text.parse().expect("an address");
    [
        Family {
            pod: ip("10.244.0.5"),
            host: ip("192.0.2.1"),
            other: ip("192.0.2.2"),
            network_unreachable: [3, 0],
            host_unreachable: [3, 1],
            port_unreachable: [3, 3],
            prohibited: [3, 13],
            echo_request: 8,
        },
        Family {
            pod: ip("fd00::5"),
            host: ip("2001:db8::1"),
            other: ip("2001:db8::2"),
            network_unreachable: [1, 0],
            host_unreachable: [1, 3],
            port_unreachable: [1, 4],
            prohibited: [1, 1],
            echo_request: 128,
        },
    ]
}

fn deny_all() -> Arc<WorkloadPolicy> {
    policy(&Policies::default(), NodeDefault::Deny)
}

/// The pod may send to all addresses but `denied`, and its ports take datagrams as `filtering` says.
fn filtered(filtering: UdpFiltering, denied: IpAddr) -> Arc<WorkloadPolicy> {
    let refused = Destination::Networks { networks: vec![denied.into()], except: Vec::new() };
    let rules = vec![rule(EgressAction::Deny, vec![refused]), rule(EgressAction::Allow, Vec::new())];
    let egress = vec![EgressPolicy { udp_filtering: filtering, ..egress(rules) }];
    policy(&Policies { egress, ..Policies::default() }, NodeDefault::Deny)
}

struct Bench {
    engine: Engine,
    now: Instant,
    family: Family,
}

impl Bench {
    fn new(family: Family) -> Self {
        Self::with(family, allow_all(), Limits::default())
    }

    fn with(family: Family, policy: Arc<WorkloadPolicy>, limits: Limits) -> Self {
        let mut config = config(policy);
        config.limits = limits;
        Self { engine: Engine::new(config, Wall::now()), now: Instant::from_secs(1), family }
    }

    fn pod(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.family.pod, port)
    }

    fn host(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.family.host, port)
    }

    fn send(&mut self, from: u16, to: SocketAddr) -> Option<MappingId> {
        match self.engine.inject(self.now, &packet::udp(self.pod(from), to, b"ask")) {
            Input::Datagram { mapping, destination, .. } => {
                assert_eq!(destination, to);
                Some(mapping)
            }
            Input::Done => None,
            other @ (Input::Echo { .. } | Input::Elsewhere { .. }) => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn open(&mut self, from: u16, to: SocketAddr) -> MappingId {
        self.send(from, to).expect("the datagram passes")
    }

    /// Whether the pod gets a datagram that came from `from`.
    fn reply(&mut self, mapping: MappingId, from: SocketAddr) -> bool {
        let taken = self.engine.stack.udp_reply(self.now, mapping, from, b"answer").is_some();
        self.engine.settle(self.now);
        taken
    }

    fn ping(&mut self, to: IpAddr, identifier: u16) -> Option<EchoId> {
        let request = packet::echo_request(self.family.pod, to, identifier, 1, b"ping");
        match self.engine.inject(self.now, &request) {
            Input::Echo { echo, destination, .. } => {
                assert_eq!(destination, to);
                Some(echo)
            }
            Input::Done => None,
            other @ (Input::Datagram { .. } | Input::Elsewhere { .. }) => panic!("{other:?}"),
        }
    }

    fn after(&mut self, pause: Duration) {
        self.now += pause;
        self.engine.advance(self.now);
    }

    /// UDP mappings and echo flows that live.
    fn living(&self) -> (usize, usize) {
        let (_, mappings, echoes) = self.engine.stack.flow_counts();
        (mappings, echoes)
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.engine.stack.counters().dropped(reason)
    }

    fn closed(&self) -> Vec<(SocketAddr, CloseReason)> {
        self.engine.records.iter().map(|record| (record.destination, record.close)).collect()
    }

    fn set_policy(&mut self, policy: Arc<WorkloadPolicy>) {
        let cx = &mut Cx { now: self.now, pool: &mut self.engine.pool };
        self.engine.stack.set_policy(cx, policy);
        self.engine.settle(self.now);
    }

    /// The one packet for the pod is an ICMP error that says `kind`; the transport header that it quotes.
    #[track_caller]
    fn error(&mut self, kind: [u8; 2], from: IpAddr, to: IpAddr) -> Vec<u8> {
        let packets = self.engine.drain();
        let [error] = packets.as_slice() else { panic!("{} packets", packets.len()) };
        assert!(icmp_checksum_is_right(error));
        let (sender, receiver, start) = packet::addresses(error);
        assert_eq!((sender, receiver), (to, from));
        assert_eq!(error[start..start + 2], kind);
        let quoted = &error[start + 8..];
        let (source, destination, transport) = packet::addresses(quoted);
        assert_eq!((source, destination), (from, to));
        quoted[transport..].to_vec()
    }

    /// The one packet for the pod is an ICMP error that says `kind` and quotes a datagram from `from` to `to`.
    #[track_caller]
    fn expect_error(&mut self, kind: [u8; 2], from: SocketAddr, to: SocketAddr) {
        let udp = self.error(kind, from.ip(), to.ip());
        assert_eq!(udp[..2], from.port().to_be_bytes());
        assert_eq!(udp[2..4], to.port().to_be_bytes());
    }

    /// The same about the echo request that [`Self::ping`] sent.
    #[track_caller]
    fn expect_echo_error(&mut self, kind: [u8; 2], to: IpAddr, identifier: u16) {
        let Family { pod, echo_request, .. } = self.family;
        let echo = self.error(kind, pod, to);
        assert_eq!(echo[..2], [echo_request, 0]);
        assert_eq!(echo[4..8], [identifier.to_be_bytes(), 1u16.to_be_bytes()].concat());
    }
}

/// ICMP for IPv4 has no pseudo header in its checksum (RFC 792), unlike everything else.
fn icmp_checksum_is_right(packet: &[u8]) -> bool {
    match packet::addresses(packet) {
        (IpAddr::V4(_), _, start) => {
            internet_checksum(&packet[..start]) == 0 && internet_checksum(&packet[start..]) == 0
        }
        (IpAddr::V6(_), ..) => packet::checksum_is_right(packet),
    }
}

const INSTANT: Duration = Duration::from_millis(1);

#[test]
fn a_peer_lives_as_long_as_its_port_lets_it_idle() {
    for family in families() {
        for (port, idle) in [(53, 10), (123, 10), (443, 180), (54, 180)] {
            let mut bench = Bench::new(family);
            let to = bench.host(port);
            let mapping = bench.open(40_000, to);
            bench.after(seconds(idle) - INSTANT);
            assert_eq!(bench.living(), (1, 0), "{to}");
            assert!(bench.reply(mapping, to), "{to}");
            bench.after(seconds(idle) - INSTANT);
            assert_eq!(bench.living(), (1, 0), "{to}: a reply is a use");
            bench.after(INSTANT);
            assert_eq!(bench.living(), (0, 0), "{to}");
            assert_eq!(bench.closed(), [(to, CloseReason::Idle)]);
            assert!(!bench.reply(mapping, to), "{to}: the mapping is gone");
        }
    }
}

#[test]
fn each_peer_of_a_mapping_idles_for_itself() {
    for family in families() {
        let mut bench = Bench::new(family);
        let (query, stream) = (bench.host(53), bench.host(443));
        let mapping = bench.open(40_000, stream);
        assert_eq!(bench.open(40_000, query), mapping, "one mapping for one source port");
        bench.after(seconds(10));
        assert_eq!(bench.closed(), [(query, CloseReason::Idle)]);
        assert!(!bench.reply(mapping, query));
        assert!(bench.reply(mapping, stream));
    }
}

#[test]
fn the_least_recently_used_mapping_gives_way() {
    for family in families() {
        let limits = Limits { udp_mappings: 3, ..Limits::default() };
        let mut bench = Bench::with(family, allow_all(), limits);
        let to = bench.host(443);
        let mappings = [40_001, 40_002, 40_003].map(|port| {
            bench.after(seconds(1));
            bench.open(port, to)
        });
        bench.after(seconds(1));
        bench.open(40_001, to);
        bench.after(seconds(1));
        assert!(bench.reply(mappings[1], to));
        bench.after(seconds(1));
        bench.open(40_004, to);
        assert_eq!(bench.living(), (3, 0));
        let [gone] = bench.engine.records.as_slice() else { panic!("{:?}", bench.engine.records) };
        assert_eq!((gone.source.port(), gone.close), (40_003, CloseReason::Evicted));
        assert_eq!(bench.dropped(DropReason::MappingLimit), 1);
        assert!(!bench.reply(mappings[2], to));
        assert!(bench.reply(mappings[0], to) && bench.reply(mappings[1], to));
    }
}

#[test]
fn the_pods_least_recently_used_peer_gives_way() {
    for family in families() {
        let limits = Limits { udp_peers: 3, ..Limits::default() };
        let mut bench = Bench::with(family, allow_all(), limits);
        let [first, second, third, fourth] = [1_001, 1_002, 1_003, 1_004].map(|port| bench.host(port));
        let shared = bench.open(40_000, first);
        bench.after(seconds(1));
        bench.open(40_000, second);
        bench.after(seconds(1));
        let lone = bench.open(40_001, third);
        bench.after(seconds(1));
        assert!(bench.reply(shared, first), "a reply is a use");
        bench.open(40_000, fourth);
        assert_eq!(bench.closed(), [(second, CloseReason::Evicted)]);
        assert!(!bench.reply(shared, second));
        bench.after(seconds(1));
        bench.open(40_000, second);
        assert_eq!(bench.closed()[1..], [(third, CloseReason::Evicted)]);
        assert_eq!(bench.living(), (1, 0), "a mapping goes with its last peer");
        assert!(!bench.reply(lone, third));
        assert_eq!(bench.engine.stack.counters().udp_evictions, 2);
        assert!([first, second, fourth].into_iter().all(|peer| bench.reply(shared, peer)));
    }
}

#[test]
fn a_stranger_gets_nothing_in() {
    for family in families() {
        let mut bench = Bench::new(family);
        let peer = bench.host(443);
        let mapping = bench.open(40_000, peer);
        for stranger in [bench.host(444), SocketAddr::new(family.other, 443)] {
            assert!(!bench.reply(mapping, stranger), "{stranger}");
        }
        assert_eq!(bench.dropped(DropReason::UnsolicitedReply), 2);
        assert!(bench.reply(mapping, peer));
        assert_eq!(bench.dropped(DropReason::UnsolicitedReply), 2);
    }
}

#[test]
fn echo_flows_are_counted_and_idle() {
    for family in families() {
        let limits = Limits { echo_flows: 2, ..Limits::default() };
        let mut bench = Bench::with(family, allow_all(), limits);
        let first = bench.ping(family.host, 1).expect("a flow");
        bench.ping(family.other, 1).expect("another destination is another flow");
        assert_eq!(bench.ping(family.host, 2), None);
        assert_eq!(bench.dropped(DropReason::EchoLimit), 1);
        bench.after(seconds(20));
        assert_eq!(bench.ping(family.host, 1), Some(first), "its flow is there");
        bench.after(seconds(10));
        assert_eq!(bench.living(), (0, 1));
        bench.ping(family.host, 2).expect("there is room again");
        bench.after(seconds(20) - INSTANT);
        assert_eq!(bench.living(), (0, 2));
        bench.after(INSTANT);
        assert_eq!(bench.living(), (0, 1));
        let idle = |host| (SocketAddr::new(host, 0), CloseReason::Idle);
        assert_eq!(bench.closed(), [idle(family.other), idle(family.host)]);
    }
}

/// What a capture asks: the permit of what lives, and nothing of what does not.
#[test]
fn who_looks_on_sees_the_permits_of_live_flows() {
    for family in families() {
        let mut bench = Bench::new(family);
        let (pod, to) = (bench.pod(40_000), bench.host(443));
        let (pinging, pinged) = (bench.pod(7), bench.host(0));
        let live = |bench: &Bench, protocol, pod, remote| {
            bench.engine.stack.live_flow(protocol, pod, remote).map(|live| live.permit.rule().clone())
        };
        assert_eq!(live(&bench, Protocol::Udp, pod, to), None);
        bench.open(40_000, to);
        bench.ping(family.host, 7).expect("a flow");
        for (protocol, pod, remote) in [(Protocol::Udp, pod, to), (Protocol::Icmp, pinging, pinged)] {
            let Decision::Allow(permit) = bench.engine.stack.decide(bench.now, protocol, remote) else {
                panic!()
            };
            assert_eq!(live(&bench, protocol, pod, remote).as_ref(), Some(permit.rule()));
        }
        assert_eq!(live(&bench, Protocol::Udp, pod, bench.host(444)), None);
        assert_eq!(live(&bench, Protocol::Icmp, bench.pod(8), pinged), None);
        assert_eq!(live(&bench, Protocol::Tcp, pod, to), None);
        bench.set_policy(deny_all());
        assert_eq!(live(&bench, Protocol::Udp, pod, to), None);
        assert_eq!(live(&bench, Protocol::Icmp, pinging, pinged), None);
    }
}

#[test]
fn a_new_policy_ends_what_it_refuses() {
    for family in families() {
        let mut bench = Bench::new(family);
        let to = bench.host(443);
        let mapping = bench.open(40_000, to);
        bench.ping(family.host, 1).expect("a flow");
        bench.set_policy(allow_all());
        assert_eq!(bench.living(), (1, 1), "what is still allowed goes on");
        assert!(bench.reply(mapping, to));
        bench.set_policy(deny_all());
        assert_eq!(bench.living(), (0, 0));
        let ended = |to| (to, CloseReason::PolicyChanged);
        assert_eq!(bench.closed(), [ended(to), ended(SocketAddr::new(family.host, 0))]);
        assert!(!bench.reply(mapping, to));
        assert_eq!(bench.send(40_000, to), None);
    }
}

#[test]
fn the_pod_is_told_what_the_outside_said_of_a_datagram() {
    for family in families() {
        for (failure, kind, reason) in family.failures() {
            let mut bench = Bench::new(family);
            let (failing, open) = (bench.host(9), bench.host(443));
            let mapping = bench.open(40_000, failing);
            bench.open(40_000, open);
            bench.engine.stack.udp_failed(bench.now, mapping, failing, failure, None);
            bench.engine.settle(bench.now);
            let pod = bench.pod(40_000);
            match kind {
                Some(kind) => bench.expect_error(kind, pod, failing),
                None => assert!(bench.engine.drain().is_empty(), "{failure:?} is silence"),
            }
            assert_eq!(bench.closed(), [(failing, reason)]);
            assert!(bench.reply(mapping, open), "the mapping's other peer goes on");
        }
    }
}

#[test]
fn the_pod_is_told_what_the_outside_said_of_an_echo_request() {
    for family in families() {
        for (failure, kind, reason) in family.failures() {
            let mut bench = Bench::new(family);
            let echo = bench.ping(family.host, 7).expect("a flow");
            bench.ping(family.other, 7).expect("a flow");
            bench.engine.stack.echo_failed(bench.now, echo, None, failure, None);
            bench.engine.settle(bench.now);
            match kind {
                Some(kind) => bench.expect_echo_error(kind, family.host, 7),
                None => assert!(bench.engine.drain().is_empty(), "{failure:?} is silence"),
            }
            assert_eq!(bench.closed(), [(SocketAddr::new(family.host, 0), reason)]);
            assert_eq!(bench.living(), (0, 1), "the other flow goes on");
        }
    }
}

#[test]
fn what_the_ip_header_asks_goes_along() {
    for family in families() {
        let mut bench = Bench::new(family);
        let to = bench.host(443);
        for (hop_limit, traffic_class, dont_fragment) in [(1, 0, true), (255, 0xbb, true), (64, 3, false)] {
            let mut packet = packet::udp(bench.pod(40_000), to, b"ask");
            if family.pod.is_ipv4() {
                (packet[1], packet[8]) = (traffic_class, hop_limit);
                packet[6] = if dont_fragment { 0x40 } else { 0 };
                packet::fix_ipv4_header(&mut packet);
            } else if dont_fragment {
                (packet[0], packet[1]) = (0x60 | traffic_class >> 4, traffic_class << 4);
                packet[7] = hop_limit;
            } else {
                continue;
            }
            let Input::Datagram { fields, .. } = bench.engine.inject(bench.now, &packet) else { panic!() };
            assert_eq!(fields, IpFields { hop_limit, traffic_class, dont_fragment });
        }
        // What the pod has cut may be cut again.
        let whole = packet::udp(bench.pod(40_000), to, &[7; 3_000]);
        let pieces = packet::fragments(&whole, 1_480, 1);
        let inputs: Vec<_> = pieces.iter().map(|piece| bench.engine.inject(bench.now, piece)).collect();
        let Some(Input::Datagram { fields, .. }) = inputs.last() else { panic!("{inputs:?}") };
        assert!(!fields.dont_fragment);
        let echo = packet::echo_request(family.pod, family.host, 7, 1, b"ping");
        let Input::Echo { fields, .. } = bench.engine.inject(bench.now, &echo) else { panic!() };
        assert_eq!(fields.hop_limit, 64);
    }
}

/// RFC 4443 3.4: the pointer leads to the octet that names the protocol, behind whatever extension headers there are.
#[test]
fn an_unknown_protocol_is_pointed_at() {
    let [_, family] = families();
    // Destination options of eight octets, all padding.
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let hop_by_hop = 0;
    for (first, headers, pointer) in [
        (132, Vec::new(), 6u32),
        (60, options(132).to_vec(), 40),
        (hop_by_hop, [options(60), options(132)].concat(), 48),
    ] {
        let mut bench = Bench::new(family);
        let payload = [&headers[..], &[7; 12]].concat();
        let asked = packet::ip(family.pod, family.host, first, &payload);
        assert_eq!(bench.engine.inject(bench.now, &asked), Input::Done);
        let error = bench.engine.drain().remove(0);
        let (_, _, start) = packet::addresses(&error);
        assert_eq!(error[start..start + 2], [4, 1]);
        assert_eq!(error[start + 4..start + 8], pointer.to_be_bytes());
        assert_eq!(error[start + 8 + pointer as usize], 132, "there it stands in the packet that is quoted");
        assert_eq!(bench.dropped(DropReason::UnknownProtocol), 1);
    }
}

/// Neither ends the flow: smaller datagrams pass, and a traceroute goes on.
#[test]
fn the_pod_is_told_what_is_too_large_and_what_went_too_far() {
    for family in families() {
        let v4 = family.pod.is_ipv4();
        let router: IpAddr = if v4 { "192.0.2.99" } else { "2001:db8::99" }.parse().expect("an address");
        let too_big = if v4 { [3, 4] } else { [2, 0] };
        let exceeded = if v4 { [11, 0] } else { [3, 0] };
        for (report, kind, word) in [
            (Report::TooBig { mtu: 1_400 }, too_big, 1_400),
            (Report::TooBig { mtu: 0 }, too_big, if v4 { 68 } else { 1_280 }),
            (Report::HopLimit, exceeded, 0u32),
        ] {
            let mut bench = Bench::new(family);
            let to = bench.host(443);
            let mapping = bench.open(40_000, to);
            let echo = bench.ping(family.host, 7).expect("a flow");
            bench.engine.stack.udp_failed(bench.now, mapping, to, report, Some(router));
            // An earlier request than the last one.
            bench.engine.stack.echo_failed(bench.now, echo, Some(0), report, Some(router));
            bench.engine.settle(bench.now);
            let errors = bench.engine.drain();
            assert_eq!(errors.len(), 2);
            for (error, quoted) in errors.iter().zip([40_000u16.to_be_bytes(), [family.echo_request, 0]]) {
                assert!(icmp_checksum_is_right(error));
                let (sender, receiver, start) = packet::addresses(error);
                assert_eq!((sender, receiver), (router, family.pod));
                assert_eq!(
                    (&error[start..start + 2], &error[start + 4..start + 8]),
                    (&kind[..], &word.to_be_bytes()[..])
                );
                let (source, destination, transport) = packet::addresses(&error[start + 8..]);
                assert_eq!((source, destination), (family.pod, family.host));
                assert_eq!(error[start + 8 + transport..][..2], quoted);
            }
            assert_eq!(errors[1][errors[1].len() - 2..], [0, 0], "the sequence number of the request");
            let lost = if report == Report::HopLimit { 0 } else { 2 };
            assert_eq!(bench.dropped(DropReason::TooBig), lost);
            assert_eq!((bench.living(), bench.closed()), ((1, 1), Vec::new()));
        }
    }
}

/// The node's own addresses, and those of another family, say nothing to the pod.
#[test]
fn an_error_comes_from_a_router_or_from_the_destination() {
    for family in families() {
        for reporter in [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0; 16]), family.pod, family.host] {
            let mut bench = Bench::new(family);
            let to = bench.host(443);
            let mapping = bench.open(40_000, to);
            bench.engine.stack.udp_failed(bench.now, mapping, to, Report::HopLimit, Some(reporter));
            bench.engine.settle(bench.now);
            let error = bench.engine.drain().remove(0);
            assert_eq!(packet::addresses(&error).0, family.host, "{reporter}");
        }
    }
}

#[test]
fn the_pod_is_told_of_a_refusal_by_policy() {
    for family in families() {
        let mut bench = Bench::with(family, deny_all(), Limits::default());
        let (pod, to) = (bench.pod(40_000), bench.host(443));
        assert_eq!(bench.send(40_000, to), None);
        bench.expect_error(family.prohibited, pod, to);
        assert_eq!(bench.closed(), [(to, CloseReason::Denied)]);
        assert_eq!((bench.living(), bench.dropped(DropReason::Policy)), ((0, 0), 1));
    }
}

#[test]
fn the_pod_is_told_of_an_echo_request_refused_by_policy() {
    for family in families() {
        let mut bench = Bench::with(family, deny_all(), Limits::default());
        assert_eq!(bench.ping(family.host, 7), None);
        bench.expect_echo_error(family.prohibited, family.host, 7);
        assert_eq!(bench.closed(), [(SocketAddr::new(family.host, 0), CloseReason::Denied)]);
        assert_eq!((bench.living(), bench.dropped(DropReason::Policy)), ((0, 0), 1));
    }
}

#[test]
fn ports_that_policy_opens_take_datagrams_from_all_whom_the_pod_may_send_to() {
    for family in families() {
        let open = filtered(UdpFiltering::EndpointIndependent, family.other);
        let mut bench = Bench::with(family, open, Limits { udp_peers: 3, ..Limits::default() });
        let mapping = bench.open(40_000, bench.host(3_478));
        // Another port of the host, that the pod never sent to, calls; the pod answers by the same mapping.
        assert!(bench.reply(mapping, bench.host(5_000)));
        assert_eq!(bench.open(40_000, bench.host(5_000)), mapping);
        assert_eq!(bench.dropped(DropReason::UnsolicitedReply), 0);
        // Whom policy refuses calls in vain, and so does a port of the node.
        assert!(!bench.reply(mapping, SocketAddr::new(family.other, 5_000)));
        let node = if family.pod.is_ipv4() { "127.0.0.1:53" } else { "[::1]:53" };
        assert!(!bench.reply(mapping, node.parse().unwrap()));
        assert_eq!(bench.dropped(DropReason::UnsolicitedReply), 2);
        // Callers take places like everybody: the least recently used gives way.
        bench.after(seconds(1));
        assert!(bench.reply(mapping, bench.host(5_001)));
        assert!(bench.reply(mapping, bench.host(5_002)));
        assert_eq!(bench.closed().len(), 1);
        assert_eq!(bench.engine.stack.counters().udp_evictions, 1);
        // A policy that closes the ports leaves those who are peers, and takes nobody more.
        bench.set_policy(filtered(UdpFiltering::AddressAndPortDependent, family.other));
        assert!(bench.reply(mapping, bench.host(5_001)));
        assert!(!bench.reply(mapping, bench.host(5_003)));
    }
}

#[test]
fn a_caller_that_takes_the_place_of_the_only_peer_is_not_lost_with_it() {
    for family in families() {
        let open = filtered(UdpFiltering::EndpointIndependent, family.other);
        let mut bench = Bench::with(family, open, Limits { udp_peers: 1, ..Limits::default() });
        let mapping = bench.open(40_000, bench.host(3_478));
        // The mapping went with its last peer, and the socket it came by with it.
        assert!(!bench.reply(mapping, bench.host(5_000)));
        assert_eq!(bench.living().0, 0);
    }
}
