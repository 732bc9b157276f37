//! Names that share an address: the flow's first octets decide, and until then nothing passes in either direction.

use std::net::SocketAddr;
use std::sync::Arc;

use tunproxy_datapath::{CloseReason, Cx, DialFailure, NameSource, UpstreamFailure};
use tunproxy_policy::model::{Destination, EgressAction, KnownUpstreams, Policies, Rule};
use tunproxy_policy::{DomainPattern, NodeDefault, Protocol, WorkloadPolicy};
use tunproxy_testkit::packet;

use crate::common::{self, config};
use crate::script::{Script, secs};
use crate::segment::{ACK, RST, ack, data, fin, syn};

const RESOLVER: &str = "10.96.0.10:53";

fn rule(action: EgressAction, names: &[&str], via: Option<&str>) -> Rule<EgressAction> {
    let patterns = names.iter().map(|name| DomainPattern::parse(name).expect("a pattern")).collect();
    let via = via.map(str::to_owned);
    Rule { via, ..common::rule(action, vec![Destination::Domains(patterns)]) }
}

fn policies(rules: Vec<Rule<EgressAction>>) -> Arc<WorkloadPolicy> {
    let mut upstreams = KnownUpstreams::default();
    upstreams.add_cluster("proxy");
    let egress = vec![common::egress(rules)];
    common::policy(&Policies { egress, cluster: Vec::new(), upstreams }, NodeDefault::Deny)
}

/// Only `good.example` is allowed; `bad.example` has the same address, and the pod knows both.
fn shared_address() -> Script {
    with(vec![rule(EgressAction::Allow, &["good.example"], None)], &["good.example", "bad.example"])
}

fn with(rules: Vec<Rule<EgressAction>>, names: &[&str]) -> Script {
    let mut s = Script::with(config(policies(rules)));
    for name in names {
        resolve(&mut s, name);
    }
    s.remote = "192.0.2.1:443".parse().expect("an address");
    s
}

/// Lets the pod ask the trusted resolver for `name`, which answers with the shared address.
fn resolve(s: &mut Script, name: &str) {
    resolve_with(s, RESOLVER, name);
}

fn resolve_with(s: &mut Script, resolver: &str, name: &str) {
    let (query, response) = common::conversation(name);
    let resolver: SocketAddr = resolver.parse().expect("an address");
    let mapping = match s.engine.inject(s.now, &packet::udp(s.pod, resolver, &query)) {
        tunproxy_datapath::Input::Datagram { mapping, .. } => mapping,
        other => panic!("the resolver is allowed, not {other:?}"),
    };
    s.engine.stack.udp_reply(s.now, mapping, resolver, &response).expect("the pod asked");
}

