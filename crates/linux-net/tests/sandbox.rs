//! The functions of [`sandbox`] move the whole process, so each case is a process of its own: this program, started again by
//! itself with one thread. It has no test harness because the harness has threads.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output};

use tunproxy_linux_net::sandbox::{self, SandboxPlan};

/// `nobody` of Debian: an ordinary user.
const ORDINARY: u32 = 65_534;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    match words.get(1).map(String::as_str) {
        Some("inside") => return inside(&words[2], &words[3]),
        Some("empty") => return empty(&words[3]),
        Some(_) | None => {}
    }
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI must run these tests as root");
        eprintln!("SKIPPED: this test needs root");
        return ExitCode::SUCCESS;
    }
    root_gets_a_namespace_with_one_way_out();
    an_ordinary_user_gets_one_too_or_the_remedy();
    an_empty_network_is_its_own_to_change();
    the_machine_is_as_before();
    println!("sandbox: 4 cases passed");
    ExitCode::SUCCESS
}

/// In the child: enters and becomes a shell command.
fn inside(resolv_conf: &str, command: &str) -> ExitCode {
    let plan = SandboxPlan {
        tun_name: "tun0".into(),
        queues: 1,
        mtu: 1500,
        addresses: vec!["198.19.255.2/30".parse().unwrap(), "fd73::2/126".parse().unwrap()],
        resolv_conf: Some(PathBuf::from(resolv_conf)),
    };
    match sandbox::enter(&plan) {
        Ok(tun) => {
            // The parent's part here: the queue stays open while the command runs.
            let _queue = rustix::io::dup(&tun.queues[0]).unwrap();
            let status = Command::new("sh").args(["-c", command]).status().unwrap();
            ExitCode::from(status.code().unwrap_or(99) as u8)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(42)
        }
    }
}

/// In the child: moves into an empty network and runs a shell command there.
fn empty(command: &str) -> ExitCode {
    if let Err(error) = sandbox::enter_empty() {
        eprintln!("{error}");
        return ExitCode::from(42);
    }
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    ExitCode::from(status.code().unwrap_or(99) as u8)
}

fn run(user: Option<u32>, command: &str) -> Output {
    run_as("inside", user, command)
}

fn run_as(role: &str, user: Option<u32>, command: &str) -> Output {
    let file = std::env::temp_dir().join(format!("tunproxy-sandbox-{}.conf", std::process::id()));
    std::fs::write(&file, "nameserver 198.19.255.1\n").unwrap();
    // The ordinary user cannot reach the build directory: the program is run by descriptor.
    let mut child = Command::new("/proc/self/exe");
    child.args([role, file.to_str().unwrap(), command]);
    if let Some(uid) = user {
        child.uid(uid).gid(uid);
    }
    let output = child.output().unwrap();
    std::fs::remove_file(&file).unwrap();
    output
}

const LOOK: &str = "ip -o link; ip route; ip -6 route show default; cat /etc/resolv.conf; id -u; \
                    cat /proc/sys/net/ipv4/ping_group_range";

fn root_gets_a_namespace_with_one_way_out() {
    let output = run(None, LOOK);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().filter(|line| line.contains("link/")).count(), 2, "lo and tun0: {text}");
    assert!(text.contains("default dev tun0"), "{text}");
    assert_eq!(text.matches("default dev tun0").count(), 2, "IPv4 and IPv6: {text}");
    assert!(text.contains("nameserver 198.19.255.1"), "{text}");
}

fn an_ordinary_user_gets_one_too_or_the_remedy() {
    let tun_is_open =
        Command::new("test").args(["-w", "/dev/net/tun"]).uid(ORDINARY).status().unwrap().success();
    let output = run(Some(ORDINARY), LOOK);
    let (text, errors) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    if !tun_is_open {
        assert_eq!(output.status.code(), Some(42));
        assert!(errors.contains("chmod 0666 /dev/net/tun"), "{errors}");
        return;
    }
    assert!(output.status.success(), "{text}{errors}");
    assert_eq!(text.matches("default dev tun0").count(), 2, "{text}");
    assert!(text.contains(&format!("\n{ORDINARY}\n")), "the command keeps its own id: {text}");
    let undo = run(Some(ORDINARY), "ip link del tun0 || exit 7");
    assert_eq!(undo.status.code(), Some(7), "the command must not be able to remove the TUN");
}

fn an_empty_network_is_its_own_to_change() {
    let change = "set -e; test \"$(ip -o link | wc -l)\" = 1; ip link show up dev lo | grep -q UP; \
                  ip addr add 198.18.7.7/32 dev lo; echo 0 0 > /proc/sys/net/ipv4/ping_group_range; id -u";
    for user in [None, Some(ORDINARY)] {
        let output = run_as("empty", user, change);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{user:?}: {errors}");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "0\n",
            "root inside, whoever it is outside: {errors}"
        );
    }
}

fn the_machine_is_as_before() {
    let shown = Command::new("ip").args(["-o", "addr"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(!shown.contains("198.18.7.7"), "the empty network's address shows outside: {shown}");
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    assert!(!text.contains("198.19.255.1"), "the sandbox's resolv.conf shows outside: {text}");
}
