//! Fail closed, leave nothing, and in time.

use std::time::Instant;

use serde_json::json;
use tunproxy_ipc::ErrorCode;
use tunproxy_testkit::root_or_skip;

use crate::agent::Manner;
use crate::node::{Node, PATIENCE, pod, snapshot};

#[test]
fn without_an_agent_there_is_no_pod_and_no_residue() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let previous = node.main_add("ptp", "c1", &pod, "eth0");
    let before = snapshot(&pod);
    let add = || node.call("ADD", "c1", &pod).previous(&previous);
    // No socket, then a socket nobody listens on.
    add().run().failed(11);
    let listener = std::os::unix::net::UnixListener::bind(node.socket()).unwrap();
    add().run().failed(11);
    drop(listener);
    add().run().failed(11);
    assert_eq!(snapshot(&pod), before);
}

#[test]
fn an_agent_that_refuses_leaves_no_residue() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    let previous = node.main_add("ptp", "c1", &pod, "eth0");
    let before = snapshot(&pod);
    for (code, expected) in [
        (ErrorCode::NotReady, 11),
        (ErrorCode::LimitReached, 11),
        (ErrorCode::Internal, 106),
        (ErrorCode::Conflict, 106),
        (ErrorCode::BadRequest, 106),
        (ErrorCode::ProtocolMismatch, 105),
    ] {
        for step in ["prepare", "attach"] {
            agent.set_manner(step, Manner::Fail(code));
            node.call("ADD", "c1", &pod).previous(&previous).run().failed(expected);
            assert_eq!((snapshot(&pod), agent.keys()), (before.clone(), vec![]), "{step} {code:?}");
            agent.set_manner(step, Manner::Answer);
        }
    }
}

#[test]
fn an_agent_that_hangs_is_given_up_in_time() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    let previous = node.main_add("ptp", "c1", &pod, "eth0");
    let before = snapshot(&pod);
    for step in ["prepare", "attach"] {
        agent.set_manner(step, Manner::Hang);
        let start = Instant::now();
        let call = node.call("ADD", "c1", &pod).previous(&previous).with("timeout", json!("300ms"));
        let document = call.run().failed(11);
        assert!(document["details"].as_str().unwrap().contains("did not answer in time"), "{document:#}");
        assert!(start.elapsed() < PATIENCE, "{step}: {:?}", start.elapsed());
        assert_eq!(snapshot(&pod), before, "{step}");
        agent.set_manner(step, Manner::Answer);
    }
}

#[test]
fn an_ipam_plugin_that_hangs_is_ended_in_time() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    node.script("slow", "exec sleep 1000");
    let before = snapshot(&pod);
    let call =
        node.call("ADD", "c1", &pod).with("ipam", json!({"type": "slow"})).with("timeout", json!("300ms"));
    let start = Instant::now();
    let document = call.set("CNI_PATH", node.dir.path().to_str().unwrap()).run().failed(103);
    assert!(document["details"].as_str().unwrap().contains("did not end within 300ms"), "{document:#}");
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert_eq!((snapshot(&pod), agent.keys()), (before, vec![]));
}

#[test]
fn the_hosts_namespace_is_refused_unless_asked_for_by_name() {
    if !root_or_skip() {
        return;
    }
    let node = Node::new();
    let agent = node.agent();
    let before = snapshot(&node.host);
    let host = node.host.path();
    let call = |verb| {
        let call = node.bare_call(verb).id("c1").ifname("tst0").netns(host.to_str().unwrap());
        call.config(&node.standalone_config())
    };
    call("ADD").run().failed(102);
    assert_eq!((snapshot(&node.host), agent.keys()), (before.clone(), vec![]));
    call("ADD").set("CNI_NETNS_OVERRIDE", "1").run().succeeded();
    assert_ne!(snapshot(&node.host), before);
    call("DEL").set("CNI_NETNS_OVERRIDE", "1").run().succeeded();
    assert_eq!(snapshot(&node.host), before);
}

#[test]
fn a_namespace_that_is_none_is_a_bad_variable() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let _agent = node.agent();
    for path in ["/run/netns/gone", "/etc/passwd", "/proc/self/ns/mnt"] {
        let document = node.call("ADD", "c1", &pod).netns(path).previous(&json!({})).run().failed(4);
        assert!(document["details"].as_str().unwrap().starts_with("CNI_NETNS "), "{document:#}");
    }
}

#[test]
fn without_a_previous_result_the_way_out_is_said() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let document = node.call("ADD", "c1", &pod).run().failed(7);
    assert!(
        document["details"].as_str().unwrap().contains("put tunproxy behind a main plugin"),
        "{document:#}"
    );
}
