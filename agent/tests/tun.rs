//! `tunproxy-agent tun`: by name, with --setup, by descriptor; and that nothing stays.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tun_rs::{DeviceBuilder, Layer};
use tunproxy_linux_net::tun::{self, TunSpec};
use tunproxy_linux_net::{NetNs, Netlink};
use tunproxy_testkit::process::Background;
use tunproxy_testkit::servers::{Nginx, WebNames};
use tunproxy_testkit::{Host, Namespace, Topology, Wire, root_or_skip, wait};

const AGENT: &str = env!("CARGO_BIN_EXE_tunproxy-agent");
const LIMIT: Duration = Duration::from_mins(1);
const PORT: u16 = 7000;

/// The agent on the node, whose own programs are the clients.
struct Lab {
    topology: Topology,
    files: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let topology = Topology::new(Wire::Veth).unwrap();
        for ip in Host::Web.both() {
            let listener = topology.outside.tcp_listen(SocketAddr::new(ip, PORT)).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let Ok(mut stream) = stream else { return };
                    if stream.read_exact(&mut [0]).is_ok() {
                        let _ = stream.write_all(b"hello");
                    }
                }
            });
        }
        Self { topology, files: tempfile::tempdir().unwrap() }
    }

    fn node(&self) -> &Arc<Namespace> {
        &self.topology.node
    }

    /// Starts the agent and waits until it says that it serves.
    fn tun(&self, arguments: &[&str]) -> Background {
        let mut command = self.node().command_with_resolver(AGENT);
        command.arg("tun").args(arguments).arg("--log").arg(self.files.path().join("flows.jsonl"));
        self.serving(&mut command)
    }

    fn serving(&self, command: &mut Command) -> Background {
        let log = self.files.path().join("agent.log");
        let mut agent = Background::spawn(command, "agent", &log).unwrap();
        agent
            .wait_ready(LIMIT, || fs::read_to_string(&log).is_ok_and(|text| text.contains("serving")))
            .unwrap();
        agent
    }

    fn fetch(&self, ip: IpAddr) -> String {
        let mut stream = self.node().tcp_connect(SocketAddr::new(ip, PORT), LIMIT).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(b"?").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn flows(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.files.path().join("flows.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Links, addresses, routes and rules of the node.
    fn network(&self) -> String {
        ["-o link", "-o addr", "route show table all", "-6 route show table all", "rule", "-6 rule"]
            .map(|arguments| self.node().ip(arguments).unwrap())
            .join("----\n")
    }
}

fn stop(mut agent: Background) {
    agent.signal(Signal::TERM).unwrap();
    let status = agent.wait(LIMIT).unwrap();
    assert!(status.success(), "{status}: {}", agent.log());
}

#[test]
fn setup_leads_the_hosts_traffic_through_the_agent_and_takes_all_of_it_back() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    // The web server is behind the default route, not on the link: --setup leaves the link's own network alone.
    for (family, net) in [("-4", "203.0.113.0/24"), ("-6", "2001:db8:300::/64")] {
        let address = net.replace(".0/24", ".9/32").replace("::/64", "::9/128");
        lab.topology.outside.ip(&format!("{family} addr add {address} dev lo")).unwrap();
    }
    for address in ["203.0.113.9", "2001:db8:300::9"] {
        let listener = lab.topology.outside.tcp_listen(format_address(address)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                if stream.read_exact(&mut [0]).is_ok() {
                    let _ = stream.write_all(b"hello");
                }
            }
        });
    }
    let before = lab.network();
    let agent = lab.tun(&["--device", "tunx", "--setup"]);
    for address in ["203.0.113.9", "2001:db8:300::9"] {
        assert_eq!(lab.fetch(address.parse().unwrap()), "hello");
    }
    wait::until_true("both flows in the log", LIMIT, || lab.flows().len() >= 2).unwrap();
    stop(agent);
    assert_eq!(lab.network(), before);
}

fn format_address(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), PORT)
}

#[test]
fn a_new_device_by_name_is_served_and_gone_with_the_agent() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let before = lab.node().ip("-o link").unwrap();
    let agent = lab.tun(&["--device", "tunx", "--default", "Deny"]);
    for line in ["link set tunx up", "addr add 198.18.0.1/30 dev tunx", "route add 203.0.113.0/24 dev tunx"] {
        lab.node().ip(line).unwrap();
    }
    let error = lab.node().tcp_connect(format_address("203.0.113.1"), LIMIT).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    wait::until_true("the refusal in the log", LIMIT, || {
        lab.flows().iter().any(|flow| flow["verdict"] == "denied" && flow["reason"] == "node-default")
    })
    .unwrap();
    stop(agent);
    assert_eq!(lab.node().ip("-o link").unwrap(), before);
}

#[test]
fn an_existing_device_is_served_and_stays() {
    if !root_or_skip() {
        return;
    }
    for mode in ["tun", "tun multi_queue"] {
        serve_existing(mode);
    }
}

fn serve_existing(mode: &str) {
    let lab = Lab::new();
    lab.node().ip(&format!("tuntap add mode {mode} dev tunx")).unwrap();
    for line in ["link set tunx up", "addr add 198.18.0.1/30 dev tunx", "route add 203.0.113.0/24 dev tunx"] {
        lab.node().ip(line).unwrap();
    }
    let agent = lab.tun(&["--device", "tunx", "--default", "Deny"]);
    let error = lab.node().tcp_connect(format_address("203.0.113.1"), LIMIT).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    stop(agent);
    assert!(lab.node().ip("-o link show tunx").is_ok());
}

