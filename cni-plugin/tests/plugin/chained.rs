//! Behind a main plugin.

use serde_json::json;
use tunproxy_ipc::Mode;
use tunproxy_testkit::root_or_skip;

use crate::node::{Node, pod, snapshot, way};

#[test]
fn pods_behind_ptp_and_bridge_are_steered_and_served() {
    if !root_or_skip() {
        return;
    }
    for kind in ["ptp", "bridge"] {
        let (node, pod) = (Node::new(), pod());
        let agent = node.agent();
        let previous = node.main_add(kind, "c1", &pod, "eth0");
        let before = snapshot(&pod);
        let call = node.call("ADD", "c1", &pod).previous(&previous).kubernetes_pod("shop", "web-0");
        let labels = json!({"cni": {"labels": [{"key": "app", "value": "web"}]}});
        let reply = call.with("args", labels).run().succeeded();
        assert_eq!(reply.json(), previous, "{kind}");

        for (target, device) in [
            ("203.0.113.9", "tun0"),
            ("203.0.113.9 mark 0x7470", "eth0"),
            ("10.96.0.10", "eth0"),
            ("10.96.0.10 ipproto udp dport 53", "tun0"),
            ("10.77.9.9", "eth0"),
            ("2001:db8::1", "tun0"),
            ("fd77::9", "eth0"),
        ] {
            assert_eq!(way(&pod, target).as_deref(), Some(device), "{kind}: {target}");
        }
        let link = &pod.ip_json("link show dev tun0").unwrap()[0];
        assert_eq!(link["linkinfo"]["info_data"]["persist"], true, "{link:#}");
        assert_eq!(link["ifalias"], "tunproxy:eth0:c1");

        let attachment = agent.attachment("c1", "eth0").expect("it is attached");
        assert_eq!(
            (attachment.mode, attachment.tun_name.as_str(), attachment.queues),
            (Mode::Chained, "tun0", 2)
        );
        assert_eq!((attachment.network.as_str(), attachment.mtu), ("testnet", 1500));
        assert_eq!(attachment.netns_path, pod.path());
        let addresses: Vec<String> = attachment.addresses.iter().map(|a| a.ip().to_string()).collect();
        assert_eq!(addresses, ["10.77.1.2", "fd77:0:0:1::2"], "{kind}");
        let identity = &attachment.pod;
        assert_eq!(
            (identity.namespace.as_str(), identity.name.as_str(), identity.uid.as_str()),
            ("shop", "web-0", "u-1")
        );
        assert_eq!(identity.labels.get("app").map(String::as_str), Some("web"));

        node.call("CHECK", "c1", &pod).previous(&previous).run().succeeded();
        assert_eq!(node.call("DEL", "c1", &pod).run().succeeded().stdout, "");
        assert_eq!(snapshot(&pod), before, "{kind}");
        assert_eq!(agent.keys(), []);
    }
}

#[test]
fn the_main_plugins_own_check_still_passes() {
    if !root_or_skip() {
        return;
    }
    for kind in ["ptp", "bridge"] {
        let (node, pod) = (Node::new(), pod());
        let _agent = node.agent();
        let (previous, reply) = node.chain_add(kind, "c1", &pod);
        reply.succeeded();
        let check = node.call("CHECK", "c1", &pod).config(&node.main_config(kind)).previous(&previous);
        check.run_debian(kind).succeeded();
    }
}

#[test]
fn added_twice_it_converges() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    let (previous, first) = node.chain_add("ptp", "c1", &pod);
    first.succeeded();
    let once = snapshot(&pod);
    let again = node.call("ADD", "c1", &pod).previous(&previous).run().succeeded();
    assert_eq!(again.json(), previous);
    assert_eq!(snapshot(&pod), once);
    assert_eq!(agent.keys().len(), 1);
}

#[test]
fn a_second_add_that_fails_leaves_the_pod_steered() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    let (previous, first) = node.chain_add("ptp", "c1", &pod);
    first.succeeded();
    let once = snapshot(&pod);
    agent.set_manner("attach", crate::agent::Manner::Fail(tunproxy_ipc::ErrorCode::NotReady));
    node.call("ADD", "c1", &pod).previous(&previous).run().failed(11);
    assert_eq!(snapshot(&pod), once);
    assert_eq!(agent.keys().len(), 1, "the agent still serves it");
}

