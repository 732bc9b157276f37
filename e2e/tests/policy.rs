//! Policy on live traffic: reload, broken edits, flows that are no longer allowed, fairness of names.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tunproxy_e2e::{Path, Report, World, WorldOptions, rows};
use tunproxy_testkit::{Host, Namespace, root_or_skip, wait};

const LIMIT: Duration = Duration::from_mins(1);

fn policy(rules: &str) -> String {
    format!(
        "apiVersion: tunproxy.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: p, namespace: default}}\nspec:\n  rules:\n{rules}"
    )
}

const ALLOW_WEB: &str =
    "  - {name: web, action: Allow, to: [{networks: [198.51.100.10/32, \"2001:db8:100::a/128\"]}]}\n";
const ALLOW_OTHER: &str = "  - {name: other, action: Allow, to: [{networks: [198.51.100.11/32]}]}\n";

fn reaches(pod: &Namespace, host: Host) -> bool {
    pod.accepts(SocketAddr::new(host.v4().into(), 80), Duration::from_secs(2))
}

#[test]
fn edits_take_effect_and_broken_ones_do_not() {
    if !root_or_skip() {
        return;
    }
    let options = WorldOptions::for_path(Path::AfterPtp).with_policy(&policy(ALLOW_WEB));
    let world = World::new(&options).unwrap();
    let pod = world.pod(Path::AfterPtp, "client").unwrap();
    let agent = world.agent();
    let mut report = Report::default();
    report.row("the first policy holds", || {
        ensure!(reaches(&pod, Host::Web) && !reaches(&pod, Host::OtherWeb));
        Ok(())
    });
    report.row("a live flow is reset when its rule goes, and others are not", || {
        let doomed = open(&world, &pod, Host::Web)?;
        agent.write_policy("00.yaml", &policy(ALLOW_OTHER))?;
        wait::until_true("the new policy", LIMIT, || {
            reaches(&pod, Host::OtherWeb) && !reaches(&pod, Host::Web)
        })?;
        ensure_reset(&doomed.0)?;
        agent
            .wait_for_flow("the flow that the change ended", |flow| flow["close"] == "policy-changed")
            .map(drop)
    });
    report.row("a broken edit changes nothing and is reported with its line", || {
        agent.write_policy(
            "00.yaml",
            &policy("  - {name: x, action: Allow, to: [{networks: [10.0.0.0/33]}]}\n"),
        )?;
        wait::until_true("the mistake in the log", LIMIT, || agent.log().contains("00.yaml:6"))?;
        ensure!(reaches(&pod, Host::OtherWeb) && !reaches(&pod, Host::Web), "the last good policy must hold");
        Ok(())
    });
    report.row("mended, it holds again", || {
        agent.write_policy("00.yaml", &policy(&format!("{ALLOW_WEB}{ALLOW_OTHER}")))?;
        wait::until_true("both", LIMIT, || reaches(&pod, Host::OtherWeb) && reaches(&pod, Host::Web))
    });
    report.row("a surviving flow goes on", || {
        let (mut client, mut server) = open(&world, &pod, Host::Web)?;
        agent.write_policy("00.yaml", &policy(ALLOW_WEB))?;
        wait::until_true("the new policy", LIMIT, || !reaches(&pod, Host::OtherWeb))?;
        client.write_all(b"still here")?;
        server.read_exact(&mut [0; 10])?;
        Ok(())
    });
    report.row("no leak", || rows::no_leak(&world, Path::AfterPtp));
    report.finish();
}

/// `count` connections of the pod to one server, with the server's ends.
fn open_many(
    world: &World,
    pod: &Namespace,
    host: Host,
    count: usize,
) -> Result<Vec<(TcpStream, TcpStream)>> {
    let listener = world.topology.outside.tcp_listen(SocketAddr::new(host.v4().into(), 0))?;
    let open = |_| {
        let client = pod.tcp_connect(listener.local_addr()?, LIMIT)?;
        client.set_read_timeout(Some(LIMIT))?;
        let (server, _) = listener.accept()?;
        server.set_read_timeout(Some(LIMIT))?;
        Ok((client, server))
    };
    (0..count).map(open).collect()
}

fn ensure_reset(mut stream: &TcpStream) -> Result<()> {
    let error = stream.read(&mut [0]).err().context("an orderly end instead of a reset")?;
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    Ok(())
}

