//! DEL, in every state the world can be in.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tunproxy_ipc::Tombstones;
use tunproxy_testkit::{root_or_skip, wait};

use crate::agent::{Manner, key};
use crate::node::{Node, PATIENCE, pod, snapshot, way};

fn tombstones(node: &Node) -> Tombstones {
    Tombstones::new(&node.dir.path().join("state"))
}

#[test]
fn it_succeeds_whatever_is_missing() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let file = node.dir.path().join("a-file");
    std::fs::write(&file, "x").unwrap();
    let _agent = node.agent();
    let del = || node.call("DEL", "c1", &pod);
    // Never added.
    del().run().succeeded();
    del().netns("").run().succeeded();
    del().netns("/run/netns/gone").run().succeeded();
    del().netns(file.join("below").to_str().unwrap()).run().succeeded();
    del().netns(file.to_str().unwrap()).run().succeeded();
    del().netns("/proc/self/ns/mnt").run().succeeded();
    del().with("prevResult", json!("garbage")).run().succeeded();
    del().with("prevResult", json!([1, {"ips": 7}])).run().succeeded();
    del().set("CNI_ARGS", "garbage").run().succeeded();
    del().netns(node.host.path().to_str().unwrap()).run().succeeded();
    // As the main plugin.
    let standalone = || del().config(&node.standalone_config());
    standalone().run().succeeded();
    standalone().netns("").run().succeeded();
    standalone().netns("/run/netns/gone").run().succeeded();
}

#[test]
fn removed_again_and_again_as_runtimes_do() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    let previous = node.main_add("ptp", "c1", &pod, "eth0");
    let before = snapshot(&pod);
    node.call("ADD", "c1", &pod).previous(&previous).run().succeeded();
    node.call("DEL", "c1", &pod).run().succeeded();
    assert_eq!((snapshot(&pod), agent.keys()), (before.clone(), vec![]));
    for _ in 0..3 {
        node.call("DEL", "c1", &pod).run().succeeded();
        node.call("DEL", "c1", &pod).netns("").run().succeeded();
    }
    assert_eq!(snapshot(&pod), before);
}

/// The wait for the kernel's last step is left to a child, which ends with it.
#[test]
fn no_process_stays() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let _agent = node.agent();
    node.chain_add("ptp", "c1", &pod).1.succeeded();
    node.call("DEL", "c1", &pod).run().succeeded();
    assert!(way(&pod, "203.0.113.9").is_none_or(|device| device == "eth0"));
    wait::until_true("the child to end", Duration::from_mins(1), || node.host.pids().is_empty()).unwrap();
}

#[test]
fn without_an_agent_a_tombstone_tells_it_later() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    let previous = node.main_add("ptp", "c1", &pod, "eth0");
    let before = snapshot(&pod);
    node.call("ADD", "c1", &pod).previous(&previous).run().succeeded();
    drop(agent);
    for _ in 0..2 {
        node.call("DEL", "c1", &pod).run().succeeded();
    }
    assert_eq!(snapshot(&pod), before);
    assert_eq!(tombstones(&node).read().unwrap(), [key("c1", "eth0")]);
}

#[test]
fn an_excluded_pod_leaves_no_tombstone() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let del = node.call("DEL", "c1", &pod).kubernetes_pod("kube-system", "coredns");
    del.with("excludeNamespaces", json!(["kube-system"])).run().succeeded();
    assert_eq!(tombstones(&node).read().unwrap(), []);
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
    node.call("ADD", "c1", &pod).previous(&previous).run().succeeded();
    agent.set_manner("detach", Manner::Hang);
    let start = Instant::now();
    node.call("DEL", "c1", &pod).with("timeout", json!("600ms")).run().succeeded();
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert_eq!(snapshot(&pod), before);
    assert_eq!(tombstones(&node).read().unwrap(), [key("c1", "eth0")]);
}

#[test]
fn a_state_directory_that_cannot_be_written_does_not_fail_it() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    node.call("DEL", "c1", &pod).with("stateDir", json!("/proc/nowhere")).run().succeeded();
}

#[test]
fn a_late_removal_spares_the_successor() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    node.chain_add("ptp", "successor", &pod).1.succeeded();
    let before = snapshot(&pod);
    node.call("DEL", "predecessor", &pod).run().succeeded();
    assert_eq!((snapshot(&pod), agent.keys()), (before, vec![key("successor", "eth0")]));
}

