//! What is told of flows, and how pods share the upstreams.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use rustix::process::Signal;
use serde_json::Value;
use tunproxy_testkit::servers::{Danted, Microsocks};
use tunproxy_testkit::topology::NODE_V4;
use tunproxy_testkit::{Host, root_or_skip, wait};

use crate::lab::{LIMIT, Lab, Pod, ask_for_greeting, web};

#[test]
fn a_flow_has_a_line_when_it_begins_if_that_is_asked_for() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let _agent = lab.agent_with(&[("TUNPROXY_FLOW_LOG_BEGIN", "true")]);
    let pod = Pod::create(&lab, "c1");
    pod.add(&lab).unwrap();
    let stream = pod.connect().unwrap();
    wait::until_true("the line of the beginning", LIMIT, || !lab.flows().is_empty()).unwrap();
    let begin = lab.flows().remove(0);
    assert_eq!((&begin["pod"]["name"], &begin["verdict"]), (&"c1".into(), &"allowed".into()));
    assert_eq!(begin["destination"], web().to_string());
    for absent in ["time", "close", "durationMs", "bytesSent", "packetsReceived", "reason"] {
        assert!(begin.get(absent).is_none(), "{absent} is in {begin}");
    }
    assert_eq!(ask_for_greeting(stream).unwrap(), "hello");
    wait::until_true("the line of the end", LIMIT, || lab.flows().len() == 2).unwrap();
    let end = lab.flows().remove(1);
    assert_eq!((&end["source"], &end["close"]), (&begin["source"], &"finished".into()));
    assert_eq!((&end["bytesSent"], &end["bytesReceived"]), (&1.into(), &5.into()));
}

#[test]
fn what_a_proxy_says_when_it_refuses_is_the_reason() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let proxy =
        Microsocks::start(&lab.topology.outside, Host::Socks.v4().into(), 1081, "me", "secret").unwrap();
    let upstream = format!("socks5://me:guess@{}", proxy.address());
    let _agent = lab.agent_with(&[("TUNPROXY_UPSTREAM", &upstream)]);
    let pod = Pod::create(&lab, "c1");
    pod.add(&lab).unwrap();
    assert!(pod.is_refused());
    wait::until_true("the flow's line", LIMIT, || !lab.flows().is_empty()).unwrap();
    let flow = lab.flows().remove(0);
    let reason = flow["reason"].as_str().unwrap();
    let expected =
        format!("the proxy {} gave no connection: it refused the username and password", proxy.address());
    assert!(reason.starts_with(&expected), "{reason}");
    assert_eq!(flow["close"], "upstream-failed");
    assert_eq!(flow["verdict"], "allowed");
    assert!(!flow.to_string().contains("guess"), "{flow}");
}

/// What the pods of the namespace `hammer` ask for goes to a proxy that never answers.
const HAMMER: &str = "\
apiVersion: tunproxy.io/v1alpha1
kind: ClusterUpstream
metadata: {name: dead}
spec: {type: SOCKS5, address: \"DEAD\", connectTimeout: 20s}
---
apiVersion: tunproxy.io/v1alpha1
kind: EgressPolicy
metadata: {name: dead, namespace: hammer}
spec:
  podSelector: {}
  rules:
  - {name: all, action: Allow, to: [{networks: [0.0.0.0/0]}], via: {upstream: dead}}
";

/// Connects through proxies that may be under way.
const DIALS: usize = 16;

#[test]
fn a_pod_that_hammers_a_dead_proxy_waits_for_itself_only() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let outside = &lab.topology.outside;
    // It takes connections (the kernel does) and says nothing.
    let dead: TcpListener = outside.tcp_listen(SocketAddr::new(Host::Socks.v4().into(), 1090)).unwrap();
    let proxy = Danted::start(outside, SocketAddr::new(Host::Socks.v4().into(), 1080)).unwrap();
    lab.write_policy(&HAMMER.replace("DEAD", &dead.local_addr().unwrap().to_string()));
    let upstream = format!("socks5://{}", proxy.address());
    let _agent =
        lab.agent_with(&[("TUNPROXY_UPSTREAM", &upstream), ("TUNPROXY_LIMITS_DIALS", &DIALS.to_string())]);
    let mut hammer = Pod::create(&lab, "c1");
    hammer.attachment.pod.namespace = "hammer".into();
    let other = Pod::create(&lab, "c2");
    for pod in [&hammer, &other] {
        pod.add(&lab).unwrap();
    }

    let attempts = hammer.namespace.enter(|| (0..2 * DIALS).map(|_| attempt()).collect::<Vec<_>>());
    let refused = || attempts.iter().filter(|socket| is_refused(socket)).count();
    wait::until_true("the refusals beyond its share", LIMIT, || refused() == 2 * DIALS - DIALS / 2).unwrap();
    assert_eq!(other.fetch().unwrap(), "hello", "the other pod finds room");
    wait::until_true("the refusals' lines", LIMIT, || {
        let limited = |flow: &&Value| flow["pod"]["namespace"] == "hammer" && flow["close"] == "limit";
        lab.flows().iter().filter(limited).count() == 2 * DIALS - DIALS / 2
    })
    .unwrap();
}