fn client_hello(name: &str) -> Vec<u8> {
    let host = name.as_bytes();
    let mut extension = vec![0, 0];
    extension.extend((host.len() as u16 + 5).to_be_bytes());
    extension.extend((host.len() as u16 + 3).to_be_bytes());
    extension.push(0);
    extension.extend((host.len() as u16).to_be_bytes());
    extension.extend(host);
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend((extension.len() as u16).to_be_bytes());
    body.extend(extension);
    let mut record = vec![22, 3, 1];
    record.extend((body.len() as u16 + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend((body.len() as u16).to_be_bytes());
    record.extend(body);
    record
}

fn http(name: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n").into_bytes()
}

/// What the pod said first and was acknowledged never reached the upstream; the pod is reset.
#[track_caller]
fn refused(s: &mut Script, seq: u32) {
    let answer = s.all().pop().expect("a reset");
    assert!(answer.has(RST), "{answer:?}");
    answer.ack(seq);
    assert!(s.engine.upstreams.values().all(|upstream| upstream.received.is_empty()));
    assert_eq!(s.record().close, CloseReason::Denied);
    s.gone();
}

#[test]
fn one_name_for_the_address_needs_no_octets() {
    let mut s = with(vec![rule(EgressAction::Allow, &["good.example"], None)], &["good.example"]);
    s.connect(syn());
    s.upstream_sends(b"220 hello");
    s.expect(ACK).payload(b"220 hello");
    assert_eq!(s.connects()[0].name.as_ref().map(ToString::to_string).as_deref(), Some("good.example"));
}

/// What a capture sees of the flow: provisional while the name is open, then what the name came to.
#[test]
fn who_looks_on_sees_whether_the_name_is_open() {
    let mut s = shared_address();
    let seen = |s: &Script| {
        let live = s.engine.stack.live_flow(Protocol::Tcp, s.pod, s.remote).expect("a live flow");
        (live.name_open, live.name_source)
    };
    s.connect(syn());
    assert_eq!(seen(&s), (true, Some(NameSource::Dns)));
    s.pod(data(1, 1, &client_hello("good.example")));
    assert_eq!(seen(&s), (false, Some(NameSource::Sni)));
}

#[test]
fn an_address_without_a_name_is_refused() {
    let mut s = with(vec![rule(EgressAction::Allow, &["good.example"], None)], &[]);
    s.pod(syn());
    s.expect(RST | ACK).seq(0).ack(1);
}

/// The pod may ask whom it likes where the policy says so; only a trusted answer binds a name to an address.
#[test]
fn an_untrusted_resolver_teaches_no_name() {
    let elsewhere = Rule {
        to: vec![Destination::Networks {
            networks: vec!["203.0.113.53/32".parse().expect("a network")],
            except: Vec::new(),
        }],
        ..rule(EgressAction::Allow, &[], None)
    };
    let good = rule(EgressAction::Allow, &["good.example"], None);
    let mut s = with(vec![good, elsewhere], &[]);
    resolve_with(&mut s, "203.0.113.53:53", "good.example");
    s.pod(syn());
    s.expect(RST | ACK).seq(0).ack(1);
    s.begin_anew(7_000_000);
    resolve(&mut s, "good.example");
    s.connect(syn());
}

/// RFC 7766: two octets of length before each message, which may come in any pieces.
#[test]
fn a_trusted_answer_over_tcp_teaches_a_name() {
    let (query, response) = common::conversation("good.example");
    let framed = |message: &[u8]| [&(message.len() as u16).to_be_bytes(), message].concat();
    let mut s = with(vec![rule(EgressAction::Allow, &["good.example"], None)], &[]);
    let web = s.remote;
    s.remote = RESOLVER.parse().expect("an address");
    s.connect(syn());
    let query = framed(&query);
    s.pod(data(1, 1, &query));
    s.upstream_got(&query);
    let response = framed(&response);
    for piece in [&response[..1], &response[1..20], &response[20..]] {
        s.upstream_sends(piece);
    }
    s.remote = web;
    s.reconnect_from(40_001, 5_000_000);
    s.all();
    s.connect(syn());
    let last = s.engine.connects.last().expect("a connect");
    assert_eq!(last.2.as_deref(), Some("good.example"));
}

#[test]
fn the_allowed_name_in_tls_lets_the_octets_pass() {
    let mut s = shared_address();
    s.connect(syn());
    let hello = client_hello("good.example");
    s.pod(data(1, 1, &hello));
    s.expect(ACK).ack(1 + hello.len() as u32);
    s.upstream_got(&hello);
    s.upstream_sends(b"server hello");
    s.expect(ACK).payload(b"server hello");
    assert_eq!(s.connects().len(), 1);
    s.pod(fin(1 + hello.len() as u32, 13));
    s.all();
    s.upstream_closes();
    s.all();
    s.pod(ack(2 + hello.len() as u32, 14));
    let record = s.record();
    assert_eq!(record.name.as_ref().map(ToString::to_string).as_deref(), Some("good.example"));
    assert_eq!(record.name_source, Some(NameSource::Sni));
}

#[test]
fn the_refused_name_in_tls_is_reset_before_an_octet_passed() {
    let mut s = shared_address();
    s.connect(syn());
    let hello = client_hello("bad.example");
    s.pod(data(1, 1, &hello));
    refused(&mut s, 1 + hello.len() as u32);
    assert_eq!(s.record().name.as_ref().map(ToString::to_string).as_deref(), Some("bad.example"));
}

#[test]
fn http_names_by_its_host_header() {
    let mut s = shared_address();
    s.connect(syn());
    s.pod(data(1, 1, &http("good.example")));
    s.all();
    s.upstream_got(&http("good.example"));
    let mut s = shared_address();
    s.connect(syn());
    s.pod(data(1, 1, &http("bad.example")));
    refused(&mut s, 1 + http("bad.example").len() as u32);
}

#[test]
fn a_name_the_pod_never_asked_for_is_not_believed() {
    for name in ["other.example", "192.0.2.1"] {
        let mut s = shared_address();
        s.connect(syn());
        let hello = client_hello(name);
        s.pod(data(1, 1, &hello));
        refused(&mut s, 1 + hello.len() as u32);
    }
}

#[test]
fn octets_that_name_nothing_get_the_strictest_reading() {
    let mut s = shared_address();
    s.connect(syn());
    s.pod(data(1, 1, b"\0\x01\x02binary"));
    refused(&mut s, 10);
}

#[test]
fn the_name_may_come_octet_by_octet_and_out_of_order() {
    let hello = client_hello("good.example");
    let mut s = shared_address();
    s.connect(syn());
    for (at, &octet) in hello.iter().enumerate() {
        s.pod(data(1 + at as u32, 1, &[octet]));
    }
    s.all();
    s.upstream_got(&hello);
    let mut s = shared_address();
    s.connect(syn());
    for (at, &octet) in hello.iter().enumerate().rev() {
        s.pod(data(1 + at as u32, 1, &[octet]));
    }
    s.all();
    let half = hello.len() / 2;
    s.pod(data(1, 1, &hello[..half]));
    s.pod(data(1 + half as u32, 1, &hello[half..]));
    s.upstream_got(&hello);
}

#[test]
fn a_client_that_waits_for_the_server_gets_the_strictest_reading_after_a_while() {
    let mut s = shared_address();
    s.engine.script =
        Box::new(|| common::Upstream { to_send: b"220 hello".to_vec().into(), ..Default::default() });
    s.connect(syn());
    s.quiet();
    s.after(secs(4));
    s.quiet();
    s.after(secs(2));
    refused(&mut s, 1);
}

#[test]
fn where_all_names_are_allowed_the_server_may_begin() {
    let both = vec![rule(EgressAction::Allow, &["good.example", "bad.example"], None)];
    let mut s = with(both, &["good.example", "bad.example"]);
    s.connect(syn());
    s.upstream_sends(b"220 hello");
    s.after(secs(6));
    s.expect(ACK).payload(b"220 hello");
}

#[test]
fn a_client_that_closes_without_a_word_gets_the_strictest_reading() {
    let mut s = shared_address();
    s.connect(syn());
    s.pod(fin(1, 1));
    refused(&mut s, 2);
}

#[test]
fn a_hello_cut_short_by_the_fin_is_refused() {
    let mut s = shared_address();
    s.connect(syn());
    let hello = client_hello("good.example");
    s.pod(fin(1, 1).payload(&hello[..20]));
    refused(&mut s, 22);
}

#[test]
fn the_whole_request_with_its_fin_passes() {
    let mut s = shared_address();
    s.connect(syn());
    let request = http("good.example");
    s.pod(fin(1, 1).payload(&request));
    s.expect(ACK).ack(2 + request.len() as u32);
    s.upstream_got(&request);
    assert!(s.upstream().shut);
}

#[test]
fn a_first_flight_without_end_is_cut_off() {
    let mut s = shared_address();
    s.connect(syn().mss(1_460));
    let mut seq = 1;
    // A record that promises more and more.
    s.pod(data(seq, 1, &[22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb]));
    seq += 9;
    while s.flows() == 1 {
        s.pod(data(seq, 1, &[0; 1_000]));
        seq += 1_000;
        assert!(seq < 40_000, "still waiting for a name");
    }
    assert!(s.all().pop().expect("a reset").has(RST));
}

#[test]
fn a_name_that_goes_by_another_way_is_dialled_anew_before_an_octet_passes() {
    let rules = vec![
        rule(EgressAction::Allow, &["good.example"], None),
        rule(EgressAction::Allow, &["bad.example"], Some("proxy")),
    ];
    for (name, dials) in [("good.example", 1..=2), ("bad.example", 1..=2)] {
        let mut s = with(rules.clone(), &["good.example", "bad.example"]);
        s.connect(syn());
        let hello = client_hello(name);
        s.pod(data(1, 1, &hello));
        s.all();
        let connects = s.connects();
        assert!(dials.contains(&connects.len()));
        let last = connects.last().expect("a connect").name.as_ref().map(ToString::to_string);
        assert_eq!(last.as_deref(), Some(name));
        s.upstream_got(&hello);
        s.upstream_sends(b"hi");
        s.expect(ACK).payload(b"hi");
    }
}

#[test]
fn a_new_policy_counts_for_flows_that_have_shown_no_name_yet() {
    // Yesterday both names were allowed; today only one is, and what held without a name is no longer so.
    let one = || policies(vec![rule(EgressAction::Allow, &["good.example"], None)]);
    let start = || {
        let mut s = with(
            vec![
                rule(EgressAction::Allow, &["good.example"], None),
                rule(EgressAction::Allow, &["bad.example"], Some("proxy")),
            ],
            &["good.example", "bad.example"],
        );
        s.connect(syn());
        s
    };
    let mut s = start();
    let cx = &mut Cx { now: s.now, pool: &mut s.engine.pool };
    s.engine.stack.set_policy(cx, one());
    s.settle();
    s.pod(data(1, 1, b"\0binary"));
    let seen = s.all();
    let passed = s.engine.upstreams.values().any(|upstream| !upstream.received.is_empty());
    assert!(seen.iter().any(|seen| seen.has(RST)) && !passed, "{seen:?}");
}

#[test]
fn a_policy_that_now_refuses_every_name_resets_at_once() {
    let mut s = shared_address();
    s.connect(syn());
    let cx = &mut Cx { now: s.now, pool: &mut s.engine.pool };
    s.engine.stack.set_policy(cx, policies(vec![rule(EgressAction::Deny, &["good.example"], None)]));
    s.settle();
    s.expect(RST | ACK);
    assert_eq!(s.record().close, CloseReason::PolicyChanged);
    s.gone();
}

#[test]
fn a_policy_that_now_allows_the_address_settles_the_flow() {
    let mut s = shared_address();
    s.connect(syn());
    s.upstream_sends(b"220 hello");
    s.quiet();
    let cx = &mut Cx { now: s.now, pool: &mut s.engine.pool };
    s.engine.stack.set_policy(cx, common::allow_all());
    s.settle();
    s.expect(ACK).payload(b"220 hello");
}

#[test]
fn a_flow_begins_once_when_it_has_its_name_and_its_upstream() {
    let rules = vec![
        rule(EgressAction::Allow, &["good.example"], None),
        rule(EgressAction::Allow, &["bad.example"], Some("proxy")),
    ];
    for (name, upstream) in [("good.example", "direct"), ("bad.example", "proxy")] {
        let mut s = with(rules.clone(), &["good.example", "bad.example"]);
        s.engine.begins.clear();
        s.connect(syn());
        assert!(s.engine.begins.is_empty(), "it has shown no name yet");
        s.pod(data(1, 1, &client_hello(name)));
        let [begin] = s.engine.begins.as_slice() else { panic!("{:?}", s.engine.begins) };
        assert_eq!(begin.name.as_ref().map(ToString::to_string).as_deref(), Some(name));
        assert_eq!(begin.name_source, Some(NameSource::Sni));
        assert_eq!((&*begin.upstream.0, begin.destination), (upstream, s.remote));
    }
}

#[test]
fn each_protocol_tells_of_what_was_let_through_and_of_nothing_else() {
    let mut s = with(vec![rule(EgressAction::Allow, &["good.example"], None)], &["good.example"]);
    let [dns] = s.engine.begins.as_slice() else { panic!("{:?}", s.engine.begins) };
    assert_eq!((dns.protocol, dns.destination.to_string().as_str()), (Protocol::Udp, RESOLVER));
    s.connect(syn());
    s.engine.inject(s.now, &packet::echo_request(s.pod.ip(), s.remote.ip(), 7, 1, b"ping"));
    s.engine.settle(s.now);
    let protocols: Vec<_> = s.engine.begins.iter().map(|begin| begin.protocol).collect();
    assert_eq!(protocols, [Protocol::Udp, Protocol::Tcp, Protocol::Icmp]);

    s.engine.begins.clear();
    s.fail(DialFailure::Refused);
    s.begin_anew(77);
    s.remote = "192.0.2.2:443".parse().expect("an address");
    s.pod(syn());
    assert!(s.engine.begins.is_empty(), "neither what failed nor what was refused: {:?}", s.engine.begins);
}

#[test]
fn what_the_upstream_said_when_it_failed_is_in_the_record() {
    let mut s = with(vec![rule(EgressAction::Allow, &["good.example"], None)], &["good.example"]);
    s.dial(common::Dial::Never);
    s.pod(syn());
    let failure =
        UpstreamFailure { kind: DialFailure::Failed, detail: Some("not allowed by ruleset".into()) };
    let flow = s.flow();
    s.engine.stack.upstream_failed(&mut Cx { now: s.now, pool: &mut s.engine.pool }, flow, failure);
    s.engine.settle(s.now);
    assert_eq!(s.record().close, CloseReason::UpstreamFailed);
    assert_eq!(s.record().detail.as_deref(), Some("not allowed by ruleset"));
}
