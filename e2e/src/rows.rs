//! Rows: one program in a pod and what must come out. All rows run, then all failures are reported at once.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path as FilePath;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tunproxy_testkit::process::{Background, output, run};
use tunproxy_testkit::servers::{random_file, sha256};
use tunproxy_testkit::{Host, Namespace, wait};

use crate::world::{IPERF_PORT, Path, World};

/// Outcomes of rows, in order.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<(String, Duration, Result<()>)>,
}

impl Report {
    pub fn row(&mut self, name: impl Into<String>, work: impl FnOnce() -> Result<()>) {
        let began = Instant::now();
        let outcome = work();
        self.rows.push((name.into(), began.elapsed(), outcome));
    }

    /// Panics with the whole table when any row failed.
    #[track_caller]
    pub fn finish(self) {
        let failed = self.rows.iter().filter(|(_, _, outcome)| outcome.is_err()).count();
        let mut table = String::new();
        for (name, took, outcome) in &self.rows {
            let _ = match outcome {
                Ok(()) => writeln!(table, "ok     {:>6} ms  {name}", took.as_millis()),
                Err(error) => writeln!(table, "FAILED {:>6} ms  {name}: {error:#}", took.as_millis()),
            };
        }
        println!("{table}");
        assert!(failed == 0, "{failed} of {} rows failed:\n{table}", self.rows.len());
        assert!(!self.rows.is_empty(), "a report without rows proves nothing");
    }
}

/// The two families, as their flag for curl, dig, ping, ssh, iperf3 says.
const FAMILIES: [(&str, usize); 2] = [("-4", 0), ("-6", 1)];

/// Every program of the list, over IPv4 and IPv6.
pub fn programs(world: &World, pod: &Namespace) -> Report {
    let mut report = Report::default();
    for (flag, index) in FAMILIES {
        web(&mut report, world, pod, flag);
        shell(&mut report, world, pod, Host::Ssh.both()[index]);
        names(&mut report, pod, flag, Host::Dns.both()[index]);
        report.row(format!("ping {flag}"), || {
            let text = pod.run(&format!("ping {flag} -c 3 -i 0.05 -W 5 {}", Host::Web.both()[index]))?;
            ensure!(text.contains(" 3 received"), "{text}");
            Ok(())
        });
        throughput(&mut report, pod, Host::Iperf.both()[index]);
    }
    report
}

fn web(report: &mut Report, world: &World, pod: &Namespace, flag: &str) {
    for (version, shown) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2.0")] {
        report.row(format!("curl {flag} {version} https"), || {
            let text = pod.run(&world.curl(&format!("{flag} {version} https://allowed.test/")))?;
            ensure!(text.starts_with(&format!("allowed.test over {shown} for ")), "{text}");
            Ok(())
        });
    }
    report.row(format!("curl {flag} http"), || {
        let text = pod.run(&world.curl(&format!("{flag} http://other.test/")))?;
        ensure!(text.starts_with("other.test over HTTP/1.1"), "{text}");
        Ok(())
    });
    report.row(format!("git clone over http {flag}"), || clone(world, pod, flag));
}

/// git has no option for the family in this protocol: the address decides.
fn clone(world: &World, pod: &Namespace, flag: &str) -> Result<()> {
    let host = if flag == "-4" { Host::Web.v4().to_string() } else { format!("[{}]", Host::Web.v6()) };
    let target = world.scratch.path().join(format!("clone{flag}{}", pod.name()));
    pod.run(&format!("git clone -q http://{host}/files/project.git {}", target.display()))?;
    let head = pod.run(&format!("git -C {} rev-parse HEAD", target.display()))?;
    ensure!(head.trim() == world.git.head(), "head is {head}");
    pod.run(&format!("git -C {} fsck --strict", target.display())).map(drop)
}

fn shell(report: &mut Report, world: &World, pod: &Namespace, ip: IpAddr) {
    report.row(format!("ssh {ip}"), || {
        let mut command = pod.command_with_resolver("ssh");
        command.args(world.sshd.client_options()).arg(format!("root@{ip}")).arg("seq 1 20000 | sha256sum");
        let expected = run(std::process::Command::new("sh").args(["-c", "seq 1 20000 | sha256sum"]))?;
        ensure!(run(&mut command)? == expected);
        Ok(())
    });
    report.row(format!("scp there and back {ip}"), || {
        let here = world.scratch.path().join(format!("scp-{}", pod.name()));
        random_file(&here, 5_000_000, 7)?;
        let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        let there = world.sshd.scratch().join(format!("scp-{}", pod.name()));
        let remote = format!("root@{host}:{}", there.display());
        let back = here.with_extension("back");
        copy(world, pod, here.as_os_str(), remote.as_ref())?;
        copy(world, pod, remote.as_ref(), back.as_os_str())?;
        ensure!(sha256(&here)? == sha256(&back)?);
        Ok(())
    });
}

fn copy(world: &World, pod: &Namespace, from: &std::ffi::OsStr, to: &std::ffi::OsStr) -> Result<()> {
    let mut command = pod.command_with_resolver("scp");
    run(command.arg("-q").args(world.sshd.client_options()).arg(from).arg(to)).map(drop)
}

