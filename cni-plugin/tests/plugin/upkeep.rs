//! CHECK and GC.

use serde_json::json;
use tunproxy_ipc::Request;
use tunproxy_testkit::root_or_skip;

use crate::agent::key;
use crate::node::{Node, pod};

#[test]
fn check_finds_damage_in_the_pod_and_what_the_agent_knows() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    let (previous, reply) = node.chain_add("ptp", "c1", &pod);
    reply.succeeded();
    let check = || node.call("CHECK", "c1", &pod).previous(&previous);
    assert_eq!(check().run().succeeded().stdout, "");

    agent.set_problems(&["the datapath of c1/eth0 has stopped"]);
    assert_eq!(check().run().failed(104)["details"], "the datapath of c1/eth0 has stopped");
    agent.set_problems(&[]);

    pod.ip("rule del priority 200").unwrap();
    let document = check().run().failed(104);
    assert!(document["details"].as_str().unwrap().starts_with("rule is missing: V4 200"), "{document:#}");
    // An ADD repairs it.
    node.call("ADD", "c1", &pod).previous(&previous).run().succeeded();
    check().run().succeeded();

    drop(agent);
    check().run().failed(11);
    node.call("CHECK", "c1", &pod).run().failed(7);
}

#[test]
fn check_of_a_standalone_pod_compares_the_addresses() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let _agent = node.agent();
    let config = node.standalone_config();
    let result = node.call("ADD", "c1", &pod).config(&config).run().succeeded().json();
    pod.ip("addr del 10.77.1.2/32 dev eth0").unwrap();
    let document = node.call("CHECK", "c1", &pod).config(&config).previous(&result).run().failed(104);
    assert!(document["details"].as_str().unwrap().contains("eth0 lacks address 10.77.1.2"), "{document:#}");
}

#[test]
fn gc_drops_what_the_runtime_does_not_know_and_only_when_it_says_so() {
    if !root_or_skip() {
        return;
    }
    let node = Node::new();
    let agent = node.agent();
    let pods = [pod(), pod()];
    for (id, pod) in ["c1", "c2"].into_iter().zip(&pods) {
        node.chain_add("ptp", id, pod).1.succeeded();
    }
    let gc = || node.bare_call("GC").config(&node.config()).with("cniVersion", json!("1.1.0"));
    gc().run().succeeded();
    assert_eq!(agent.keys().len(), 2);
    let valid = json!([{"containerID": "c1", "ifname": "eth0"}]);
    gc().with("cni.dev/valid-attachments", valid).run().succeeded();
    assert_eq!(agent.keys(), [key("c1", "eth0")]);
    let asked = agent.seen().iter().filter(|request| matches!(request, Request::Gc(_))).count();
    assert_eq!(asked, 1, "without the key the agent is not even asked");
    gc().with("cni.dev/attachments", json!([])).run().succeeded();
    assert_eq!(agent.keys(), []);
    drop(agent);
    gc().with("cni.dev/attachments", json!([])).run().failed(11);
}

/// host-local releases nothing on GC, so every stale address gets its DEL; the first failure is reported, none stops
/// the rest.
#[test]
fn gc_releases_the_addresses_of_what_it_dropped() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    let calls = node.dir.path().join("calls");
    node.script(
        "book",
        &format!(
            "cat >/dev/null; echo $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME >>{}; \
             case $CNI_COMMAND$CNI_CONTAINERID in ADD*) echo '{{\"ips\":[{{\"address\":\"10.77.3.9/24\"}}]}}';; \
             DELc1) echo '{{\"code\":111,\"msg\":\"the book is closed\"}}'; exit 1;; esac",
            calls.display()
        ),
    );
    let path = node.dir.path().to_str().unwrap().to_owned();
    let mut config = node.config();
    config["cniVersion"] = json!("1.1.0");
    config["ipam"] = json!({"type": "book"});
    let other = crate::node::pod();
    for (id, pod) in [("c1", &pod), ("c2", &other)] {
        node.call("ADD", id, pod).config(&config).set("CNI_PATH", &path).run().succeeded();
    }
    config["cni.dev/valid-attachments"] = json!([]);
    let document = node.bare_call("GC").config(&config).set("CNI_PATH", &path).run().failed(111);
    assert_eq!(document["msg"], "the book is closed");
    let text = std::fs::read_to_string(calls).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(lines, ["ADD c1 eth0", "ADD c2 eth0", "DEL c1 eth0", "DEL c2 eth0", "GC"]);
    assert_eq!(agent.keys(), []);
}
