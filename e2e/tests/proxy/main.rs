//! What a proxy says of a destination, and what the pod's program sees of it.

mod scripted;

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use serde_json::Value;
use tunproxy_e2e::world::SOCKS_AUTH_PORT;
use tunproxy_e2e::{Path, Pod, Report, World, WorldOptions, rows};
use tunproxy_testkit::{Host, root_or_skip, wait};

use scripted::{
    Asked, CLOSES, FIRST_PORT, HALF_A_REPLY, LATE_REFUSAL, LATE_SUCCESS, MUTE, MUTE_PORT, NO_PASSWORD,
    PROXY_PORT, Proxy, SILENT, SILENT_BRIEFLY, STRANGE_ADDRESS, TALKS_HTTP, WRONG_PASSWORD,
};

const LIMIT: Duration = Duration::from_mins(1);

/// RFC 1928 section 6, and what connect(2) must say.
const REPLIES: [(u8, ErrorKind); 9] = [
    (0x01, ErrorKind::ConnectionRefused),
    (0x02, ErrorKind::ConnectionRefused),
    (0x03, ErrorKind::NetworkUnreachable),
    (0x04, ErrorKind::HostUnreachable),
    (0x05, ErrorKind::ConnectionRefused),
    // TTL expired: somewhere behind the proxy, so not the network's fault.
    (0x06, ErrorKind::HostUnreachable),
    (0x07, ErrorKind::ConnectionRefused),
    (0x08, ErrorKind::ConnectionRefused),
    (0x77, ErrorKind::ConnectionRefused),
];

/// Proxies that break the protocol say nothing of the destination: the connection is refused, at once.
const BROKEN: [(&str, u16); 4] = [
    ("closes instead of a reply", CLOSES),
    ("talks HTTP", TALKS_HTTP),
    ("closes within a reply", HALF_A_REPLY),
    ("gives an address of no known type", STRANGE_ADDRESS),
];

fn seen(pod: &Pod, to: SocketAddr) -> Result<ErrorKind> {
    let error = pod.tcp_connect(to, LIMIT).err().context("connected")?;
    Ok(error.kind())
}

