//! The plugin under real runtimes. Needs the Go tools: `make e2e`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tunproxy_e2e::runtime::{Containerd, cnitool};
use tunproxy_e2e::{Path, Report, World, WorldOptions, rows};
use tunproxy_testkit::{Host, Namespace, root_or_skip};

/// ADD, CHECK, use, DEL and DEL again by libcni. 1.0.0 is the newest version that Debian's main plugins speak.
fn under_cnitool(path: Path) {
    if !root_or_skip() {
        return;
    }
    let world = World::new(&WorldOptions::for_path(path)).unwrap();
    let network = world.network(path).unwrap();
    let pod = world.topology.pod_namespace("cnitool").unwrap();
    let call = |verb: &str| cnitool(&world.topology.node, &network, verb, &pod);
    let mut report = Report::default();
    report.row("ADD", || {
        let result: Value = serde_json::from_str(&call("add")?)?;
        ensure!(result["ips"].as_array().is_some_and(|ips| ips.len() == 2), "{result}");
        Ok(())
    });
    report.row("CHECK", || call("check").map(drop));
    report.row("the pod reaches the outside", || reaches(&world, &pod));
    report.row("DEL", || call("del").map(drop));
    report.row("DEL again", || call("del").map(drop));
    report.row("nothing is left in the pod", || {
        let links = pod.links()?;
        ensure!(links.len() == 1, "{links:?}");
        Ok(())
    });
    report.row("no leak", || rows::no_leak(&world, path));
    report.finish();
}

fn reaches(world: &World, pod: &Namespace) -> Result<()> {
    for family in ["-4", "-6"] {
        let text = pod.run(&world.curl(&format!("{family} --http2 https://allowed.test/")))?;
        ensure!(text.starts_with("allowed.test over HTTP/2.0"), "{text}");
    }
    Ok(())
}

#[test]
#[ignore = "make e2e"]
fn cnitool_routed() {
    under_cnitool(Path::Routed);
}

#[test]
#[ignore = "make e2e"]
fn cnitool_after_ptp() {
    under_cnitool(Path::AfterPtp);
}

#[test]
#[ignore = "make e2e"]
fn cnitool_after_bridge() {
    under_cnitool(Path::AfterBridge);
}

#[test]
#[ignore = "make e2e"]
fn cnitool_standalone() {
    under_cnitool(Path::Standalone);
}

/// The verbs that CNI 1.1.0 brought: STATUS with and without an agent, and GC of a pod that nobody DELs.
#[test]
#[ignore = "make e2e"]
fn cnitool_status_and_gc() {
    if !root_or_skip() {
        return;
    }
    let path = Path::Standalone;
    let mut world = World::new(&WorldOptions::for_path(path)).unwrap();
    let network = world.network(path).unwrap().with_version("1.1.0");
    let pod = world.topology.pod_namespace("cnitool11").unwrap();
    let node = std::sync::Arc::clone(&world.topology.node);
    let call = |verb: &str| cnitool(&node, &network, verb, &pod);
    let mut report = Report::default();
    report.row("STATUS of a ready agent", || call("status").map(drop));
    report.row("ADD", || {
        let result: Value = serde_json::from_str(&call("add")?)?;
        ensure!(result["cniVersion"] == "1.1.0", "{result}");
        Ok(())
    });
    report.row("CHECK", || call("check").map(drop));
    report.row("the pod reaches the outside", || reaches(&world, &pod));
    report.row("GC with nothing valid", || {
        call("gc")?;
        let pods = world.agent().pods()?;
        ensure!(pods.is_empty(), "{pods:?} are still attached");
        let leases = network.leases();
        ensure!(leases.is_empty(), "{leases:?} are still leased");
        Ok(())
    });
    report.row("DEL after GC", || call("del").map(drop));
    world.agent.as_mut().unwrap().kill().unwrap();
    report.row("STATUS without an agent", || {
        let error = call("status").err().context("ready, without an agent")?;
        let text = format!("{error:#}");
        ensure!(text.contains("no agent answers"), "{text}");
        Ok(())
    });
    report.finish();
}

/// One pod sandbox, one busybox container, by containerd and runc over CRI.
fn under_containerd(path: Path) {
    if !root_or_skip() {
        return;
    }
    let world = World::new(&WorldOptions::for_path(path)).unwrap();
    let network = world.network(path).unwrap();
    let links = || world.topology.node.links().unwrap();
    let before = links();
    let containerd = Containerd::start(&world.topology.node, &network).unwrap();
    let (sandbox, container) = containerd.run_pod("web").unwrap();
    let inside = |command: &str| {
        let words: Vec<&str> =
            ["exec", "-s", &container].into_iter().chain(command.split_whitespace()).collect();
        containerd.crictl(&words)
    };
    let mut report = Report::default();
    report.row("curl by name", || {
        let text = inside("curl -sS --max-time 60 http://allowed.test/")?;
        ensure!(text.starts_with("allowed.test over HTTP/1.1"), "{text}");
        Ok(())
    });
    report.row("curl over IPv6", || {
        let text = inside(&format!("curl -sS --max-time 60 http://[{}]/", Host::Web.v6()))?;
        ensure!(text.contains("over HTTP/1.1"), "{text}");
        Ok(())
    });
    report.row("ping", || inside(&format!("ping -c 2 -W 5 {}", Host::Web.v4())).map(drop));
    report.row("the container goes before its sandbox", || {
        containerd.crictl(&["stop", "--timeout", "0", &container])?;
        containerd.crictl(&["rm", &container]).map(drop)
    });
    report.row("the sandbox goes", || containerd.remove_pod(&sandbox));
    if path != Path::AfterBridge {
        report.row("nothing is left on the node", || {
            let now = links();
            ensure!(now == before, "{now:?}, {before:?} before");
            Ok(())
        });
    }
    report.row("no leak", || rows::no_leak(&world, path));
    report.finish();
}

#[test]
#[ignore = "make e2e"]
fn containerd_routed() {
    under_containerd(Path::Routed);
}

#[test]
#[ignore = "make e2e"]
fn containerd_after_ptp() {
    under_containerd(Path::AfterPtp);
}

#[test]
#[ignore = "make e2e"]
fn containerd_after_bridge() {
    under_containerd(Path::AfterBridge);
}

#[test]
#[ignore = "make e2e"]
fn containerd_standalone() {
    under_containerd(Path::Standalone);
}