#[test]
fn thousands_of_flows_end_with_their_rule_and_no_other() {
    if !root_or_skip() {
        return;
    }
    const DOOMED: usize = 2_000;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let both = policy(&format!("{ALLOW_WEB}{ALLOW_OTHER}"));
    let world = World::new(&WorldOptions::for_path(Path::AfterPtp).with_policy(&both)).unwrap();
    let pod = world.pod(Path::AfterPtp, "client").unwrap();
    let (agent, mut report) = (world.agent(), Report::default());
    let doomed = open_many(&world, &pod, Host::Web, DOOMED).unwrap();
    let mut spared = open_many(&world, &pod, Host::OtherWeb, 100).unwrap();
    agent.write_policy("00.yaml", &policy(ALLOW_OTHER)).unwrap();
    report.row("both ends of each flow are reset", || {
        doomed.iter().try_for_each(|(client, server)| {
            ensure_reset(client)?;
            ensure_reset(server)
        })
    });
    report.row("what is allowed goes on", || {
        spared.iter_mut().try_for_each(|(client, server)| {
            client.write_all(b"x")?;
            Ok(server.read_exact(&mut [0])?)
        })
    });
    report.row("each has its record, and none is lost", || {
        let recorded = || {
            let ended = agent.flows().into_iter().filter(|flow| flow["close"] == "policy-changed");
            ended.filter_map(|flow| flow["source"].as_str().map(ToOwned::to_owned)).collect::<BTreeSet<_>>()
        };
        wait::until_true("the records", LIMIT, || recorded().len() >= DOOMED)?;
        let sources = doomed.iter().map(|(client, _)| Ok(client.local_addr()?.to_string()));
        ensure!(recorded() == sources.collect::<Result<_>>()?, "records of other flows");
        let status: Value = serde_json::from_str(&agent.admin("/status")?)?;
        ensure!(status["flowLog"]["dropped"] == 0, "{}", status["flowLog"]);
        Ok(())
    });
    drop((doomed, spared));
    report.row("no leak", || rows::no_leak(&world, Path::AfterPtp));
    report.finish();
}

/// A socket of the pod that has sent to one of the outside; a second one there, on another port, and one of a host that
/// policy refuses. What each of them sends to the pod's socket, in this order, and who is heard first.
fn first_heard(filtering: &str) -> Result<String> {
    let rules = policy(ALLOW_WEB).replace("spec:\n", &format!("spec:\n{filtering}"));
    let world = World::new(&WorldOptions::for_path(Path::AfterPtp).with_policy(&rules))?;
    let pod = world.pod(Path::AfterPtp, "client")?;
    let outside = |host: Host| world.topology.outside.udp_bind(SocketAddr::new(host.v4().into(), 0));
    let (called, caller, refused) = (outside(Host::Web)?, outside(Host::Web)?, outside(Host::OtherWeb)?);
    let client = pod.udp_bind("0.0.0.0:0".parse()?)?;
    client.set_read_timeout(Some(LIMIT))?;
    client.send_to(b"hello", called.local_addr()?)?;
    let mut buffer = [0; 100];
    let (_, outside_address) = called.recv_from(&mut buffer)?;
    for (socket, word) in [(&refused, "refused"), (&caller, "caller"), (&called, "called")] {
        socket.send_to(word.as_bytes(), outside_address)?;
    }
    let (length, from) = client.recv_from(&mut buffer)?;
    let heard = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let expected = if heard == "caller" { &caller } else { &called };
    ensure!(from == expected.local_addr()?, "{heard} came from {from}");
    Ok(heard)
}

#[test]
fn udp_ports_are_open_to_whom_policy_says() {
    if !root_or_skip() {
        return;
    }
    assert_eq!(first_heard("").unwrap(), "called");
    assert_eq!(first_heard("  udp: {filtering: EndpointIndependent}\n").unwrap(), "caller");
}

fn open(world: &World, pod: &Namespace, host: Host) -> Result<(TcpStream, TcpStream)> {
    open_many(world, pod, host, 1)?.pop().context("none was opened")
}

/// SYNs that the pod's kernel had to send again so far.
fn repeated_syns(pod: &Namespace) -> Result<u64> {
    // `/proc/net` would be the namespace of the process, not that of the thread.
    let text = pod.enter(|| std::fs::read_to_string("/proc/thread-self/net/netstat"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().context("no TcpExt")?, lines.next().context("no values")?);
    let mut counters = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) = counters.find(|(name, _)| *name == "TCPSynRetrans").context("no TCPSynRetrans")?;
    Ok(value.parse()?)
}

