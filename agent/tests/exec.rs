//! `tunproxy-agent exec` with real commands: their exit status, their signals, their network, and what is left.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tunproxy_testkit::servers::{Danted, DnsServer};
use tunproxy_testkit::{Host, Topology, Wire, root_or_skip, wait};

const AGENT: &str = env!("CARGO_BIN_EXE_tunproxy-agent");
const LIMIT: Duration = Duration::from_mins(1);
const NOBODY: &str = "65534";

const POLICY: &str = "\
apiVersion: tunproxy.io/v1alpha1
kind: EgressPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  rules:
  - {name: good-site, action: Allow, to: [{domains: [good.test]}], ports: [{protocol: TCP, port: 7000}]}
";

/// A node and a web server outside it that has two names on one address.
struct Lab {
    topology: Topology,
    _dns: DnsServer,
    files: tempfile::TempDir,
    requests: Arc<AtomicUsize>,
}

impl Lab {
    fn new() -> Self {
        let topology = Topology::new(Wire::Veth).unwrap();
        let web = Host::Web.v4().into();
        let records = [("good.test", web), ("bad.test", web), ("six.test", Host::Web.v6().into())];
        let dns = DnsServer::start(&topology.outside, &[Host::Dns.v4().into()], &records).unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        for ip in Host::Web.both() {
            let listener = topology.outside.tcp_listen(SocketAddr::new(ip, 7000)).unwrap();
            let requests = requests.clone();
            std::thread::spawn(move || answer_all(&listener, &requests));
        }
        let files = tempfile::tempdir().unwrap();
        fs::write(files.path().join("policy.yaml"), POLICY).unwrap();
        Self { topology, _dns: dns, files, requests }
    }

    /// `tunproxy-agent exec ARGUMENTS` on the node.
    fn exec(&self, arguments: &[&str]) -> Command {
        let mut command = self.topology.node.command_with_resolver(AGENT);
        command.arg("exec").args(arguments).stdin(Stdio::null()).env("TMPDIR", self.files.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.exec(arguments).output().unwrap()
    }

    fn policy(&self) -> String {
        self.files.path().join("policy.yaml").display().to_string()
    }
}

fn answer_all(listener: &TcpListener, requests: &AtomicUsize) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
            request.push(byte[0]);
        }
        requests.fetch_add(1, Ordering::SeqCst);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nhi\n");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn curl<'a>(before: &[&'a str], url: &'a str) -> Vec<&'a str> {
    [before, &["--", "curl", "-sS", "-m", "10", url]].concat()
}

#[test]
fn the_exit_status_is_the_commands() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let cases: [(&[&str], i32); 5] = [
        (&["sh", "-c", "exit 7"], 7),
        (&["true"], 0),
        (&["no-such-command"], 127),
        (&["/etc/passwd"], 126),
        (&["sh", "-c", "kill -TERM $$"], 143),
    ];
    for (command, expected) in cases {
        let output = lab.run(&[&["--"], command].concat());
        assert_eq!(output.status.code(), Some(expected), "{command:?}: {}", text(&output.stderr));
    }
    let output =
        lab.exec(&["--", "cat"]).stdin(Stdio::from(fs::File::open(lab.policy()).unwrap())).output().unwrap();
    assert_eq!(text(&output.stdout), POLICY, "standard input and output are the command's own");
}

