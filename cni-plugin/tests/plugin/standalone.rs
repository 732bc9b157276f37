//! As the main plugin.

use serde_json::json;
use tunproxy_ipc::{ErrorCode, Mode};
use tunproxy_testkit::root_or_skip;

use crate::agent::Manner;
use crate::node::{Node, pod, snapshot, way};

#[test]
fn the_tun_is_the_pods_interface() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    let before = snapshot(&pod);
    let config = node.standalone_config();
    let reply = node.call("ADD", "c1", &pod).config(&config).run().succeeded();
    let expected = format!(
        "{{\"cniVersion\":\"1.0.0\",\"interfaces\":[{{\"name\":\"eth0\",\"sandbox\":\"{}\"}}],\"ips\":[{{\"address\":\"10.77.1.2/32\",\"interface\":0}},{{\"address\":\"fd77:0:0:1::2/128\",\"interface\":0}}],\"routes\":[{{\"dst\":\"0.0.0.0/0\"}},{{\"dst\":\"::/0\"}}]}}\n",
        pod.path().display()
    );
    assert_eq!(reply.stdout, expected);
    for target in ["203.0.113.9", "10.96.0.10", "2001:db8::1"] {
        assert_eq!(way(&pod, target).as_deref(), Some("eth0"), "{target}");
    }
    let attachment = agent.attachment("c1", "eth0").unwrap();
    assert_eq!(
        (attachment.mode, attachment.tun_name.as_str(), attachment.mtu),
        (Mode::Standalone, "eth0", 1500)
    );
    assert_eq!(node.leases(), 2);
    node.call("CHECK", "c1", &pod).config(&config).previous(&reply.json()).run().succeeded();

    node.call("DEL", "c1", &pod).config(&config).previous(&reply.json()).run().succeeded();
    assert_eq!(snapshot(&pod), before);
    assert_eq!((node.leases(), agent.keys()), (0, vec![]));
}

#[test]
fn the_older_shapes_name_the_family() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let _agent = node.agent();
    let call = node.call("ADD", "c1", &pod).config(&node.standalone_config());
    let result = call.with("cniVersion", json!("0.3.1")).run().succeeded().json();
    assert_eq!((&result["ips"][0]["version"], &result["ips"][1]["version"]), (&json!("4"), &json!("6")));
}

/// Debian's host-local speaks nothing newer than 1.0.0.
#[test]
fn an_older_ipam_plugin_serves_a_newer_network() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    let mut config = node.standalone_config();
    config["cniVersion"] = json!("1.1.0");
    let result = node.call("ADD", "c1", &pod).config(&config).run().succeeded().json();
    assert_eq!((&result["cniVersion"], node.leases()), (&json!("1.1.0"), 2));
    node.call("CHECK", "c1", &pod).config(&config).previous(&result).run().succeeded();
    node.bare_call("STATUS").config(&config).run().succeeded();
    node.call("DEL", "c1", &pod).config(&config).previous(&result).run().succeeded();
    assert_eq!(node.leases(), 0);
    node.call("ADD", "c1", &pod).config(&config).run().succeeded();
    node.bare_call("GC").config(&config).with("cni.dev/valid-attachments", json!([])).run().succeeded();
    assert_eq!((node.leases(), agent.keys()), (0, vec![]));
}

/// What it cannot do in any version stays its error.
#[test]
fn an_ipam_plugin_that_shares_no_version_is_reported() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let _agent = node.agent();
    let script = |versions: &str| {
        let answer = format!("{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[{versions}]}}");
        node.script(
            "strict",
            &format!(
                "cat >/dev/null; case $CNI_COMMAND in VERSION) echo '{answer}';; \
                 *) echo '{{\"code\":1,\"msg\":\"incompatible\"}}'; exit 1;; esac"
            ),
        );
    };
    let path = node.dir.path().to_str().unwrap().to_owned();
    let add = || node.call("ADD", "c1", &pod).with("ipam", json!({"type": "strict"})).set("CNI_PATH", &path);
    for versions in ["", "\"1.0.0\"", "\"0.2.0\"", "\"0.4.0\"", "7"] {
        script(versions);
        assert_eq!(add().run().failed(1)["msg"], "incompatible", "{versions}");
    }
}

#[test]
fn added_twice_it_is_refused_unharmed() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    let add = || node.call("ADD", "c1", &pod).config(&node.standalone_config()).run();
    add().succeeded();
    let once = snapshot(&pod);
    add().failed(101);
    assert_eq!(snapshot(&pod), once);
    assert_eq!((node.leases(), agent.keys().len()), (2, 1));
}

#[test]
fn a_foreign_interface_of_that_name_stays() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let _agent = node.agent();
    pod.ip("link add eth0 type veth peer name other").unwrap();
    let before = snapshot(&pod);
    node.call("ADD", "c1", &pod).config(&node.standalone_config()).run().failed(101);
    node.call("DEL", "c1", &pod).config(&node.standalone_config()).run().succeeded();
    assert_eq!((snapshot(&pod), node.leases()), (before, 0));
}

#[test]
fn whatever_fails_nothing_stays() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let before = snapshot(&pod);
    let add = || node.call("ADD", "c1", &pod).config(&node.standalone_config());
    add().run().failed(11);
    let agent = node.agent();
    agent.set_manner("attach", Manner::Fail(ErrorCode::Internal));
    add().run().failed(106);
    agent.set_settings(|settings| settings.enrolled = false);
    add().run().failed(106);
    agent.set_settings(|settings| (settings.enrolled, settings.mtu) = (true, Some(7)));
    add().run().failed(100);
    assert_eq!((snapshot(&pod), node.leases(), agent.keys()), (before, 0, vec![]));
}

#[test]
fn the_ipam_plugins_error_is_passed_on() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let _agent = node.agent();
    let mut config = node.standalone_config();
    config["ipam"]["ranges"] = json!([[{"subnet": "10.77.1.0/30"}]]);
    node.call("ADD", "c0", &crate::node::pod()).config(&config).run().succeeded();
    let document = node.call("ADD", "c1", &pod).config(&config).run().failed(999);
    assert!(document["msg"].as_str().unwrap().contains("no IP addresses available"), "{document:#}");
}

#[test]
fn behind_another_plugin_it_is_refused() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let call = node.call("ADD", "c1", &pod).config(&node.standalone_config()).previous(&json!({}));
    assert_eq!(call.run().failed(7)["msg"], "invalid network configuration: ipam");
}