/// Every answer for connections to `ip`; the proxy must be asked for what `asked` makes of the port, and nothing else.
fn answers(report: &mut Report, proxy: &Proxy, pod: &Pod, ip: IpAddr, asked: &dyn Fn(u16) -> Asked) {
    let at = |port: u16| SocketAddr::new(ip, port);
    let what = |port: u16| format!("{:?}", asked(port));
    // Each port is used for both families, addresses and names.
    let asked_for = |port: u16, before: usize| -> Result<()> {
        let now = proxy.asked(port).split_off(before);
        ensure!(now == [asked(port)], "the proxy was asked for {now:?}");
        Ok(())
    };
    report.row(format!("success for {}", what(FIRST_PORT)), || {
        let before = proxy.asked(FIRST_PORT).len();
        let mut stream = pod.tcp_connect(at(FIRST_PORT), LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        ensure!(text == "carried", "{text:?}");
        asked_for(FIRST_PORT, before)
    });
    for (code, wanted) in REPLIES {
        let port = FIRST_PORT + u16::from(code);
        report.row(format!("reply {code:#04x} for {}", what(port)), || {
            let before = proxy.asked(port).len();
            let kind = seen(pod, at(port))?;
            ensure!(kind == wanted, "{kind} instead of {wanted}");
            asked_for(port, before)
        });
    }
    for (name, port) in BROKEN {
        report.row(format!("a proxy that {name} for {}", what(port)), || {
            let before = proxy.asked(port).len();
            let kind = seen(pod, at(port))?;
            ensure!(kind == ErrorKind::ConnectionRefused, "{kind}");
            asked_for(port, before)
        });
    }
}

#[test]
fn each_answer_of_a_socks5_proxy_is_the_right_error() {
    if !root_or_skip() {
        return;
    }
    let upstream = format!("socks5://{}:{PROXY_PORT}", Host::Socks.v4());
    let world = World::new(&WorldOptions::for_path(Path::AfterPtp).with_upstream(upstream)).unwrap();
    let proxy = Proxy::start(&world.topology).unwrap();
    let pod = world.pod(Path::AfterPtp, "client").unwrap();
    let mut report = Report::default();
    for ip in Host::Web.both() {
        answers(&mut report, &proxy, &pod, ip, &|port| Asked::Address(SocketAddr::new(ip, port)));
    }
    // What the pod resolved: by its own resolver, whose answer is seen on its way.
    for (ip, kind) in Host::OtherWeb.both().into_iter().zip(["A", "AAAA"]) {
        report.row(format!("other.test {kind} is {ip}"), || {
            let text = pod.run(&format!("dig +short +time=15 +tries=4 other.test {kind}"))?;
            ensure!(text.trim() == ip.to_string(), "{text}");
            Ok(())
        });
        answers(&mut report, &proxy, &pod, ip, &|port| Asked::Name("other.test".to_owned(), port));
    }
    report.row("no leak", || rows::no_leak(&world, Path::AfterPtp));
    report.finish();
}

/// Upstreams by the destination's port; what is not led elsewhere goes to the scripted proxy.
fn documents() -> String {
    let host = Host::Socks.v4();
    let upstream = |name: &str, port: u16, more: &str| {
        format!(
            "apiVersion: tunproxy.io/v1alpha1\nkind: Upstream\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{type: SOCKS5, address: \"{host}:{port}\", {more}}}\n---\n"
        )
    };
    let rule = |port: u16, upstream: &str| {
        format!(
            "  - {{name: p{port}, action: Allow, ports: [{{protocol: TCP, port: {port}}}], via: {{upstream: {upstream}}}}}\n"
        )
    };
    [
        "apiVersion: v1\nkind: Secret\nmetadata: {name: wrong, namespace: default}\n\
         stringData: {username: pod, password: mistaken}\n---\n"
            .to_owned(),
        // Longer than the pod's own patience, and shorter.
        upstream("patient", PROXY_PORT, "connectTimeout: 20s"),
        upstream("brief", PROXY_PORT, "connectTimeout: 2s"),
        upstream("mute", MUTE_PORT, "connectTimeout: 20s"),
        upstream("wrong", SOCKS_AUTH_PORT, "auth: {secretRef: {name: wrong}}"),
        upstream("without", SOCKS_AUTH_PORT, "connectTimeout: 20s"),
        "apiVersion: tunproxy.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: p, namespace: default}\nspec:\n  rules:\n".to_owned(),
        rule(SILENT, "patient"),
        rule(LATE_SUCCESS, "patient"),
        rule(LATE_REFUSAL, "patient"),
        rule(FIRST_PORT, "patient"),
        rule(SILENT_BRIEFLY, "brief"),
        rule(MUTE, "mute"),
        rule(WRONG_PASSWORD, "wrong"),
        rule(NO_PASSWORD, "without"),
    ]
    .concat()
}

struct Lab {
    pod: Pod,
    world: World,
    proxy: Proxy,
    /// The kernel accepts for it, and nobody ever reads or writes.
    _mute: TcpListener,
    descriptors: usize,
}

impl Lab {
    fn new() -> Result<Self> {
        let world = World::new(&WorldOptions::for_path(Path::AfterPtp).with_policy(&documents()))?;
        let proxy = Proxy::start(&world.topology)?;
        let mute = SocketAddr::new(Host::Socks.v4().into(), MUTE_PORT);
        let mute = world.topology.outside.tcp_listen(mute)?;
        let pod = world.pod(Path::AfterPtp, "client")?;
        // SYNs after 0, 1, 3 and 7 s; the kernel gives up after 15.
        pod.sysctl("net.ipv4.tcp_syn_retries", "3")?;
        if pod.read_sysctl("net.ipv4.tcp_syn_linear_timeouts").is_ok() {
            pod.sysctl("net.ipv4.tcp_syn_linear_timeouts", "0")?;
        }
        let descriptors = world.agent().open_descriptors()?;
        Ok(Self { pod, world, proxy, _mute: mute, descriptors })
    }

    /// The records of flows to `to`.
    fn flows(&self, to: SocketAddr) -> Vec<Value> {
        let to = to.to_string();
        self.world.agent().flows().into_iter().filter(|flow| flow["destination"] == *to).collect()
    }

    /// Waits for the end of `count` flows to `to`; each must have ended as `close` says. Returns the first one.
    fn ended(&self, to: SocketAddr, count: usize, close: &str) -> Result<Value> {
        let flows = wait::until(format!("{count} records of {to}"), LIMIT, || {
            let flows = self.flows(to);
            (flows.len() >= count).then_some(flows)
        })?;
        ensure!(flows.iter().all(|flow| flow["close"] == close), "not all {close}: {flows:?}");
        flows.into_iter().next().context("no flow")
    }

    /// Each of the flows of `clients` to `to` ended when the upstream's patience did.
    fn timed_out(&self, to: SocketAddr, clients: usize) -> Result<()> {
        let flow = self.ended(to, clients, "timed-out")?;
        // A SYN that finds its flow waiting joins it; one that comes later begins another.
        let brief = to.port() == SILENT_BRIEFLY;
        let flows = self.flows(to).len();
        ensure!(brief || flows == clients, "{flows} flows of {clients} clients");
        let reason = format!("did not answer within {} ms", if brief { 2_000 } else { 20_000 });
        ensure!(flow["reason"].as_str().is_some_and(|text| text.contains(&reason)), "{flow}");
        Ok(())
    }

    fn all_given_back(&self) -> Result<()> {
        let agent = self.world.agent();
        wait::until_true("no flow and no descriptor more than before", LIMIT, || {
            agent.live_flows().is_ok_and(|flows| flows == 0)
                && agent.open_descriptors().is_ok_and(|now| now <= self.descriptors)
        })
    }
}

/// A proxy that says nothing of the destination makes it silent: the program waits in SYN-SENT as long as its own kernel
/// does, whether the agent has given up meanwhile or not, and is told what a silent destination would have told it.
#[test]
fn a_silent_proxy_is_a_silent_destination() {
    const CLIENTS: usize = 5;
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let targets: Vec<SocketAddr> = [SILENT, SILENT_BRIEFLY, MUTE]
        .into_iter()
        .flat_map(|port| Host::Web.both().map(|ip| SocketAddr::new(ip, port)))
        .collect();
    let mut report = Report::default();
    thread::scope(|scope| {
        let connect = |to: SocketAddr| {
            (
                to,
                scope.spawn({
                    let pod = &lab.pod;
                    move || pod.enter(move || TcpStream::connect(to))
                }),
            )
        };
        let clients: Vec<_> =
            targets.iter().flat_map(|to| std::iter::repeat_n(*to, CLIENTS)).map(connect).collect();
        report.row("all of them wait in SYN-SENT", || {
            wait::until_true("them to wait", LIMIT, || {
                waiting(&lab.pod).is_ok_and(|now| now == clients.len())
            })?;
            let held = lab.world.agent().open_descriptors()? - lab.descriptors;
            ensure!(held >= 4 * CLIENTS, "the agent holds {held} descriptors for them");
            Ok(())
        });
        for (to, client) in clients {
            report.row(format!("the kernel of a client of {to} gives up"), || {
                let error = client.join().expect("the client's thread").err().context("connected")?;
                ensure!(error.raw_os_error() == Some(Errno::TIMEDOUT.raw_os_error()), "{error}");
                Ok(())
            });
        }
    });
    for to in targets {
        report.row(format!("each flow to {to} timed out"), || lab.timed_out(to, CLIENTS));
    }
    report.row("the proxy sees the end of each connection", || {
        wait::until_true("their ends", LIMIT, || {
            [SILENT, SILENT_BRIEFLY].iter().all(|&port| lab.proxy.ended(port) == lab.proxy.asked(port).len())
        })
    });
    report.row("all is given back", || lab.all_given_back());
    report.finish();
}

/// How many sockets of the pod wait for a SYN|ACK.
fn waiting(pod: &Pod) -> Result<usize> {
    Ok(pod.run("ss -Htn state syn-sent")?.lines().count())
}

/// A client that gave up leaves nothing behind that could tell the agent, until an answer comes that nobody waits for.
#[test]
fn an_answer_that_comes_too_late_harms_nobody() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let targets =
        [LATE_SUCCESS, LATE_REFUSAL].map(|port| Host::Web.both().map(|ip| SocketAddr::new(ip, port)));
    let mut report = Report::default();
    for to in targets.as_flattened() {
        report.row(format!("a client of {to} gives up"), || {
            let short = Duration::from_millis(300);
            ensure!(lab.pod.tcp_connect(*to, short).is_err_and(|error| error.kind() == ErrorKind::TimedOut));
            wait::until_true("the proxy to be asked", LIMIT, || {
                lab.proxy.asked(to.port()).contains(&Asked::Address(*to))
            })?;
            ensure!(lab.flows(*to).is_empty(), "its flow ended: {:?}", lab.flows(*to));
            Ok(())
        });
    }
    report.row("nobody waits in the pod, the agent does", || {
        ensure!(waiting(&lab.pod)? == 0);
        let flows = lab.world.agent().live_flows()?;
        ensure!(flows == 4, "{flows} flows");
        Ok(())
    });
    lab.proxy.release();
    for (targets, close) in targets.iter().zip(["reset-by-pod", "refused"]) {
        for to in targets {
            report.row(format!("the flow to {to} is {close}"), || lab.ended(*to, 1, close).map(drop));
        }
    }
    report.row("the proxy sees the end of each connection", || {
        let ports = [LATE_SUCCESS, LATE_REFUSAL];
        wait::until_true("their ends", LIMIT, || ports.iter().all(|&port| lab.proxy.ended(port) == 2))
    });
    report.row("all is given back", || lab.all_given_back());
    for ip in Host::Web.both() {
        report.row(format!("the next one to {ip} is carried"), || {
            let mut stream = lab.pod.tcp_connect(SocketAddr::new(ip, FIRST_PORT), LIMIT)?;
            stream.set_read_timeout(Some(LIMIT))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            ensure!(text == "carried", "{text:?}");
            Ok(())
        });
    }
    report.finish();
}

