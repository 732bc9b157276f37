//! The bytes a runtime sees.

use serde_json::{Value, json};
use tunproxy_ipc::{ErrorCode, Status};
use tunproxy_testkit::root_or_skip;

use crate::agent::Manner;
use crate::node::{Node, pod};

#[test]
fn version_works_with_empty_input() {
    if !root_or_skip() {
        return;
    }
    let node = Node::new();
    for input in ["", "\n"] {
        let reply = node.bare_call("VERSION").input(input.as_bytes()).run().succeeded();
        assert_eq!(
            reply.stdout,
            "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"
        );
        assert_eq!(reply.stderr, "");
    }
}

#[test]
fn version_echoes_the_version_it_was_asked_in() {
    if !root_or_skip() {
        return;
    }
    let node = Node::new();
    let reply =
        node.bare_call("VERSION").input(br#"{"cniVersion": "0.4.0"}"#).set("CNI_PATH", "").run().succeeded();
    assert_eq!(reply.json()["cniVersion"], "0.4.0");
}

#[test]
fn without_a_command_it_says_what_it_is_and_fails() {
    if !root_or_skip() {
        return;
    }
    let reply = Node::new().bare_call("").run();
    assert_eq!(
        reply.stdout,
        "{\"cniVersion\":\"1.1.0\",\"code\":4,\"msg\":\"invalid environment variables\",\"details\":\"CNI_COMMAND is not set\"}\n"
    );
    reply.failed(4);
}

#[test]
fn an_introduction_names_the_versions() {
    if !root_or_skip() {
        return;
    }
    let reply = Node::new().bare_call("").run();
    assert!(reply.stderr.contains("CNI versions: 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{}", reply.stderr);
}

/// The result of the plugin before ours, as JSON text that must come out unchanged.
const PREVIOUS: &str = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"veth0","mac":"aa:bb:cc:dd:ee:ff"},{"name":"eth0","mac":"aa:bb:cc:dd:ee:f0","sandbox":"/run/netns/x"}],"ips":[{"interface":1,"address":"10.77.1.2/24","gateway":"10.77.1.1"},{"interface":1,"address":"fd77:0:0:1::2/64","gateway":"fd77:0:0:1::1"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.96.0.10"],"search":["a.b"]}}"#;

#[test]
fn the_bytes_of_a_success() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let _agent = node.agent();
    node.main_add("ptp", "c1", &pod, "eth0");
    let previous: Value = serde_json::from_str(PREVIOUS).unwrap();
    let reply = node.call("ADD", "c1", &pod).previous(&previous).run().succeeded();
    assert_eq!(reply.stdout, format!("{PREVIOUS}\n"));
    assert_eq!(node.call("DEL", "c1", &pod).run().succeeded().stdout, "");
}

#[test]
fn the_result_has_the_shape_of_the_requested_version() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let _agent = node.agent();
    node.main_add("ptp", "c1", &pod, "eth0");
    let previous: Value = serde_json::from_str(PREVIOUS).unwrap();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let call = node.call("ADD", "c1", &pod).with("cniVersion", json!(version)).previous(&previous);
        let result = call.run().succeeded().json();
        let mut expected = previous.clone();
        expected["cniVersion"] = json!(version);
        if version.starts_with("0.") {
            expected["ips"][0]["version"] = json!("4");
            expected["ips"][1]["version"] = json!("6");
        }
        assert_eq!(result, expected, "{version}");
    }
}

