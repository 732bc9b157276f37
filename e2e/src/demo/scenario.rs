//! Who may do what in the demo, and what must come of it.

use anyhow::{Result, ensure};

use crate::world::{Path, SOCKS_AUTH_PORT, World};

/// The demo's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodRole {
    /// Chained after ptp; may reach one site and one network.
    Web,
    /// Chained after ptp; all it may do goes through the SOCKS5 proxy.
    Batch,
    /// Standalone; its policy only audits.
    Lab,
}

impl PodRole {
    pub const ALL: [Self; 3] = [Self::Web, Self::Batch, Self::Lab];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Batch => "batch",
            Self::Lab => "lab",
        }
    }

    pub const fn namespace(self) -> &'static str {
        match self {
            Self::Web | Self::Batch => "shop",
            Self::Lab => "lab",
        }
    }

    pub const fn path(self) -> Path {
        match self {
            Self::Web | Self::Batch => Path::AfterPtp,
            Self::Lab => Path::Standalone,
        }
    }
}

pub const POLICIES: [&str; 4] = [
    "apiVersion: tunproxy.io/v1alpha1
kind: EgressPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  rules:
  - name: site
    action: Allow
    to: [{domains: [allowed.test]}]
    ports: [{protocol: TCP, port: 443}]
  - name: page
    action: Allow
    to: [{domains: [far.test]}]
    ports: [{protocol: TCP, port: 80}]
  - name: network
    action: Allow
    to: [{networks: [198.51.100.0/24], except: [198.51.100.22/32]}]
    ports: [{protocol: TCP, port: 22, endPort: 23}, {protocol: TCP, port: 5201}]
  - name: ping
    action: Allow
    to: [{networks: [198.51.100.0/24, \"2001:db8:100::/64\"]}]
    ports: [{protocol: ICMP}]
",
    "apiVersion: tunproxy.io/v1alpha1
kind: EgressPolicy
metadata: {name: batch, namespace: shop}
spec:
  podSelector: {matchLabels: {app: batch}}
  rules:
  - name: through-the-proxy
    action: Allow
    to: [{domains: [\"*.test\"]}]
    ports: [{protocol: TCP, port: 80}]
    via: {upstream: corp-proxy}
---
apiVersion: tunproxy.io/v1alpha1
kind: Upstream
metadata: {name: corp-proxy, namespace: shop}
spec:
  type: SOCKS5
  address: 198.51.100.20:1081
  auth: {secretRef: {name: corp-proxy}}
---
apiVersion: v1
kind: Secret
metadata: {name: corp-proxy, namespace: shop}
stringData: {username: pod, password: \"p@ss:word\"}
",
    "apiVersion: tunproxy.io/v1alpha1
kind: EgressPolicy
metadata: {name: trial, namespace: lab}
spec:
  enforcement: Audit
  rules:
  - name: site
    action: Allow
    to: [{domains: [allowed.test]}]
",
    "apiVersion: tunproxy.io/v1alpha1
kind: ClusterEgressPolicy
metadata: {name: no-ssh}
spec:
  subject: {namespaces: {}}
  tier: Admin
  priority: 10
  rules:
  - name: ssh
    action: Deny
    to: [{domains: [ssh.test]}]
    ports: [{protocol: TCP, port: 22}]
",
];

/// A proof from outside, such as another program's log.
pub type Check = fn(&World) -> Result<()>;

/// One thing a pod asks for.
pub struct Row {
    pub pod: PodRole,
    pub asked: &'static str,
    /// The command line; `CA` is the certificate authority's file.
    pub command: &'static str,
    /// Part of the flow record's destination.
    pub destination: &'static str,
    pub expected: Expected,
    pub check: Option<Check>,
    /// The flow has no end of its own (UDP, ICMP): its record comes when the pod goes.
    pub ends_with_its_pod: bool,
}

pub struct Expected {
    pub verdict: &'static str,
    pub rule: &'static str,
    /// Part of what the program saw.
    pub saw: &'static str,
}

impl Expected {
    /// What differs, if anything does.
    pub fn mismatch(&self, verdict: &str, rule: &str, saw: &str) -> Option<String> {
        let equal = verdict == self.verdict && rule == self.rule && saw.contains(self.saw);
        (!equal).then(|| {
            format!(
                "expected {} by {:?} and {:?}; got {verdict} by {rule:?} and {saw:?}",
                self.verdict, self.rule, self.saw
            )
        })
    }
}

const fn row(
    pod: PodRole,
    asked: &'static str,
    command: &'static str,
    destination: &'static str,
    expected: (&'static str, &'static str, &'static str),
) -> Row {
    let (verdict, rule, saw) = expected;
    let expected = Expected { verdict, rule, saw };
    Row { pod, asked, command, destination, expected, check: None, ends_with_its_pod: false }
}

impl Row {
    const fn proven_by(mut self, check: Check) -> Self {
        self.check = Some(check);
        self
    }

    const fn ending_with_its_pod(mut self) -> Self {
        self.ends_with_its_pod = true;
        self
    }
}

/// In the order in which they are asked. Both names of the web server are looked up first: from then on its address
/// alone says nothing.
pub fn rows() -> Vec<Row> {
    use PodRole::{Batch, Lab, Web};
    macro_rules! curl {
        ($arguments:literal) => {
            concat!(
                "curl -sS --max-time 10 --cacert CA -o /dev/null -w %{http_code}/HTTP/%{http_version} ",
                $arguments
            )
        };
    }
    vec![
        row(
            Web,
            "dig refused.test",
            "dig +short +time=3 refused.test A",
            "198.51.100.53:53",
            ("allowed", "node dns", "198.51.100.10"),
        )
        .ending_with_its_pod(),
        row(
            Web,
            "https://allowed.test",
            curl!("-4 https://allowed.test/"),
            "198.51.100.10:443",
            ("allowed", "EgressPolicy/shop/web site", "200/HTTP/2"),
        ),
        row(
            Web,
            "https://allowed.test over IPv6",
            curl!("-6 https://allowed.test/"),
            "[2001:db8:100::a]:443",
            ("allowed", "EgressPolicy/shop/web site", "200/HTTP/2"),
        ),
        row(
            Web,
            "https://refused.test, same address",
            curl!("-4 https://refused.test/"),
            "198.51.100.10:443",
            ("denied", "EgressPolicy/shop/web default", "reset by peer"),
        ),
        row(
            Web,
            "http://allowed.test, wrong port",
            curl!("-4 http://allowed.test/"),
            "198.51.100.10:80",
            ("denied", "EgressPolicy/shop/web default", "(7) Failed to connect"),
        ),
        row(
            Web,
            "http://far.test",
            curl!("-4 http://far.test/"),
            "203.0.113.150:80",
            ("allowed", "EgressPolicy/shop/web page", "200/HTTP/1.1"),
        ),
        row(
            Web,
            "http://far-refused.test, same address",
            curl!("-4 http://far-refused.test/"),
            "203.0.113.150:80",
            ("denied", "EgressPolicy/shop/web default", "reset by peer"),
        ),
        row(
            Web,
            "http://far.test, again",
            curl!("-4 http://far.test/"),
            "203.0.113.150:80",
            ("allowed", "EgressPolicy/shop/web page", "200/HTTP/1.1"),
        ),
        row(
            Web,
            "iperf port in its network",
            "nc -vz -w 5 198.51.100.100 5201",
            "198.51.100.100:5201",
            ("allowed", "EgressPolicy/shop/web network", "succeeded"),
        ),
        row(
            Web,
            "ssh on the excepted address",
            "nc -vz -w 5 198.51.100.22 22",
            "198.51.100.22:22",
            ("denied", "EgressPolicy/shop/web default", "Connection refused"),
        ),
        row(
            Web,
            "ping 198.51.100.11",
            "ping -q -c 1 -W 5 198.51.100.11",
            "198.51.100.11",
            ("allowed", "EgressPolicy/shop/web ping", "1 received, 0% packet loss"),
        )
        .ending_with_its_pod(),
        row(
            Web,
            "ping 2001:db8:100::b",
            "ping -q -c 1 -W 5 2001:db8:100::b",
            "2001:db8:100::b",
            ("allowed", "EgressPolicy/shop/web ping", "1 received, 0% packet loss"),
        )
        .ending_with_its_pod(),
        row(
            Web,
            "DNS of a stranger",
            "dig +time=2 +tries=1 @198.51.100.20 allowed.test",
            "198.51.100.20:53",
            ("denied", "EgressPolicy/shop/web default", "host unreachable"),
        ),
        row(
            Batch,
            "http://other.test by proxy",
            curl!("-4 http://other.test/"),
            "198.51.100.11:80",
            ("allowed", "EgressPolicy/shop/batch through-the-proxy", "200/HTTP/1.1"),
        )
        .proven_by(proxy_carried),
        row(
            Batch,
            "https://other.test",
            curl!("-4 https://other.test/"),
            "198.51.100.11:443",
            ("denied", "EgressPolicy/shop/batch default", "(7) Failed to connect"),
        ),
        row(
            Lab,
            "http://refused.test, audited",
            curl!("-4 http://refused.test/"),
            "198.51.100.10:80",
            ("audited", "EgressPolicy/lab/trial default", "200/HTTP/1.1"),
        ),
        row(
            Lab,
            "ssh.test, cluster-wide rule",
            "nc -4 -vz -w 5 ssh.test 22",
            "198.51.100.22:22",
            ("denied", "ClusterEgressPolicy/no-ssh ssh", "Connection refused"),
        ),
    ]
}

/// The proxy's own log: it was asked for the name, with the password.
fn proxy_carried(world: &World) -> Result<()> {
    let log = world.microsocks.log();
    ensure!(
        log.contains("connected to other.test:80"),
        "the proxy on port {SOCKS_AUTH_PORT} logged only {log:?}"
    );
    Ok(())
}