/// By microsocks itself: a proxy that does not let the agent in refuses the connection, and the record says why.
#[test]
fn a_proxy_that_refuses_the_password_refuses_the_connection() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new().unwrap();
    let mut report = Report::default();
    for (port, reason) in [
        (WRONG_PASSWORD, "it refused the username and password"),
        (NO_PASSWORD, "it accepts none of the authentication methods that are configured (none)"),
    ] {
        for ip in Host::Web.both() {
            let to = SocketAddr::new(ip, port);
            report.row(format!("{to}: {reason}"), || {
                let kind = seen(&lab.pod, to)?;
                ensure!(kind == ErrorKind::ConnectionRefused, "{kind}");
                let flow = lab.ended(to, 1, "upstream-failed")?;
                ensure!(flow["reason"].as_str().is_some_and(|text| text.contains(reason)), "{flow}");
                ensure!(!flow.to_string().contains("mistaken"), "the password is in the record: {flow}");
                Ok(())
            });
        }
    }
    report.row("all is given back", || lab.all_given_back());
    report.finish();
}

#[test]
fn a_proxy_that_is_not_there_makes_the_destination_unreachable() {
    if !root_or_skip() {
        return;
    }
    let upstream = format!("socks5://{}:{PROXY_PORT}", Host::Socks.v4());
    let world = World::new(&WorldOptions::for_path(Path::AfterPtp).with_upstream(upstream)).unwrap();
    let pod = world.pod(Path::AfterPtp, "client").unwrap();
    for ip in Host::Web.both() {
        assert_eq!(seen(&pod, SocketAddr::new(ip, 80)).unwrap(), ErrorKind::HostUnreachable, "{ip}");
    }
}