/// Each error document, byte for byte. What cannot be had without an agent's misbehaviour is arranged.
#[test]
fn the_bytes_of_each_error() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    let add = || node.call("ADD", "c1", &pod).previous(&json!({"ips": []}));
    let document = |code: u64, message: &str, details: &str| {
        let text = json!({"cniVersion": "1.0.0", "code": code, "msg": message, "details": details});
        format!("{text}\n")
    };

    assert_eq!(
        add().with("cniVersion", json!("9.9.9")).run().stdout,
        "{\"cniVersion\":\"9.9.9\",\"code\":1,\"msg\":\"incompatible CNI version\",\"details\":\"cniVersion \\\"9.9.9\\\" is not supported (supported: 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0)\"}\n"
    );
    let gone = node.call("CHECK", "c1", &pod).netns("/run/netns/gone").previous(&json!({}));
    assert_eq!(
        gone.run().stdout,
        document(3, "container does not exist", "network namespace /run/netns/gone does not exist any more")
    );
    assert_eq!(
        add().id("").ifname("much-too-long-a-name").run().stdout,
        document(
            4,
            "invalid environment variables",
            "CNI_CONTAINERID is not set; CNI_IFNAME \"much-too-long-a-name\" is not an interface name (1 to 15 bytes, no / : or space)"
        )
    );
    assert_eq!(
        add().run_with_unreadable_input().stdout,
        "{\"cniVersion\":\"1.1.0\",\"code\":5,\"msg\":\"cannot read the network configuration\",\"details\":\"cannot read the network configuration from standard input: Is a directory (os error 21)\"}\n"
    );
    assert_eq!(
        add().input(b"{").run().stdout,
        "{\"cniVersion\":\"1.1.0\",\"code\":6,\"msg\":\"cannot decode the network configuration\",\"details\":\"the network configuration is not JSON: EOF while parsing an object at line 1 column 1\"}\n"
    );
    assert_eq!(
        add().with("timeout", json!("soon")).run().stdout,
        document(
            7,
            "invalid network configuration: timeout",
            "network configuration: timeout: \"soon\" is not a time from 100ms to 5m, such as \"500ms\" or \"5s\""
        )
    );
    agent.set_manner("prepare", Manner::Fail(ErrorCode::NotReady));
    assert_eq!(
        add().run().stdout,
        document(11, "the agent is not available", "the agent refused: prepare fails on purpose (not ready)")
    );
    agent.set_manner("prepare", Manner::Fail(ErrorCode::Internal));
    assert_eq!(
        add().run().stdout,
        document(106, "the agent refused", "the agent refused: prepare fails on purpose (internal)")
    );
    agent.set_settings(|settings| settings.enrolled = false);
    agent.set_manner("prepare", Manner::Answer);
    assert_eq!(
        add().config(&node.standalone_config()).run().stdout,
        document(
            106,
            "the agent refused",
            "the agent does not enrol this pod, and without it the pod has no network in standalone mode"
        )
    );
    agent.set_settings(|settings| settings.enrolled = true);
    agent.set_manner("prepare", Manner::Say(br#"{"protocol":2,"body":{}}"#.to_vec()));
    let mismatch = format!(
        "talking to the agent at {}: the peer speaks protocol 2, this program speaks 1: install the plugin and the agent of the same release",
        node.socket().display()
    );
    assert_eq!(add().run().stdout, document(105, "the agent refused", &mismatch));
    agent.set_manner("prepare", Manner::Answer);
    let place = pod.path();
    assert_eq!(
        add().run().stdout,
        document(
            100,
            "cannot set up the pod's network",
            &format!(
                "there is no interface eth0 in {}: the main plugin must come before tunproxy in the chain",
                place.display()
            )
        )
    );
    let host = node.host.path();
    assert_eq!(
        add().netns(host.to_str().unwrap()).run().stdout,
        document(
            102,
            "refusing the host's network namespace",
            &format!(
                "CNI_NETNS {} is the host's own network namespace: steering it would cut the node off",
                host.display()
            )
        )
    );
    let no_ipam =
        node.call("ADD", "c1", &pod).with("ipam", json!({"type": "absent"})).set("CNI_PATH", "/nowhere");
    assert_eq!(
        no_ipam.run().stdout,
        document(
            103,
            "the ipam plugin failed",
            "ipam plugin absent is not in CNI_PATH \"/nowhere\": install it there"
        )
    );
    node.main_add("ptp", "c1", &pod, "eth0");
    pod.ip("tuntap add dev tun0 mode tun").unwrap();
    assert_eq!(
        add().run().stdout,
        document(
            101,
            "interface exists",
            "interface tun0 exists and is not a TUN that tunproxy made for c1/eth0: remove or rename it"
        )
    );
    pod.ip("link del tun0").unwrap();
    add().run().succeeded();
    pod.ip("link set tun0 down").unwrap();
    let damaged = node.call("CHECK", "c1", &pod).previous(&json!({})).run().failed(104);
    assert!(damaged["details"].as_str().unwrap().starts_with("TUN tun0 is down; "), "{damaged}");
    add().run().succeeded();
    agent.set_problems(&["the datapath of c1/eth0 has stopped"]);
    assert_eq!(
        node.call("CHECK", "c1", &pod).previous(&json!({})).run().stdout,
        document(104, "the pod's network is not as it was made", "the datapath of c1/eth0 has stopped")
    );
    drop(agent);
    let unreachable = format!(
        "no agent answers at {}: No such file or directory (os error 2); is tunproxy-agent running on this node, with this cniSocket?",
        node.socket().display()
    );
    assert_eq!(add().run().stdout, document(11, "the agent is not available", &unreachable));
}

#[test]
fn the_bytes_of_an_unavailable_plugin() {
    if !root_or_skip() {
        return;
    }
    let node = Node::new();
    let status = || node.bare_call("STATUS").config(&node.config()).with("cniVersion", json!("1.1.0"));
    let agent = node.agent();
    assert_eq!(status().run().succeeded().stdout, "");
    agent.set_status(Status { ready: false, degraded: false, message: "policy is loading".into() });
    assert_eq!(
        status().run().stdout,
        "{\"cniVersion\":\"1.1.0\",\"code\":50,\"msg\":\"the plugin is not available\",\"details\":\"not ready: policy is loading\"}\n"
    );
    agent.set_status(Status { ready: false, degraded: true, message: "out of descriptors".into() });
    assert_eq!(
        status().run().stdout,
        "{\"cniVersion\":\"1.1.0\",\"code\":51,\"msg\":\"the plugin is not available, running pods have limited connectivity\",\"details\":\"not ready, and running pods are affected: out of descriptors\"}\n"
    );
    // An agent of another release answers, and serves the pods that run: not 51.
    for manner in
        [Manner::Say(br#"{"protocol":2,"body":{}}"#.to_vec()), Manner::Fail(ErrorCode::ProtocolMismatch)]
    {
        agent.set_manner("status", manner);
        status().run().failed(50);
    }
    drop(agent);
    // Nobody carries a running pod's packets either: not 50.
    let details = format!(
        "not ready, and running pods are affected: no agent answers at {}: No such file or directory (os error 2); is tunproxy-agent running on this node, with this cniSocket?",
        node.socket().display()
    );
    assert_eq!(
        status().run().stdout,
        format!(
            "{{\"cniVersion\":\"1.1.0\",\"code\":51,\"msg\":\"the plugin is not available, running pods have limited connectivity\",\"details\":\"{details}\"}}\n"
        )
    );
}

/// The ipam plugin's own code, message and details; without details, no such key.
#[test]
fn the_bytes_of_an_ipam_plugins_refusal() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let _agent = node.agent();
    let path = node.dir.path().to_str().unwrap();
    for (said, expected) in [
        (
            r#"{"code":111,"msg":"no addresses","details":"10.0.0.0/30 is full"}"#,
            r#"{"cniVersion":"1.0.0","code":111,"msg":"no addresses","details":"10.0.0.0/30 is full"}"#,
        ),
        (r#"{"code":11,"msg":"busy"}"#, r#"{"cniVersion":"1.0.0","code":11,"msg":"busy"}"#),
        (
            "Segmentation fault",
            r#"{"cniVersion":"1.0.0","code":103,"msg":"the ipam plugin failed","details":"ipam plugin full answered: exit status 1 without an error document"}"#,
        ),
    ] {
        node.script("full", &format!("cat >/dev/null; echo '{said}'; exit 1"));
        let call = node.call("ADD", "c1", &pod).with("ipam", json!({"type": "full"})).set("CNI_PATH", path);
        assert_eq!(call.run().stdout, format!("{expected}\n"));
    }
}

#[test]
fn verbs_that_a_version_does_not_have_are_refused() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    for (verb, version, since) in
        [("CHECK", "0.3.1", "0.4.0"), ("GC", "1.0.0", "1.1.0"), ("STATUS", "1.0.0", "1.1.0")]
    {
        let reply = node.call(verb, "c1", &pod).with("cniVersion", json!(version)).run();
        assert_eq!(
            reply.stdout,
            format!(
                "{{\"cniVersion\":\"{version}\",\"code\":1,\"msg\":\"incompatible CNI version\",\"details\":\"{verb} exists since CNI {since}, the network configuration has cniVersion {version}\"}}\n"
            )
        );
        reply.failed(1);
    }
    let unknown = node.call("FROB", "c1", &pod).run();
    assert_eq!(
        unknown.stdout,
        "{\"cniVersion\":\"1.0.0\",\"code\":4,\"msg\":\"invalid environment variables\",\"details\":\"CNI_COMMAND \\\"FROB\\\" is none of ADD, DEL, CHECK, GC, STATUS, VERSION\"}\n"
    );
    unknown.failed(4);
}
