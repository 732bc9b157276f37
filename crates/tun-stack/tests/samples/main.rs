//! The sample programs against real programs of the host: netcat, sha256sum, the kernel's own TCP.

mod programs;
#[path = "../support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::Barrier;

use programs::sample;
use rustix::process::Signal;
use support::{LIMIT, bytes};
use tempfile::TempDir;
use tunproxy_testkit::process::{Background, run};
use tunproxy_testkit::{Namespace, root_or_skip, wait};

const STACK: [&str; 2] = ["198.19.77.2", "fdb4:7c1e:52a9:77::2"];
const DEVICE: &str = "tunstack0";

/// A namespace with the echo sample in it.
struct Echo {
    // Before the namespace, whose end would kill it.
    program: Background,
    namespace: Namespace,
    directory: TempDir,
}

impl Echo {
    fn start(label: &str, arguments: &[&str]) -> Self {
        let namespace = Namespace::new(label).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut command = namespace.command(sample("echo").unwrap());
        let mut program =
            Background::spawn(command.args(arguments), "echo", &directory.path().join("log")).unwrap();
        let log = directory.path().join("log");
        let services =
            || std::fs::read_to_string(&log).is_ok_and(|text| text.matches("TCP and UDP on").count() == 2);
        program.wait_ready(LIMIT, services).unwrap();
        Self { program, namespace, directory }
    }

    fn sh(&self, script: &str) -> String {
        let mut command = self.namespace.command("sh");
        run(command.arg("-c").arg(script).current_dir(self.directory.path())).unwrap()
    }

    fn connect(&self, address: &str) -> TcpStream {
        let address = SocketAddr::new(address.parse().unwrap(), 7);
        let stream = self.namespace.tcp_connect(address, LIMIT).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }
}

#[test]
fn netcat_gets_its_words_back() {
    if !root_or_skip() {
        return;
    }
    let echo = Echo::start("nc", &[]);
    for address in STACK {
        assert_eq!(echo.sh(&format!("echo hello | nc -N -w 60 {address} 7")), "hello\n");
        // Ends with the first datagram that comes back.
        assert_eq!(echo.sh(&format!("echo datagram | nc -u -W 1 {address} 7")), "datagram\n");
    }
}

#[test]
fn ten_mebibytes_come_back_with_the_same_sum() {
    if !root_or_skip() {
        return;
    }
    let echo = Echo::start("sum", &[]);
    echo.sh("head -c 10485760 /dev/urandom > data");
    let expected = echo.sh("sha256sum < data");
    for address in STACK {
        let got = echo.sh(&format!("nc -N -w 60 {address} 7 < data | sha256sum"));
        assert_eq!(got, expected, "through {address}");
    }
}

#[test]
fn a_small_mtu_carries_everything_too() {
    if !root_or_skip() {
        return;
    }
    let echo = Echo::start("mtu", &["--mtu", "1280"]);
    let link = &echo.namespace.ip_json(&format!("link show {DEVICE}")).unwrap()[0];
    assert_eq!(link["mtu"], 1_280);
    echo.sh("head -c 1048576 /dev/urandom > data");
    let expected = echo.sh("sha256sum < data");
    for address in STACK {
        assert_eq!(echo.sh(&format!("nc -N -w 60 {address} 7 < data | sha256sum")), expected);
    }
}

/// More than the backlog takes at once: who is not heard tries again.
#[test]
fn two_hundred_connections_at_once() {
    const COUNT: usize = 200;
    if !root_or_skip() {
        return;
    }
    let echo = Echo::start("many", &[]);
    let all_open = Barrier::new(COUNT);
    // Threads inherit the namespace of the one that starts them.
    echo.namespace.enter(|| {
        std::thread::scope(|scope| {
            for number in 0..COUNT {
                let all_open = &all_open;
                scope.spawn(move || {
                    let address = SocketAddr::new(STACK[number % 2].parse().unwrap(), 7);
                    let stream = TcpStream::connect_timeout(&address, LIMIT);
                    // Before any panic: the others wait here.
                    all_open.wait();
                    let mut stream = stream.unwrap_or_else(|error| panic!("connection {number}: {error}"));
                    stream.set_read_timeout(Some(LIMIT)).unwrap();
                    let sent: Vec<u8> = bytes(20_000).into_iter().map(|byte| byte ^ number as u8).collect();
                    stream.write_all(&sent).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                    let mut got = Vec::new();
                    stream.read_to_end(&mut got).unwrap();
                    assert!(got == sent, "connection {number}");
                });
            }
        });
    });
}

