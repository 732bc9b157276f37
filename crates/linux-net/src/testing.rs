//! For this crate's tests: namespaces of their own, and `ip` as the independent witness.

use std::process::Command;

use crate::netns::NetNs;

/// Skips a test on a machine where this process is not root; in CI that is a failure.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "CI must run these tests as root");
    if !root {
        eprintln!("SKIPPED: this test needs root");
    }
    root
}

/// Runs `ip` with the given words in the namespace and returns what it printed.
pub fn ip(namespace: &NetNs, words: &str) -> String {
    let output = namespace.run(|| Command::new("ip").args(words.split_whitespace()).output()).unwrap();
    let output = output.expect("iproute2 is installed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether `ip` with the given words succeeds.
pub fn ip_fails(namespace: &NetNs, words: &str) -> bool {
    let output = namespace.run(|| Command::new("ip").args(words.split_whitespace()).output()).unwrap();
    !output.unwrap().status.success()
}

/// `ip -j ...`, parsed.
pub fn ip_json(namespace: &NetNs, words: &str) -> serde_json::Value {
    let text = ip(namespace, &format!("-j {words}"));
    if text.trim().is_empty() { serde_json::json!([]) } else { serde_json::from_str(&text).unwrap() }
}

/// Everything about routing that a test may want to compare before and after, without what the kernel changes by
/// itself: carrier states, tentative addresses, the order of equal entries.
pub fn snapshot(namespace: &NetNs) -> Vec<String> {
    let mut all = Vec::new();
    for words in
        ["-o link", "-o addr", "rule", "-6 rule", "-4 route show table all", "-6 route show table all"]
    {
        let text = ip(namespace, words);
        // The kernel adds a multicast route and a link-local address when a link first has a carrier.
        let by_kernel = |line: &&str| line.starts_with("multicast ff00::/8") || line.contains("fe80::");
        let kept = text.lines().filter(|line| !by_kernel(line));
        let mut lines: Vec<String> = kept.map(stable).collect();
        lines.sort();
        all.extend(lines);
    }
    all
}

fn stable(line: &str) -> String {
    let mut words = line.split_whitespace().peekable();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "state" => drop(words.next()),
            "linkdown" | "tentative" => {}
            _ if word.starts_with('<') => kept.push(if word.contains(",UP") { "<UP>" } else { "<DOWN>" }),
            _ => kept.push(word),
        }
    }
    kept.join(" ")
}

/// A pod as a main plugin leaves it: eth0 with IPv4 and, if asked, IPv6, a default route by a node at the other end.
pub struct Pod {
    pub pod: NetNs,
    pub node: NetNs,
}

impl Pod {
    pub fn new(ipv6: bool) -> Self {
        let (pod, node) = (NetNs::create().unwrap(), NetNs::create().unwrap());
        let pair = Self { pod, node };
        pair.join("eth0", "10.77.0", if ipv6 { Some("fd77:0") } else { None });
        pair
    }

    /// A veth from the pod to the node: `.2` in the pod, `.1` at the node.
    pub fn join(&self, ifname: &str, v4: &str, v6: Option<&str>) {
        let node_end = format!("n-{ifname}");
        ip(&self.node, &format!("link add {node_end} type veth peer name {ifname}"));
        let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&self.pod));
        ip(&self.node, &format!("link set {ifname} netns /proc/{}/fd/{fd}", std::process::id()));
        for (namespace, name, host) in [(&self.pod, ifname, 2), (&self.node, node_end.as_str(), 1)] {
            ip(namespace, "link set lo up");
            ip(namespace, &format!("addr add {v4}.{host}/24 dev {name}"));
            if let Some(v6) = v6 {
                ip(namespace, &format!("addr add {v6}::{host}/64 dev {name} nodad"));
            }
            ip(namespace, &format!("link set {name} up"));
        }
        if ifname == "eth0" {
            ip(&self.pod, &format!("route add default via {v4}.1"));
            if let Some(v6) = v6 {
                ip(&self.pod, &format!("-6 route add default via {v6}::1"));
            }
        }
    }
}
