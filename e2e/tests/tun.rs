//! `tunproxy-agent tun`: an existing device, a new one with --setup, and a descriptor; complete removal.

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;
use serde_json::Value;
use tunproxy_e2e::{Path, Report, World, WorldOptions};
use tunproxy_testkit::link::RawTun;
use tunproxy_testkit::process::Background;
use tunproxy_testkit::{Host, Namespace, Program, root_or_skip};

const LIMIT: Duration = Duration::from_mins(1);

/// The node plays the host whose traffic goes into the TUN.
struct Lab {
    world: World,
    log: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let world =
            World::new(&WorldOptions { agent: false, ..WorldOptions::for_path(Path::Routed) }).unwrap();
        // Traffic on the host's own link stays there, but for DNS: this resolver's answers have to be seen.
        world.topology.node.set_resolver(&[Host::Dns.v4().into()]).unwrap();
        let log = world.scratch.path().join("tun.log");
        Self { world, log }
    }

    fn host(&self) -> &Namespace {
        &self.world.topology.node
    }

    fn start(&self, arguments: &[&str]) -> Result<Background> {
        let mut command = self.host().command_with_resolver(Program::Agent.path()?);
        Background::spawn(command.arg("tun").args(arguments), "tunproxy-agent tun", &self.log)
    }

    fn curl(&self, url: &str) -> Result<String> {
        self.host().run(&format!("curl -sS --max-time 60 {url}"))
    }
}

fn stop(mut agent: Background) -> Result<()> {
    agent.signal(Signal::TERM)?;
    let status = agent.wait(LIMIT)?;
    ensure!(status.success(), "ended with {status}: {}", agent.log());
    Ok(())
}

/// Links, addresses, routes of every table and rules, v4 and v6, as `ip` sees them.
fn state(host: &Namespace) -> Vec<Value> {
    let queries = ["addr", "route show table all", "rule", "-6 route show table all", "-6 rule"];
    queries.map(|query| settled(host.ip_json(query).unwrap())).to_vec()
}

