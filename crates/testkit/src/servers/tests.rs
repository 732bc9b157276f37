//! Each server answers its real client over the plain routed path.

use std::net::IpAddr;

use super::*;
use crate::process::output;
use crate::{Host, Topology, Wire, root_or_skip};

fn web(outside: &crate::Namespace) -> Nginx {
    let names = |host: Host, names: &[&str]| WebNames {
        addresses: host.both().to_vec(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    let sites = [
        names(Host::Web, &["allowed.test"]),
        names(Host::Web, &["refused.test"]),
        names(Host::OtherWeb, &["o.test"]),
    ];
    Nginx::start(outside, &sites).unwrap()
}

fn dns(outside: &crate::Namespace) -> DnsServer {
    let records: Vec<(&str, IpAddr)> = ["allowed.test", "refused.test"]
        .iter()
        .flat_map(|&name| Host::Web.both().map(|ip| (name, ip)))
        .collect();
    DnsServer::start(outside, &Host::Dns.both(), &records).unwrap()
}

#[test]
fn web_and_names() {
    if !root_or_skip() {
        return;
    }
    let topology = Topology::new(Wire::Veth).unwrap();
    let nginx = web(&topology.outside);
    let dns = dns(&topology.outside);
    let ca = nginx.ca().display().to_string();
    for (version, shown) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2.0")] {
        for family in ["-4", "-6"] {
            let line = format!("curl -sS {family} {version} --cacert {ca} https://allowed.test/");
            let answer = topology.node.run(&line).unwrap();
            assert!(answer.starts_with(&format!("allowed.test over {shown} for ")), "{answer}");
        }
    }
    assert!(
        topology
            .node
            .run(&format!("curl -sS --cacert {ca} https://refused.test/"))
            .unwrap()
            .contains("refused.test")
    );
    assert!(output(&mut topology.node.command_with_resolver("curl")).is_ok());
    assert!(topology.node.run("dig +short +time=2 absent.test").unwrap().is_empty());
    assert!(topology.node.run("dig +noedns +time=2 large.test TXT").unwrap().contains("19-xxx"));
    assert!(dns.query_log().contains("query[AAAA] allowed.test"));
    assert!(nginx.access_log().contains("allowed.test HTTP/2.0 \"GET / HTTP/2.0\" 200"));
}

#[test]
fn upload_download_and_clone() {
    if !root_or_skip() {
        return;
    }
    let topology = Topology::new(Wire::Veth).unwrap();
    let nginx = web(&topology.outside);
    let scratch = tempfile::tempdir().unwrap();
    let here = scratch.path().display();
    random_file(&nginx.files().join("big"), 3_000_001, 1).unwrap();
    let url = format!("http://{}", Host::Web.v4());
    topology.node.run(&format!("curl -sSf {url}/files/big -o {here}/big")).unwrap();
    topology.node.run(&format!("curl -sSf -T {here}/big {url}/upload/big")).unwrap();
    let sums: Vec<String> = [nginx.files(), nginx.uploads(), scratch.path().to_owned()]
        .iter()
        .map(|directory| sha256(&directory.join("big")).unwrap())
        .collect();
    assert!(sums.iter().all(|sum| *sum == sums[0]));
    let repository = GitRepository::create(&nginx.files(), "project").unwrap();
    topology.node.run(&format!("git clone -q {url}/files/project.git {here}/clone")).unwrap();
    let head = topology.node.run(&format!("git -C {here}/clone rev-parse HEAD")).unwrap();
    assert_eq!(head.trim(), repository.head());
}

#[test]
fn both_proxies_carry_by_name_and_log_it() {
    if !root_or_skip() {
        return;
    }
    let topology = Topology::new(Wire::Veth).unwrap();
    let (_nginx, _dns) = (web(&topology.outside), dns(&topology.outside));
    let danted = Danted::start(&topology.outside, (Host::Socks.v4(), 1080).into()).unwrap();
    let microsocks = Microsocks::start(&topology.outside, Host::Socks.v6().into(), 1081, "me", "pw").unwrap();
    let ask = |proxy: &str| topology.node.run(&format!("curl -sS -x {proxy} http://allowed.test/"));
    assert!(ask(&format!("socks5h://{}", danted.address())).unwrap().starts_with("allowed.test"));
    // dante logs the address that the name gave it.
    let session = format!("-> {}.", Host::Web.v6());
    assert!(danted.log().contains(&session), "{}", danted.log());
    assert!(ask(&format!("socks5h://me:pw@{}", microsocks.address())).unwrap().starts_with("allowed.test"));
    assert!(microsocks.log().contains("allowed.test"), "{}", microsocks.log());
    assert!(ask(&format!("socks5h://me:wrong@{}", microsocks.address())).is_err());
}

#[test]
fn ssh_and_iperf() {
    if !root_or_skip() {
        return;
    }
    let topology = Topology::new(Wire::Veth).unwrap();
    let own_run = |process: &str| {
        let mounts = std::fs::read_to_string(format!("/proc/{process}/mounts")).unwrap();
        mounts.lines().filter(|line| line.split(' ').nth(1) == Some("/run")).count()
    };
    let before = own_run("self");
    let sshd = Sshd::start(&topology.outside, &Host::Ssh.both()).unwrap();
    assert_eq!((own_run("self"), own_run(&sshd.pid().to_string())), (before, before + 1));
    let run = std::fs::read_dir(format!("/proc/{}/root/run", sshd.pid())).unwrap();
    let run: Vec<_> = run.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(run, ["sshd"], "nothing of the host's");
    let mut ssh = topology.node.command("ssh");
    ssh.args(sshd.client_options()).arg(format!("root@{}", Host::Ssh.v6())).arg("echo over ssh");
    assert_eq!(crate::process::run(&mut ssh).unwrap(), "over ssh\n");
    let _iperf = Iperf::start(&topology.outside, Host::Iperf.v4().into(), 5201).unwrap();
    let report = topology.node.run(&format!("iperf3 -J -n 10M -P 2 -c {}", Host::Iperf.v4())).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(report["end"]["sum_sent"]["bytes"].as_u64().unwrap() >= 10_000_000, "{report}");
}