/// A connect under way.
fn attempt() -> OwnedFd {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
    assert_eq!(connect(&socket, &web()), Err(rustix::io::Errno::INPROGRESS));
    socket
}

/// Looks without taking the error away.
fn is_refused(socket: &OwnedFd) -> bool {
    let mut poll = [rustix::event::PollFd::new(socket, rustix::event::PollFlags::OUT)];
    rustix::event::poll(&mut poll, Some(&rustix::time::Timespec::default())).unwrap();
    poll[0].revents().contains(rustix::event::PollFlags::ERR)
}

#[test]
fn the_log_for_programs_is_one_json_object_a_line() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let mut agent = lab.agent_with(&[("TUNPROXY_LOG_FORMAT", "json"), ("TUNPROXY_LOG_LEVEL", "debug")]);
    let pod = Pod::create(&lab, "c1");
    pod.add(&lab).unwrap();
    assert_eq!(pod.fetch().unwrap(), "hello");
    agent.signal(Signal::TERM).unwrap();
    assert!(agent.wait(LIMIT).unwrap().success());
    let log = agent.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    for line in &lines {
        assert!(line["timestamp"].is_string() && line["message"].is_string(), "{line}");
        assert!(["ERROR", "WARN", "INFO", "DEBUG"].contains(&line["level"].as_str().unwrap()), "{line}");
    }
    let attached = lines.iter().find(|line| line["message"] == "attached").expect("the attachment is told");
    assert_eq!((&attached["key"], &attached["pod"]), (&"c1/eth0".into(), &"shop/c1".into()));
}

/// What comes for a pod whose device is down is lost, and that is to be seen.
#[test]
fn a_packet_that_the_device_refuses_is_counted() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let _agent = lab.agent();
    let pod = Pod::create(&lab, "c1");
    pod.add(&lab).unwrap();
    let server = lab.topology.outside.udp_bind(SocketAddr::new(Host::Web.v4().into(), 0)).unwrap();
    server.set_read_timeout(Some(LIMIT)).unwrap();
    let client = pod.namespace.udp_bind("10.244.0.9:0".parse().unwrap()).unwrap();
    client.send_to(b"ask", server.local_addr().unwrap()).unwrap();
    let (_, from) = server.recv_from(&mut [0; 9]).unwrap();
    pod.namespace.ip("link set eth0 down").unwrap();
    server.send_to(b"too late", from).unwrap();
    let lost = || lab.status()["pods"][0]["drops"]["tun-write"].as_u64();
    wait::until_true("the loss in the counters", LIMIT, || lost() == Some(1)).unwrap();
}

#[test]
fn an_upstream_that_is_gone_is_noticed_as_a_pod_is() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    notices_silence(&lab, "direct", web());
}

#[test]
fn a_proxy_that_went_away_is_noticed() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let proxy =
        Microsocks::start(&lab.topology.outside, Host::Socks.v4().into(), 1082, "me", "secret").unwrap();
    notices_silence(&lab, &format!("socks5://me:secret@{}", proxy.address()), proxy.address());
}

/// `peer`: whom the node's socket is connected to.
fn notices_silence(lab: &Lab, upstream: &str, peer: SocketAddr) {
    let _agent = lab.agent_with(&[
        ("TUNPROXY_UPSTREAM", upstream),
        ("TUNPROXY_TCP_KEEPALIVE", "1"),
        ("TUNPROXY_TCP_KEEPALIVE_INTERVAL", "1"),
        ("TUNPROXY_TCP_KEEPALIVE_PROBES", "2"),
    ]);
    let pod = Pod::create(lab, "c1");
    pod.add(lab).unwrap();
    let mut stream = pod.connect().unwrap();
    // What the kernel says of the node's socket.
    let timers = || lab.topology.node.run(&format!("ss -Htno state established dst {peer}")).unwrap();
    wait::until_true("the keepalive", LIMIT, || timers().contains("timer:(keepalive,")).unwrap();
    // No answer any more, and nothing that says so.
    lab.topology.outside.ip(&format!("route add blackhole {NODE_V4}/32")).unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let ended = |flow: &Value| flow["source"] == stream.local_addr().unwrap().to_string();
    wait::until_true("the flow's line", LIMIT, || lab.flows().iter().any(ended)).unwrap();
}