#[test]
fn a_signal_ends_it_cleanly_and_leaves_nothing() {
    if !root_or_skip() {
        return;
    }
    for signal in [Signal::INT, Signal::TERM] {
        let mut echo = Echo::start("signal", &[]);
        assert!(echo.namespace.links().unwrap().contains(DEVICE));
        let mut open = echo.connect(STACK[0]);
        echo.program.signal(signal).unwrap();
        let status = echo.program.wait(LIMIT).unwrap();
        assert!(status.success(), "{status}");
        assert!(!echo.namespace.links().unwrap().contains(DEVICE));
        // The client was told.
        let error = open.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_device_that_exists_is_named() {
    if !root_or_skip() {
        return;
    }
    let namespace = Namespace::new("exists").unwrap();
    namespace.ip("tuntap add mode tun dev tunstack0").unwrap();
    let output = namespace.command(sample("echo").unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(message, "error: --device tunstack0: interface tunstack0 exists already\n");
}

fn connect(namespace: &Namespace, arguments: &[&str]) -> Command {
    let mut command = namespace.command(sample("connect").unwrap());
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn finish(output: Output) -> (Option<i32>, Vec<u8>, String) {
    (output.status.code(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The host answers only after the end of what the stack sends, and the stack still prints it: half-close.
#[test]
fn connect_talks_to_a_listener_of_the_host() {
    if !root_or_skip() {
        return;
    }
    let namespace = Namespace::new("connect").unwrap();
    for (bind, to) in [("0.0.0.0:7000", "198.19.77.1:7000"), ("[::]:7000", "[fdb4:7c1e:52a9:77::1]:7000")] {
        let listener = namespace.tcp_listen(bind.parse().unwrap()).unwrap();
        let host = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            stream.write_all(&bytes(500_000)).unwrap();
            got
        });
        let mut child = connect(&namespace, &["--to", to]).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&bytes(300_000)).unwrap();
        let (code, printed, errors) = finish(child.wait_with_output().unwrap());
        assert_eq!(code, Some(0), "{errors}");
        assert!(printed == bytes(500_000));
        assert!(host.join().unwrap() == bytes(300_000));
        assert!(!namespace.links().unwrap().contains(DEVICE));
    }
}

/// The host's end comes while standard input is still open.
#[test]
fn connect_ends_with_the_peer() {
    if !root_or_skip() {
        return;
    }
    let namespace = Namespace::new("peer").unwrap();
    let listener = namespace.tcp_listen("0.0.0.0:7000".parse().unwrap()).unwrap();
    let host = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"good bye").unwrap());
    let mut child = connect(&namespace, &[]).spawn().unwrap();
    let stdin = child.stdin.take();
    let (code, printed, errors) = finish(child.wait_with_output().unwrap());
    assert_eq!((code, printed.as_slice()), (Some(0), &b"good bye"[..]), "{errors}");
    drop(stdin);
    host.join().unwrap();
}

#[test]
fn connect_says_why_it_cannot() {
    if !root_or_skip() {
        return;
    }
    let namespace = Namespace::new("cannot").unwrap();
    let ended = |arguments: &[&str]| finish(connect(&namespace, arguments).output().unwrap());
    let (code, _, errors) = ended(&["--to", "198.19.77.1:7001"]);
    assert_eq!((code, errors.as_str()), (Some(1), "error: connect to 198.19.77.1:7001: refused\n"));
    let (code, _, errors) = ended(&["--to", "198.19.77.9:7001", "--timeout", "1"]);
    assert_eq!(
        (code, errors.as_str()),
        (Some(1), "error: connect to 198.19.77.9:7001: no answer within 1s\n")
    );
    let (code, _, errors) = ended(&["--to", "[::1]:80", "--address", "198.19.77.2/24"]);
    assert_eq!(code, Some(1));
    assert!(errors.contains("has no address of the family of [::1]:80"), "{errors}");
}

/// A signal while it waits for its peer: 128 and the signal's number, and no TUN.
#[test]
fn a_signal_ends_connect() {
    if !root_or_skip() {
        return;
    }
    let namespace = Namespace::new("csignal").unwrap();
    let listener = namespace.tcp_listen("0.0.0.0:7000".parse().unwrap()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut command = namespace.command(sample("connect").unwrap());
    let mut program = Background::spawn(&mut command, "connect", &log).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    program.signal(Signal::TERM).unwrap();
    assert_eq!(program.wait(LIMIT).unwrap().code(), Some(143));
    assert!(!namespace.links().unwrap().contains(DEVICE));
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    // Its standard input was at its end, so ours has come before the reset.
    let _ = stream.read(&mut [0]);
}

/// The commands of the README, as they are written there but for cargo, which is not asked to build again.
#[test]
fn the_readme_is_right() {
    if !root_or_skip() {
        return;
    }
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
    let section = readme.split("\n## ").find(|section| section.starts_with("A stack of your own")).unwrap();
    let command = |start: &str| {
        let line =
            section.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start}"));
        let line = line.split('#').next().unwrap_or_default().trim();
        ["echo", "connect"].into_iter().fold(line.to_owned(), |line, name| {
            let cargo = format!("cargo run --package tunproxy-tun-stack --example {name}");
            let program = sample(name).unwrap().display().to_string();
            line.replace(&format!("{cargo} -- "), &format!("{program} ")).replace(&cargo, &program)
        })
    };
    let namespace = Namespace::new("readme").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let start = |line: &str, name: &str| {
        let mut shell = namespace.command("sh");
        // `sleep` keeps the standard input open, as a terminal does.
        let script = format!("sleep 1000 | exec {line}");
        Background::spawn(shell.arg("-c").arg(script), name, &directory.path().join(name)).unwrap()
    };
    let talk = |line: &str| {
        let mut shell = namespace.command("sh");
        run(shell.arg("-c").arg(format!("echo hello | {line} -N"))).unwrap()
    };

    let mut echo = start(&command("cargo run --package tunproxy-tun-stack --example echo"), "echo");
    echo.wait_ready(LIMIT, || namespace.links().is_ok_and(|links| links.contains(DEVICE))).unwrap();
    let nc = command("nc 198.19.77.2");
    wait::until_true("the echo to listen", LIMIT, || {
        namespace.accepts("198.19.77.2:7".parse().unwrap(), LIMIT)
    })
    .unwrap();
    assert_eq!(talk(&nc), "hello\n");
    echo.kill().unwrap();
    wait::until_true("the TUN to go", LIMIT, || !namespace.links().unwrap().contains(DEVICE)).unwrap();

    let mut listener = start(&command("nc -l"), "nc");
    let listens = || namespace.run("ss -Hltn sport = :7000").is_ok_and(|text| !text.is_empty());
    listener.wait_ready(LIMIT, listens).unwrap();
    let connect = command("cargo run --package tunproxy-tun-stack --example connect");
    let mut shell = namespace.command("sh");
    let mut client = shell.arg("-c").arg(format!("exec {connect}")).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = client.stdin.take().unwrap();
    stdin.write_all(b"from the stack\n").unwrap();
    listener.wait_ready(LIMIT, || listener_log(&directory).contains("from the stack\n")).unwrap();
    drop(stdin);
    listener.kill().unwrap();
    client.wait().unwrap();
}

fn listener_log(directory: &TempDir) -> String {
    std::fs::read_to_string(directory.path().join("nc")).unwrap_or_default()
}