#[test]
fn only_what_policy_allows_leaves_and_the_rest_is_told() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let (policy, log) = (lab.policy(), lab.files.path().join("flows.jsonl").display().to_string());
    let pod = ["--policy", &policy, "--namespace", "shop", "--labels", "app=web", "--log", &log];

    let good = lab.run(&curl(&pod, "http://good.test:7000/"));
    assert_eq!(
        (good.status.code(), text(&good.stdout).as_str()),
        (Some(0), "hi\n"),
        "{}",
        text(&good.stderr)
    );
    assert_eq!(text(&good.stderr), "", "nothing was refused, so nothing is said");

    let bad = lab.run(&curl(&pod, "http://bad.test:7000/"));
    assert_eq!(bad.status.code(), Some(7), "refused at once: {}", text(&bad.stderr));
    let said = text(&bad.stderr);
    let expected =
        "tunproxy-agent: refused TCP bad.test:7000 (198.51.100.10) by EgressPolicy/shop/web default";
    assert!(said.contains(expected), "{said}");
    assert_eq!(lab.requests.load(Ordering::SeqCst), 1, "the refused request never arrived");

    let other = lab.run(&curl(&["--policy", &policy, "--default", "Allow"], "http://six.test:7000/"));
    assert_eq!(text(&other.stdout), "hi\n", "another namespace, over IPv6: {}", text(&other.stderr));

    let flows: Vec<Value> =
        fs::read_to_string(&log).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let flow = |verdict: &str| {
        flows
            .iter()
            .find(|flow| flow["verdict"] == verdict && flow["protocol"] == "TCP")
            .unwrap_or_else(|| panic!("no {verdict} flow in {flows:?}"))
    };
    assert_eq!(flow("allowed")["name"], "good.test");
    assert_eq!(flow("allowed")["rule"], "good-site");
    assert_eq!(flow("denied")["name"], "bad.test");
    assert_eq!(flow("denied")["pod"]["namespace"], "shop");
}

#[test]
fn a_proxy_carries_it_by_name() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let danted =
        Danted::start(&lab.topology.outside, SocketAddr::new(Host::Socks.v4().into(), 1080)).unwrap();
    let upstream = format!("socks5://{}", danted.address());
    let output = lab.run(&curl(&["--upstream", &upstream], "http://good.test:7000/"));
    assert_eq!(text(&output.stdout), "hi\n", "{}", text(&output.stderr));
    wait::until_true("the session in the proxy's log", LIMIT, || danted.log().contains("tcp/connect [: "))
        .unwrap();
}

#[test]
fn a_proxy_that_is_not_there_is_named_as_the_cause() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let output = lab.run(&curl(&["--upstream", "socks5://198.51.100.20:9"], "http://good.test:7000/"));
    assert_eq!(output.status.code(), Some(7));
    let said = text(&output.stderr);
    let expected = "tunproxy-agent: failed TCP good.test:7000 (198.51.100.10): the proxy 198.51.100.20:9 cannot be \
                    reached: Connection refused";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn broken_policy_runs_nothing() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let broken = lab.files.path().join("broken.yaml");
    fs::write(&broken, POLICY.replace("rules:", "rulez:")).unwrap();
    let output = lab.run(&["--policy", broken.to_str().unwrap(), "--", "touch", "/tmp/never"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(
        text(&output.stderr).contains("broken.yaml:6: spec: unknown key `rulez`"),
        "{}",
        text(&output.stderr)
    );
    assert!(!Path::new("/tmp/never").exists());
}

/// Starts a command that says `ready` when its traps are set. Its standard input is to be kept: a wait would close it,
/// and the command would read its end instead of getting its signal.
fn start_ready(lab: &Lab, script: &str) -> (Child, ChildStdin) {
    let mut command = lab.exec(&["--", "sh", "-c", script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let stdin = child.stdin.take().unwrap();
    (child, stdin)
}

#[test]
fn signals_to_the_agent_reach_the_command() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let signals = [
        ("TERM", Signal::TERM),
        ("INT", Signal::INT),
        ("HUP", Signal::HUP),
        ("QUIT", Signal::QUIT),
        ("USR1", Signal::USR1),
    ];
    for (name, signal) in signals {
        let (mut child, _stdin) =
            start_ready(&lab, &format!("trap 'exit 42' {name}; echo ready; read line; exit 1"));
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(42), "{name}");
    }
    let (mut child, _stdin) = start_ready(&lab, "echo ready; read line");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143), "a command that does not catch it is ended by it");
}