/// Killed where the agent has the request and has not answered: everything is plumbed, nothing is acknowledged.
#[test]
fn killed_while_the_agent_works_it_leaves_nothing_after_a_removal() {
    if !root_or_skip() {
        return;
    }
    for step in ["prepare", "attach"] {
        for standalone in [false, true] {
            let (node, pod) = (Node::new(), pod());
            let agent = node.agent();
            let mut config = node.standalone_config();
            if !standalone {
                config = node.config();
                config["prevResult"] = node.main_add("ptp", "c1", &pod, "eth0");
            }
            let (before, leases) = (snapshot(&pod), node.leases());
            agent.set_manner(step, Manner::Hang);
            let mut child = node.call("ADD", "c1", &pod).config(&config).spawn();
            assert_eq!(agent.reached.recv_timeout(Duration::from_mins(1)).unwrap(), step);
            child.kill().unwrap();
            child.wait().unwrap();
            agent.set_manner(step, Manner::Answer);
            config.as_object_mut().unwrap().remove("prevResult");
            node.call("DEL", "c1", &pod).config(&config).run().succeeded();
            assert_eq!((snapshot(&pod), node.leases()), (before, leases), "{step}, standalone: {standalone}");
            assert_eq!(agent.keys(), []);
        }
    }
}

/// Killed at many moments of its life, wherever they fall.
#[test]
fn killed_at_any_moment_it_leaves_nothing_after_a_removal() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let agent = node.agent();
    let previous = node.main_add("ptp", "c1", &pod, "eth0");
    let before = snapshot(&pod);
    let mut interrupted = 0;
    for step in 0..60 {
        let mut child = node.call("ADD", "c1", &pod).previous(&previous).spawn();
        let end = Instant::now() + Duration::from_micros(250 * step);
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        interrupted += usize::from(!child.wait().unwrap().success());
        node.call("DEL", "c1", &pod).run().succeeded();
        assert_eq!(snapshot(&pod), before, "after {step} steps");
        // The request of a killed plugin may still be read; its answer finds nobody.
        wait::until_true("the agent to drop it", Duration::from_mins(1), || agent.keys().is_empty()).unwrap();
    }
    assert!(interrupted > 5, "only {interrupted} runs were interrupted");
}

#[test]
fn the_log_file_tells_the_story() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let log = node.dir.path().join("cni.log");
    let previous = node.main_add("ptp", "c1", &pod, "eth0");
    node.call("ADD", "c1", &pod).previous(&previous).with("logFile", json!(log)).run().failed(11);
    let _agent = node.agent();
    node.call("ADD", "c1", &pod).previous(&previous).with("logFile", json!(log)).run().succeeded();
    let text = std::fs::read_to_string(Path::new(&log)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains("ADD c1/eth0 failed with code 11: no agent answers at "), "{text}");
    assert!(lines[1].ends_with("ADD c1/eth0 attached"), "{text}");
}

/// The address would be leased after it was given back.
#[test]
fn it_waits_for_the_ipam_plugin_of_an_add_that_was_killed() {
    if !root_or_skip() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let _agent = node.agent();
    let (started, released) = (node.dir.path().join("started"), node.dir.path().join("released"));
    let script = format!(
        "if [ $CNI_COMMAND = DEL ]; then echo >{}; exit; fi\necho $$ >{1}.new; mv {1}.new {1}; exec sleep 600",
        released.display(),
        started.display()
    );
    node.script("slow", &script);
    let call = |verb: &str, container: &str, timeout: &str| {
        node.call(verb, container, &pod)
            .with("ipam", json!({"type": "slow"}))
            .with("timeout", json!(timeout))
            .set("CNI_PATH", node.dir.path().to_str().unwrap())
    };
    let mut plugin = call("ADD", "c1", "5m").spawn();
    let orphan = || std::fs::read_to_string(&started).ok()?.trim().parse().ok().and_then(Pid::from_raw);
    let orphan = wait::until("the ipam plugin's start", PATIENCE, orphan).unwrap();
    plugin.kill().unwrap();
    plugin.wait().unwrap();
    call("DEL", "other", "1m").run().succeeded();
    std::fs::remove_file(&released).unwrap();
    let busy = call("DEL", "c1", "1s").run();
    assert_eq!(
        busy.stdout,
        "{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"the ipam plugin is busy\",\
         \"details\":\"ipam plugin slow still works on an earlier call for c1/eth0: try again later\"}\n"
    );
    assert!(!released.exists());
    kill_process(orphan, Signal::KILL).unwrap();
    call("DEL", "c1", "1m").run().succeeded();
    assert!(released.exists());
}
