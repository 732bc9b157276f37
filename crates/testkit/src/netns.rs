//! Network namespaces with unique names, gone on drop with every process in them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::run;
use crate::wait;

const PREFIX: &str = "tpt-";
static COUNTER: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// A named network namespace (`/run/netns/tpt-PID-N-LABEL`) with `lo` up, reno, and no IPv6 duplicate detection.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn new(label: &str) -> Result<Self> {
        SWEEP.call_once(remove_leftovers);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{label}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        // bbr, this machine's default, paces by a model that short test runs upset; cubic may not be there.
        namespace.sysctl("net.ipv4.tcp_congestion_control", "reno")?;
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net.ipv6.conf.{scope}.accept_dad"), "0")?;
            namespace.sysctl(&format!("net.ipv6.conf.{scope}.accept_ra"), "0")?;
        }
        // As systemd sets it: unprivileged ping sockets are allowed.
        namespace.sysctl("net.ipv4.ping_group_range", "0 2147483647")?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// `program` in this namespace, with the host's files as they are.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// `program` in this namespace and with its resolver (see [`Self::set_resolver`]) as /etc/resolv.conf.
    pub fn command_with_resolver(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a command line (split at spaces) with the namespace's resolver, and gives what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        run(self.command_with_resolver(program).args(words))
    }

    /// `ip ARGUMENTS` on this namespace, split at spaces.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// The names of all interfaces.
    pub fn links(&self) -> Result<BTreeSet<String>> {
        let links = self.ip_json("link")?;
        let links = links.as_array().context("no list of links")?;
        links.iter().map(|link| link["ifname"].as_str().map(ToOwned::to_owned).context("no name")).collect()
    }

    /// `ip -j ARGUMENTS` on this namespace.
    pub fn ip_json(&self, arguments: &str) -> Result<serde_json::Value> {
        let text = self.ip(&format!("-j -d {arguments}"))?;
        // `ip -j` prints nothing at all for an empty table.
        if text.trim().is_empty() {
            return Ok(serde_json::Value::Array(Vec::new()));
        }
        serde_json::from_str(&text).with_context(|| format!("ip -j {arguments} printed {text:?}"))
    }

    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.enter(|| fs::write(&path, value)).with_context(|| format!("cannot set {key} to {value}"))
    }

    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let text = self.enter(|| fs::read_to_string(&path)).with_context(|| format!("cannot read {key}"))?;
        Ok(text.trim().to_owned())
    }

    /// Names the resolvers that programs started by [`Self::run`] and [`Self::command_with_resolver`] ask.
    pub fn set_resolver(&self, servers: &[IpAddr]) -> Result<()> {
        let directory = self.etc();
        fs::create_dir_all(&directory)?;
        let text: String = servers
            .iter()
            .flat_map(|server| ["nameserver ".to_owned(), server.to_string(), "\n".to_owned()])
            .collect();
        fs::write(directory.join("resolv.conf"), text)?;
        Ok(())
    }

    /// Runs `work` on a thread of its own that has entered the namespace. What it opens stays there: a socket made in
    /// here may be used anywhere.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                let file = fs::File::open(self.path()).expect("the namespace is there while we hold it");
                move_into_link_name_space(rustix::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
                    .expect("root may enter a network namespace");
                work()
            });
            match entered.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    pub fn tcp_connect(&self, address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        self.enter(|| TcpStream::connect_timeout(&address, limit))
    }

    pub fn tcp_listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        self.enter(|| TcpListener::bind(address))
    }

    pub fn udp_bind(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        self.enter(|| UdpSocket::bind(address))
    }

    /// Waits until something accepts on `address`.
    pub fn wait_for_tcp(&self, address: SocketAddr, limit: Duration) -> Result<()> {
        let attempt = Duration::from_millis(200);
        wait::until_true(format!("a listener on {address}"), limit, || self.accepts(address, attempt))
    }

    pub fn accepts(&self, address: SocketAddr, limit: Duration) -> bool {
        self.tcp_connect(address, limit).is_ok()
    }

    /// Process ids of everything that runs here.
    pub fn pids(&self) -> Vec<i32> {
        pids(&self.name)
    }

    fn etc(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
        let _ = fs::remove_dir_all(self.etc());
    }
}

/// Ends what runs in the namespace, then removes its name.
fn remove(name: &str) {
    for pid in pids(name).into_iter().filter_map(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    let _ = run(Command::new("ip").args(["netns", "del", name]));
}

fn pids(name: &str) -> Vec<i32> {
    let Ok(text) = run(Command::new("ip").args(["netns", "pids", name])) else {
        return Vec::new();
    };
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

/// Namespaces of test processes that were killed before they could clean up.
fn remove_leftovers() {
    for directory in ["/run/netns", "/etc/netns"] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            let Some(owner) = owner.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
            if fs::exists(format!("/proc/{owner}")).unwrap_or(true) {
                continue;
            }
            match directory {
                "/run/netns" => remove(&name),
                _ => drop(fs::remove_dir_all(entry.path())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root_or_skip;

    #[test]
    fn a_namespace_goes_even_when_the_test_panics_and_takes_its_processes_along() {
        if !root_or_skip() {
            return;
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        let panicked = std::thread::spawn(move || {
            let namespace = Namespace::new("panic").unwrap();
            let mut child = namespace.command("sleep").arg("1000").spawn().unwrap();
            let pid = Pid::from_child(&child);
            wait::until_true("sleep to run", Duration::from_mins(1), || !namespace.pids().is_empty())
                .unwrap();
            sender.send((namespace.path(), pid)).unwrap();
            std::thread::spawn(move || child.wait());
            panic!("on purpose");
        })
        .join();
        assert!(panicked.is_err());
        let (path, pid) = receiver.recv().unwrap();
        assert!(!path.exists());
        let gone = || rustix::process::test_kill_process(pid).is_err();
        wait::until_true("the process to go", Duration::from_mins(1), gone).unwrap();
    }

    #[test]
    fn sockets_opened_inside_stay_inside() {
        if !root_or_skip() {
            return;
        }
        let namespace = Namespace::new("sock").unwrap();
        let listener = namespace.tcp_listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        assert!(namespace.accepts(address, Duration::from_secs(1)));
        let elsewhere = Namespace::new("other").unwrap();
        let refused = elsewhere.tcp_connect(address, Duration::from_secs(1)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(namespace.read_sysctl("net.ipv4.tcp_congestion_control").unwrap(), "reno");
    }

    #[test]
    fn each_namespace_has_its_resolver() {
        if !root_or_skip() {
            return;
        }
        let namespace = Namespace::new("resolv").unwrap();
        namespace.set_resolver(&["192.0.2.53".parse().unwrap()]).unwrap();
        assert_eq!(namespace.run("cat /etc/resolv.conf").unwrap(), "nameserver 192.0.2.53\n");
    }
}