#[test]
fn two_interfaces_of_one_container_do_not_disturb_each_other() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    let (_, first) = node.chain_add("ptp", "c1", &pod);
    first.succeeded();
    let second_network =
        node.main_config("bridge").to_string().replace("10.77.1.", "10.77.2.").replace(":1::", ":2::");
    let mut second = node.call("ADD", "c1", &pod).ifname("net1").input(second_network.as_bytes());
    second = second.with("name", json!("othernet"));
    let previous = second.run_debian("bridge").succeeded().json();
    let before = snapshot(&pod);
    node.call("ADD", "c1", &pod).ifname("net1").previous(&previous).run().succeeded();

    let own = previous["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap();
    assert_eq!(way(&pod, "203.0.113.9").as_deref(), Some("tun0"));
    assert_eq!(way(&pod, &format!("203.0.113.9 from {own}")).as_deref(), Some("tun-net1"));
    assert_eq!(agent.keys().len(), 2);
    node.call("CHECK", "c1", &pod).previous(&previous).run().succeeded();
    node.call("CHECK", "c1", &pod).ifname("net1").previous(&previous).run().succeeded();

    node.call("DEL", "c1", &pod).ifname("net1").run().succeeded();
    assert_eq!(snapshot(&pod), before);
    assert_eq!(agent.keys(), [crate::agent::key("c1", "eth0")]);
    node.call("CHECK", "c1", &pod).previous(&previous).run().succeeded();
}

#[test]
fn a_foreign_interface_of_the_tuns_name_stays() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    pod.ip("tuntap add dev tun0 mode tun").unwrap();
    let previous = node.main_add("ptp", "c1", &pod, "eth0");
    let before = snapshot(&pod);
    node.call("ADD", "c1", &pod).previous(&previous).run().failed(101);
    assert_eq!(snapshot(&pod), before);
    assert_eq!(agent.keys(), []);
    node.call("DEL", "c1", &pod).run().succeeded();
    assert_eq!(snapshot(&pod), before);
}

#[test]
fn excluded_and_not_enrolled_pods_pass_through_untouched() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let previous = node.main_add("ptp", "c1", &pod, "eth0");
    let before = snapshot(&pod);
    // Without any agent.
    let call = node.call("ADD", "c1", &pod).previous(&previous).kubernetes_pod("kube-system", "coredns");
    let reply = call.with("excludeNamespaces", json!(["kube-system"])).run().succeeded();
    assert_eq!((reply.json(), snapshot(&pod)), (previous.clone(), before.clone()));

    let agent = node.agent();
    agent.set_settings(|settings| settings.enrolled = false);
    let reply = node.call("ADD", "c1", &pod).previous(&previous).run().succeeded();
    assert_eq!((reply.json(), snapshot(&pod)), (previous.clone(), before));
    node.call("CHECK", "c1", &pod).previous(&previous).run().succeeded();
}

#[test]
fn settings_of_the_agent_are_applied() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    agent.set_settings(|settings| (settings.mtu, settings.queues) = (Some(1400), 4));
    node.chain_add("ptp", "c1", &pod).1.succeeded();
    assert_eq!(pod.ip_json("link show dev tun0").unwrap()[0]["mtu"], 1400);
    let held = agent.take("c1", "eth0");
    assert_eq!(held.queues.len(), 4);
    let received = rustix::fs::fstat(&held.netns).unwrap();
    assert_eq!(
        (received.st_dev, received.st_ino),
        (held.attachment.netns.device, held.attachment.netns.inode)
    );
    assert_eq!(received.st_ino, std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(pod.path()).unwrap()));
}

#[test]
fn thirty_pods_at_once() {
    if !root_or_skip() {
        return;
    }
    let node = Node::new();
    let agent = node.agent();
    let pods: Vec<_> = (0..30).map(|_| pod()).collect();
    let id = |n: usize| format!("c{n}");
    let previous: Vec<_> =
        pods.iter().enumerate().map(|(n, pod)| node.main_add("ptp", &id(n), pod, "eth0")).collect();
    let before: Vec<_> = pods.iter().map(snapshot).collect();
    let calls = |verb| {
        let starts = pods.iter().enumerate();
        let children: Vec<_> =
            starts.map(|(n, pod)| node.call(verb, &id(n), pod).previous(&previous[n]).spawn()).collect();
        for (n, child) in children.into_iter().enumerate() {
            let reply = crate::node::Reply::from(child.wait_with_output().unwrap()).succeeded();
            if verb == "ADD" {
                assert_eq!(reply.json(), previous[n]);
            }
        }
    };
    calls("ADD");
    assert_eq!(agent.keys().len(), 30);
    for pod in &pods {
        assert_eq!(way(pod, "203.0.113.9").as_deref(), Some("tun0"));
    }
    calls("DEL");
    assert_eq!(agent.keys(), []);
    assert_eq!(pods.iter().map(snapshot).collect::<Vec<_>>(), before);
}
