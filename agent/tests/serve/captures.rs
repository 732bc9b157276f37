//! Captures on the admin socket, asked for by hand.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

use serde_json::json;
use tunproxy_testkit::process::Background;
use tunproxy_testkit::{root_or_skip, wait};

use crate::lab::{LIMIT, Lab, Pod};

const BLOCK: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// A capture's answer so far: the status and what came behind the head.
struct Answer {
    stream: UnixStream,
    head: String,
}

fn ask(lab: &Lab, request: &serde_json::Value) -> Answer {
    let mut stream = UnixStream::connect(lab.path("admin.sock")).unwrap();
    stream.write_all(post(request).as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut octet = [0];
        stream.read_exact(&mut octet).unwrap();
        head.extend(octet);
    }
    Answer { stream, head: String::from_utf8(head).unwrap() }
}

fn post(request: &serde_json::Value) -> String {
    let body = request.to_string();
    format!(
        "POST /captures HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

impl Answer {
    fn has(&self, status: u16) -> bool {
        self.head.starts_with(&format!("HTTP/1.0 {status} "))
    }

    fn begins(&mut self) {
        assert!(self.has(200), "{}", self.head);
        let mut block = [0; 4];
        self.stream.read_exact(&mut block).unwrap();
        assert_eq!(block, BLOCK);
    }

    /// The rest of the file, as text as far as it is some.
    fn rest(mut self) -> String {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).unwrap();
        String::from_utf8_lossy(&rest).into_owned()
    }
}

fn running(agent: &Background) -> usize {
    let log = agent.log();
    log.matches("a capture begins").count() - log.matches("a capture is over").count()
}

#[test]
fn a_capture_ends_with_its_client_with_its_pod_and_when_it_is_told() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let agent = lab.agent();
    let pod = Pod::create(&lab, "c1");
    pod.add(&lab).unwrap();
    let request = json!({"pod": "shop/c1"});

    let mut left = ask(&lab, &request);
    left.begins();
    assert_eq!(running(&agent), 1);
    drop(left);
    // No packet has to pass for that.
    wait::until_true("the end of the capture that nobody reads", LIMIT, || running(&agent) == 0).unwrap();

    let mut told = ask(&lab, &request);
    told.begins();
    let number = told.head.split("tunproxy-capture: ").nth(1).unwrap().split("\r\n").next().unwrap();
    for (number, status) in [(number, 204), ("99", 404)] {
        let mut stream = UnixStream::connect(lab.path("admin.sock")).unwrap();
        stream.write_all(format!("DELETE /captures/{number} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.0 {status} ")), "{answer}");
    }
    assert!(told.rest().contains("it was asked to end"));

    // The container's id names the pod too.
    let mut gone = ask(&lab, &json!({"pod": "c1"}));
    gone.begins();
    lab.ask(&tunproxy_ipc::Request::Detach(pod.key())).unwrap();
    assert!(gone.rest().contains("the pod is gone"));
    assert!(ask(&lab, &request).has(404));
}

#[test]
fn captures_are_bounded_and_for_root_only() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let _agent = lab.agent_with(&[("TUNPROXY_ADMIN_METRICS", "127.0.0.1:9965")]);
    let pod = Pod::create(&lab, "c1");
    pod.add(&lab).unwrap();
    let request = json!({"pod": "shop/c1"});
    let mut running: Vec<_> = (0..8).map(|_| ask(&lab, &request)).collect();
    running.iter_mut().for_each(Answer::begins);
    let ninth = ask(&lab, &request);
    assert!(ninth.has(429), "{}", ninth.head);
    for mistaken in [json!({"pod": "shop/c1", "flow": "tpc"}), json!({"pod": "shop/c1", "snaplen": 0})] {
        assert!(ask(&lab, &mistaken).has(400), "{mistaken}");
    }
    // Each sees what passes.
    assert_eq!(pod.fetch().unwrap(), "hello");
    drop(running.pop());
    wait::until_true("a free place", LIMIT, || ask(&lab, &request).has(200)).unwrap();

    let metrics: SocketAddr = "127.0.0.1:9965".parse().unwrap();
    let mut stream = lab.topology.node.tcp_connect(metrics, LIMIT).unwrap();
    stream.write_all(post(&request).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 404 "), "{answer}");
}