fn names(report: &mut Report, pod: &Namespace, flag: &str, server: IpAddr) {
    let kind = if flag == "-4" { "A" } else { "AAAA" };
    let expected = if flag == "-4" { Host::Web.v4().to_string() } else { Host::Web.v6().to_string() };
    for transport in ["+notcp", "+tcp"] {
        report.row(format!("dig {transport} at {server}"), || {
            let text =
                pod.run(&format!("dig +short +time=3 +tries=2 {transport} @{server} allowed.test {kind}"))?;
            ensure!(text.trim() == expected, "{text}");
            Ok(())
        });
    }
    report.row(format!("dig at {server}: truncated, then over TCP"), || {
        let text = pod.run(&format!("dig +noedns +time=3 @{server} large.test TXT"))?;
        ensure!(text.contains("Truncated, retrying in TCP mode") && text.contains("19-xxx"), "{text}");
        Ok(())
    });
    report.row(format!("dig at {server}: no such name"), || {
        let text = pod.run(&format!("dig +time=3 @{server} absent.test {kind}"))?;
        ensure!(text.contains("status: NXDOMAIN"), "{text}");
        Ok(())
    });
}

fn throughput(report: &mut Report, pod: &Namespace, ip: IpAddr) {
    for (direction, name) in [("", "up"), ("-R", "down"), ("--bidir", "both ways")] {
        report.row(format!("iperf3 -P 8 {name} {ip}"), || {
            let report = iperf(pod, ip, &format!("-P 8 -t 1 {direction}"))?;
            let bytes = report["end"]["sum_received"]["bytes"].as_u64().context("no sum")?;
            ensure!(bytes > 1_000_000, "only {bytes} bytes in a second");
            Ok(())
        });
    }
    for (direction, name) in [("", "up"), ("-R", "down")] {
        report.row(format!("iperf3 -u {name} {ip}"), || {
            let report = iperf(pod, ip, &format!("-u -b 5M -t 1 -l 1200 {direction}"))?;
            let sum = &report["end"]["sum"];
            let lost = sum["lost_percent"].as_f64().context("no loss figure")?;
            // A busy machine loses some: a fifth of a second without a processor fills the receiver's buffer. A path that is
            // wrong loses most of them.
            ensure!(lost < 50.0 && sum["packets"].as_u64().unwrap_or(0) > 400, "{sum}");
            Ok(())
        });
    }
}

/// On our paths nothing with a pod's address arrives outside; on the routed path it does, which proves the counter.
pub fn no_leak(world: &World, path: Path) -> Result<()> {
    let leaks = world.leaks()?;
    ensure!(
        (leaks == 0) == path.is_ours(),
        "{leaks} packets with a pod's address arrived outside on {path:?}"
    );
    Ok(())
}

/// iperf3's client and its JSON report.
pub fn iperf(pod: &Namespace, ip: IpAddr, arguments: &str) -> Result<Value> {
    let line = format!("iperf3 -J -p {IPERF_PORT} --connect-timeout 5000 -c {ip} {arguments}");
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command")?;
    let words: Vec<&str> = words.collect();
    // The server takes one test at a time and needs a moment after each.
    let report = wait::until("a free iperf3 server", Duration::from_secs(20), || {
        let output = output(pod.command_with_resolver(program).args(&words)).ok()?;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let busy = report["error"].as_str().is_some_and(|error| error.contains("busy"));
        (!busy).then_some(report)
    })?;
    ensure!(report["error"].is_null() && report["end"].is_object(), "iperf3: {report}");
    Ok(report)
}

/// iperf3's client until it is killed or dropped; it must not have [`ended`](Background::ended) before.
pub fn endless_iperf(world: &World, pod: &Namespace, ip: IpAddr, arguments: &str) -> Result<Background> {
    let line = format!("-p {IPERF_PORT} --connect-timeout 60000 -c {ip} -t 36000 {arguments}");
    let log = world.scratch.path().join(format!("iperf-{}.log", pod.name()));
    Background::spawn(pod.command("iperf3").args(line.split_whitespace()), "iperf3's client", &log)
}

/// A file there and back over HTTP with equal SHA-256; `family` is curl's flag.
pub fn transfer(world: &World, pod: &Namespace, family: &str, length: u64) -> Result<()> {
    let served = world.nginx.files().join("large");
    if !served.exists() {
        random_file(&served, length, 3)?;
    }
    let local = world.scratch.path().join(format!("large-{}", pod.name()));
    let curl = |arguments: &str| {
        let line = world.curl(&format!("{family} -f --no-progress-meter {arguments}"));
        pod.run(&line.replace("--max-time 60", "--max-time 900"))
    };
    curl(&format!("http://allowed.test/files/large -o {}", local.display()))?;
    same(&served, &local)?;
    curl(&format!("-T {} http://allowed.test/upload/large", local.display()))?;
    same(&served, &world.nginx.uploads().join("large"))
}

fn same(one: &FilePath, other: &FilePath) -> Result<()> {
    let (first, second) = (sha256(one)?, sha256(other)?);
    ensure!(first == second, "{} is {first}, {} is {second}", one.display(), other.display());
    Ok(())
}