/// Without what ages or counts by itself.
fn settled(mut value: Value) -> Value {
    match &mut value {
        Value::Array(items) => {
            let mut kept: Vec<Value> = items.drain(..).map(settled).collect();
            kept.sort_by_key(Value::to_string);
            return Value::Array(kept);
        }
        Value::Object(fields) => {
            for key in ["expires", "used", "valid_life_time", "preferred_life_time", "cache"] {
                fields.remove(key);
            }
            let fields = std::mem::take(fields);
            return fields
                .into_iter()
                .map(|(key, value)| (key, settled(value)))
                .collect::<serde_json::Map<_, _>>()
                .into();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    value
}

#[test]
fn a_new_device_with_setup_serves_the_host_and_goes_completely() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let policy = lab.world.scratch.path().join("policy.yaml");
    let text = "apiVersion: tunproxy.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: p, namespace: default}\nspec:\n  rules:\n  \
                - {name: site, action: Allow, to: [{domains: [far.test]}]}\n  \
                - {name: ping, action: Allow, to: [{networks: [0.0.0.0/0]}], ports: [{protocol: ICMP}]}\n";
    std::fs::write(&policy, text).unwrap();
    let flows = lab.world.scratch.path().join("flows.jsonl");
    let before = state(lab.host());
    let (policy, flows_file) = (policy.display().to_string(), flows.display().to_string());
    let mut agent =
        lab.start(&["--device", "tpt0", "--setup", "--policy", &policy, "--log", &flows_file]).unwrap();
    let mut report = Report::default();
    report.row("it serves", || {
        let route = format!("route get {}", Host::Far.v4());
        agent.wait_ready(LIMIT, || lab.host().ip(&route).is_ok_and(|text| text.contains("dev tpt0")))
    });
    report.row("routes and rules are there", || {
        ensure!(state(lab.host()) != before, "nothing was set up");
        Ok(())
    });
    for family in ["-4", "-6"] {
        report.row(format!("allowed by name {family}"), || {
            let text = lab.curl(&format!("{family} http://far.test/"))?;
            ensure!(text.starts_with("far.test"), "{text}");
            Ok(())
        });
        report.row(format!("refused by name {family}"), || {
            let error = lab.curl(&format!("{family} http://far-refused.test/")).err().context("served")?;
            ensure!(error.to_string().contains("curl: ("), "{error}");
            Ok(())
        });
    }
    report.row("it ends in order", || stop(agent));
    report.row("everything is as it was", || {
        let after = state(lab.host());
        for (was, is) in before.iter().zip(&after) {
            ensure!(was == is, "was {was}\nis {is}");
        }
        Ok(())
    });
    report.row("the flow log tells the rule", || {
        let text = std::fs::read_to_string(&flows)?;
        ensure!(text.lines().any(|line| line.contains("\"site\"") && line.contains(":80")), "{text}");
        Ok(())
    });
    report.finish();
}

#[test]
fn an_existing_device_over_a_socks_proxy() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host();
    host.ip("tuntap add mode tun dev tpt0").unwrap();
    host.ip("addr add 198.18.0.1/15 dev tpt0").unwrap();
    host.ip("link set tpt0 up").unwrap();
    host.ip(&format!("route add {}/32 dev tpt0 src 198.18.0.1", Host::OtherWeb.v4())).unwrap();
    let proxy = format!("socks5://{}:1080", Host::Socks.v4());
    // The proxy's side reaches the web server directly; only this host's way to it leads into the TUN.
    let mut agent = lab.start(&["--device", "tpt0", "--upstream", &proxy]).unwrap();
    let mut report = Report::default();
    report.row("it carries", || {
        let url = format!("http://{}/", Host::OtherWeb.v4());
        agent.wait_ready(LIMIT, || lab.curl(&url).is_ok_and(|text| text.contains("over HTTP/1.1")))
    });
    report.row("the proxy's log proves it", || carried_by_proxy(&lab));
    report.row("it ends in order", || stop(agent));
    report.row("the device is not ours and stays, with its address", || {
        let addresses = host.ip("addr show dev tpt0")?;
        ensure!(addresses.contains("198.18.0.1/15"), "{addresses}");
        Ok(())
    });
    report.finish();
}

fn carried_by_proxy(lab: &Lab) -> Result<()> {
    let session = format!(" {}.80", Host::OtherWeb.v4());
    let log = lab.world.danted.log();
    ensure!(log.lines().any(|line| line.contains("tcp/connect [") && line.ends_with(&session)), "{log}");
    Ok(())
}

/// A TUN without virtio headers, opened by another program and handed over, as a VPN application does.
#[test]
fn a_descriptor_of_a_plain_tun() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let tun = RawTun::open(lab.host(), "tpt0").unwrap();
    lab.host().ip("addr add 198.18.0.1/15 dev tpt0").unwrap();
    lab.host().ip(&format!("route add {}/32 dev tpt0 src 198.18.0.1", Host::OtherWeb.v4())).unwrap();
    fcntl_setfd(&tun, FdFlags::empty()).unwrap();
    let fd = tun.as_fd().as_raw_fd().to_string();
    let proxy = format!("socks5://{}:1080", Host::Socks.v4());
    let mut agent = lab.start(&["--fd", &fd, "--upstream", &proxy]).unwrap();
    drop(tun);
    let mut report = Report::default();
    report.row("it carries", || {
        let url = format!("http://{}/", Host::OtherWeb.v4());
        agent.wait_ready(LIMIT, || lab.curl(&url).is_ok_and(|text| text.contains("over HTTP/1.1")))
    });
    report.row("the proxy's log proves it", || carried_by_proxy(&lab));
    report.row("it ends in order", || stop(agent));
    report.finish();
}