#[test]
fn a_descriptor_of_the_parents_is_served() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let netns = NetNs::open(&lab.node().path()).unwrap();
    let spec = TunSpec { name: "tunx", queues: 1, mtu: 1500, persistent: None };
    let tun = netns.run(|| tun::create(&mut Netlink::open().unwrap(), &spec).unwrap()).unwrap();
    for line in ["link set tunx up", "addr add 198.18.0.1/30 dev tunx", "route add 203.0.113.0/24 dev tunx"] {
        lab.node().ip(line).unwrap();
    }
    // A program that keeps its standard input: the one under test gets the TUN there.
    let log = lab.files.path().join("agent.log");
    let output = fs::File::create(&log).unwrap();
    let mut command = lab.node().command_with_resolver(AGENT);
    command
        .args(["tun", "--fd", "0", "--default", "Deny"])
        .stdin(Stdio::from(tun.queues.into_iter().next().unwrap()));
    let agent = Killed(command.stdout(Stdio::null()).stderr(output).spawn().unwrap());
    wait::until_true("the agent to serve", LIMIT, || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("serving"))
    })
    .unwrap();
    let refused = lab.node().tcp_connect(format_address("203.0.113.1"), LIMIT).unwrap_err();
    drop(agent);
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_descriptor_of_a_device_in_another_namespace_is_served() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let pod = lab.topology.pod_namespace("pod").unwrap();
    let spec = TunSpec { name: "eth0", queues: 1, mtu: 1500, persistent: None };
    let create = || tun::create(&mut Netlink::open().unwrap(), &spec).unwrap();
    let tun = NetNs::open(&pod.path()).unwrap().run(create).unwrap();
    for line in ["link set eth0 up", "addr add 10.244.0.9/32 dev eth0", "route add default dev eth0"] {
        pod.ip(line).unwrap();
    }
    let log = lab.files.path().join("agent.log");
    let mut command = lab.node().command_with_resolver(AGENT);
    command.args(["tun", "--fd", "0"]).stdin(Stdio::from(tun.queues.into_iter().next().unwrap()));
    let _agent = Killed(command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap());
    let mut stream = pod.tcp_connect(SocketAddr::new(Host::Web.v4().into(), PORT), LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"?").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

/// As programs without offload open it: packets as they are on a wire, with checksums and no larger than the MTU.
#[test]
fn a_descriptor_without_virtio_headers_carries_curl_both_ways() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let site = WebNames {
        addresses: Host::OtherWeb.both().map(IpAddr::from).into(),
        names: vec!["web.test".into()],
    };
    let nginx = Nginx::start(&lab.topology.outside, &[site]).unwrap();
    let queue = plain_tun(&lab);
    let log = lab.files.path().join("agent.log");
    let mut command = lab.node().command_with_resolver(AGENT);
    command.args(["tun", "--fd", "0"]).stdin(Stdio::from(queue)).stdout(Stdio::null());
    let _agent = Killed(command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap());
    wait::until_true("the agent to serve", LIMIT, || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("serving"))
    })
    .unwrap();

    let bytes: Vec<u8> = (0..3_000_000u32).flat_map(|number| (number % 251).to_be_bytes()).collect();
    fs::write(nginx.files().join("large"), &bytes).unwrap();
    for (source, host) in [("198.18.0.1", "198.51.100.11"), ("fd00:18::1", "[2001:db8:100::b]")] {
        let local = lab.files.path().join("local");
        let there = local.display();
        let curl = |rest: &str| {
            let line = format!("curl -f --no-progress-meter -g --max-time 60 --interface {source} {rest}");
            lab.node().run(&line).unwrap()
        };
        curl(&format!("-o {there} http://{host}/files/large"));
        assert!(fs::read(&local).unwrap() == bytes, "what came down over {source} differs");
        curl(&format!("-T {there} http://{host}/upload/large"));
        assert!(
            fs::read(nginx.uploads().join("large")).unwrap() == bytes,
            "what went up over {source} differs"
        );
        fs::remove_file(nginx.uploads().join("large")).unwrap();
        let seen = curl(&format!("http://{host}/"));
        assert!(!seen.contains(source), "it went past the agent: {seen}");
    }
}

/// A TUN that only `IFF_NO_PI` was asked of; what comes from its own addresses is routed into it.
fn plain_tun(lab: &Lab) -> OwnedFd {
    let netns = NetNs::open(&lab.node().path()).unwrap();
    let open = || DeviceBuilder::new().name("tunx").layer(Layer::L3).offload(false).build_sync().unwrap();
    let queue = netns.run(|| open().as_fd().try_clone_to_owned().unwrap()).unwrap();
    for line in [
        "link set tunx up",
        "addr add 198.18.0.1/30 dev tunx",
        "addr add fd00:18::1/64 dev tunx nodad",
        "route add default dev tunx table 100",
        "-6 route add default dev tunx table 100",
        "rule add from 198.18.0.1 lookup 100",
        "-6 rule add from fd00:18::1 lookup 100",
    ] {
        lab.node().ip(line).unwrap();
    }
    queue
}

/// Does not outlive the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_descriptor_that_is_no_tun_is_refused_with_its_number() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    for (number, expected) in [("0", "--fd 0"), ("99", "--fd 99")] {
        let mut command = lab.node().command_with_resolver(AGENT);
        let output = command.args(["tun", "--fd", number]).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn without_privilege_the_cause_is_told_once() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let mut command = lab.node().command_with_resolver("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", AGENT, "tun", "--device", "t0"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let causes = ["not permitted", "denied"].map(|cause| said.matches(cause).count());
    assert_eq!(causes.iter().sum::<usize>(), 1, "{said}");
}