/// What a refused program sees: the answer to its first SYN, not to a repeated one.
#[test]
fn refusals_are_immediate_errors() {
    if !root_or_skip() {
        return;
    }
    let options = WorldOptions::for_path(Path::AfterPtp).with_policy(&policy(ALLOW_WEB));
    let world = World::new(&options).unwrap();
    let pod = world.pod(Path::AfterPtp, "client").unwrap();
    let mut report = Report::default();
    for ip in Host::OtherWeb.both() {
        let to = SocketAddr::new(ip, 80);
        report.row(format!("TCP {ip}"), || {
            let before = repeated_syns(&pod)?;
            let error = pod.tcp_connect(to, LIMIT).err().context("connected")?;
            ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
            let repeated = repeated_syns(&pod)? - before;
            ensure!(repeated == 0, "refused only after {repeated} more SYNs");
            Ok(())
        });
        report.row(format!("UDP {ip}"), || {
            let any: SocketAddr = if ip.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
            let socket = pod.udp_bind(any)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(LIMIT))?;
            socket.send(b"x")?;
            let error = socket.recv(&mut [0]).err().context("an answer")?;
            // Administratively prohibited: EHOSTUNREACH for IPv4, EACCES for IPv6.
            ensure!(
                matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::PermissionDenied),
                "{error} instead of an ICMP refusal"
            );
            Ok(())
        });
        report.row(format!("ping {ip}"), || {
            let failed = pod.run(&format!("ping -c 1 -W 5 {ip}")).err().context("answered")?.to_string();
            ensure!(
                failed.contains("Packet filtered") || failed.contains("prohibited"),
                "ping must say why: {failed}"
            );
            Ok(())
        });
    }
    report.row("refusals are in the flow log with rule and reason", || {
        let flow = world.agent().wait_for_flow("a refusal", |flow| {
            flow["verdict"] == "denied"
                && flow["destination"] == "198.51.100.11:80"
                && flow["protocol"] == "TCP"
        })?;
        ensure!(flow["policy"] == "EgressPolicy/default/p" && flow["reason"] == "no-rule-matched", "{flow}");
        Ok(())
    });
    report.finish();
}

/// `default: Deny` refuses pods that no policy selects, but not their DNS.
#[test]
fn the_node_default() {
    if !root_or_skip() {
        return;
    }
    let mut options = WorldOptions::for_path(Path::AfterPtp);
    options.agent_options.default = "Deny";
    let world = World::new(&options).unwrap();
    let pod = world.pod(Path::AfterPtp, "client").unwrap();
    assert!(!reaches(&pod, Host::Web));
    assert_eq!(pod.run("dig +short +time=3 allowed.test A").unwrap().trim(), Host::Web.v4().to_string());
    let refused = |flow: &serde_json::Value| flow["policy"] == "node" && flow["reason"] == "node-default";
    world.agent().wait_for_flow("the node's refusal", refused).unwrap();
}

/// An answer over TCP teaches a name as one over UDP does: refused before, allowed after.
#[test]
fn a_name_is_learnt_from_dns_over_tcp() {
    if !root_or_skip() {
        return;
    }
    let site = "  - {name: site, action: Allow, to: [{domains: [allowed.test]}]}\n";
    let world = World::new(&WorldOptions::for_path(Path::AfterPtp).with_policy(&policy(site))).unwrap();
    let pod = world.pod(Path::AfterPtp, "client").unwrap();
    let mut report = Report::default();
    for (family, ip) in ["A", "AAAA"].into_iter().zip(Host::Web.both()) {
        let to = SocketAddr::new(ip, 80);
        report.row(format!("{ip}: refused while nothing was asked"), || {
            let error = pod.tcp_connect(to, LIMIT).err().context("connected")?;
            ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
            Ok(())
        });
        report.row(format!("{ip}: allowed after dig +tcp"), || {
            let text = pod.run(&format!("dig +tcp +short +time=10 allowed.test {family}"))?;
            ensure!(text.trim() == ip.to_string(), "{text}");
            pod.tcp_connect(to, LIMIT)?;
            let flow = world.agent().wait_for_flow("the flow by name", |flow| {
                flow["destination"] == to.to_string() && flow["verdict"] == "allowed"
            })?;
            ensure!(flow["rule"] == "site" && flow.to_string().contains("allowed.test"), "{flow}");
            Ok(())
        });
    }
    report.finish();
}