#[test]
fn a_command_does_not_outlive_a_killed_agent() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let mut child = lab
        .exec(&["--", "sh", "-c", "echo $$; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let command = format!("/proc/{}", line.trim());
    assert!(Path::new(&command).exists());
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    wait::until_true("the end of the command", LIMIT, || !Path::new(&command).exists()).unwrap();
}

#[test]
fn an_ordinary_user_needs_no_root() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let run = |arguments: &[&str]| {
        let mut command = lab.topology.node.command_with_resolver("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", AGENT, "exec"]);
        command.args(arguments).stdin(Stdio::null()).output().unwrap()
    };
    let output = run(&curl(&[], "http://good.test:7000/"));
    assert_eq!(text(&output.stdout), "hi\n", "{} (is /dev/net/tun 0666?)", text(&output.stderr));
    let output = run(&["--", "id", "-u"]);
    assert_eq!(text(&output.stdout).trim(), NOBODY);
    let output = run(&["--", "sh", "-c", "ip link del tun0 2>/dev/null && exit 1; exit 9"]);
    assert_eq!(output.status.code(), Some(9), "the command cannot undo its own TUN");
    let output = run(&curl(&["--default", "Deny"], "http://198.51.100.10:7000/"));
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    let output = run(&["--", "ping", "-c1", "-W5", "198.51.100.10"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// A host whose resolver, nscd and avahi answer over Unix sockets, and whose resolv.conf is a link beside the first, for
/// the one command that follows `run`.
struct Services {
    files: tempfile::TempDir,
}

impl Services {
    const SOCKETS: [&str; 3] = ["systemd/resolve/io.systemd.Resolve", "nscd/socket", "avahi-daemon/socket"];

    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        fs::set_permissions(files.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let listen = |socket: &str| {
            let path = files.path().join("run").join(socket);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let listener = UnixListener::bind(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
            // Closed at once: the host's own programs, which ask nscd, do not wait for an answer.
            std::thread::spawn(move || listener.incoming().for_each(drop));
        };
        Self::SOCKETS.into_iter().for_each(listen);
        fs::write(files.path().join("run/systemd/resolve/stub-resolv.conf"), "nameserver 127.0.0.53\n")
            .unwrap();
        Self { files }
    }

    /// `exec` as `user` on that host; `script` runs in the sandbox.
    fn run(&self, lab: &Lab, user: &str, script: &str) -> Output {
        let host = format!(
            "set -e; mount --bind {0}/run /run; cp -a /etc {0}/etc; rm -f {0}/etc/resolv.conf; \
             ln -s ../run/systemd/resolve/stub-resolv.conf {0}/etc/resolv.conf; mount --bind {0}/etc /etc; \
             exec setpriv --reuid {user} --regid {user} --clear-groups {AGENT} exec -- sh -c '{script}'",
            self.files.path().display()
        );
        let mut command = lab.topology.node.command_with_resolver("unshare");
        let output = command.args(["-m", "sh", "-c", &host]).stdin(Stdio::null()).output().unwrap();
        fs::remove_dir_all(self.files.path().join("etc")).unwrap();
        output
    }
}

#[test]
fn no_service_of_the_host_resolves_names_past_policy() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let services = Services::new();
    // curl's 7: it could not connect. A connection that is closed at once ends in 52 or 56.
    let ask = Services::SOCKETS
        .map(|socket| format!("curl -s -m 1 --unix-socket /run/{socket} http://x/; echo $?;"))
        .join(" ");
    for user in ["0", NOBODY] {
        let output = services.run(&lab, user, &format!("{ask} cat /etc/resolv.conf"));
        let said = text(&output.stderr);
        assert!(output.status.success(), "uid {user}: {said}");
        assert_eq!(text(&output.stdout), "7\n7\n7\nnameserver 198.19.255.1\n", "uid {user}: {said}");
    }
    for socket in Services::SOCKETS {
        UnixStream::connect(services.files.path().join("run").join(socket))
            .expect("it was there to be found");
    }
}

#[test]
fn a_hundred_runs_leave_nothing() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let before = leftovers(&lab);
    for _ in 0..100 {
        assert!(lab.run(&["--", "true"]).status.success());
    }
    assert_eq!(leftovers(&lab), before);
}

/// What a run could leave on the node: processes, interfaces, files, mounts.
fn leftovers(lab: &Lab) -> (usize, String, Vec<String>, usize) {
    let mut files: Vec<String> = fs::read_dir(lab.files.path())
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    files.sort();
    let mounts = fs::read_to_string("/proc/self/mounts")
        .unwrap()
        .lines()
        .filter(|line| line.contains("resolv"))
        .count();
    (lab.topology.node.pids().len(), lab.topology.node.ip("-o link").unwrap(), files, mounts)
}
