//! Paths of several hops: what the pod learns of their MTU and of their routers, and what its packets keep of their headers.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use serde_json::Value;
use tunproxy_e2e::{Path, Pod, Report, World, WorldOptions};
use tunproxy_testkit::process::{output_with_input, run};
use tunproxy_testkit::{Host, Namespace, root_or_skip, wait};

const LIMIT: Duration = Duration::from_mins(1);
/// Of the link behind the first router.
const NARROW: u32 = 1_300;

/// A pod, and a host behind a router with a narrow link.
struct Lab {
    pod: Pod,
    world: World,
    beyond: Arc<Namespace>,
}

impl Lab {
    fn new() -> Self {
        let world = World::new(&WorldOptions::for_path(Path::Standalone)).unwrap();
        let beyond = behind(&world.topology.outside).unwrap();
        let pod = world.pod(Path::Standalone, "client").unwrap();
        Self { pod, world, beyond: Arc::new(beyond) }
    }

    /// A socket of the pod, connected to one of the host's.
    fn pair(&self, ip: IpAddr) -> Result<(UdpSocket, UdpSocket)> {
        let server = self.beyond.udp_bind(SocketAddr::new(ip, 0))?;
        let any: SocketAddr = if ip.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
        let client = self.pod.udp_bind(any)?;
        client.connect(server.local_addr()?)?;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(LIMIT))?;
        }
        Ok((client, server))
    }
}

fn far() -> [IpAddr; 2] {
    ["192.0.2.2".parse().unwrap(), "2001:db8:300::2".parse().unwrap()]
}

fn behind(router: &Namespace) -> Result<Namespace> {
    let host = Namespace::new("beyond")?;
    router.ip(&format!(
        "link add out1 mtu {NARROW} type veth peer name b0 mtu {NARROW} netns {}",
        host.name()
    ))?;
    for (namespace, device, number) in [(router, "out1", 1), (&host, "b0", 2)] {
        namespace.ip(&format!("link set {device} up"))?;
        namespace.ip(&format!("addr add 192.0.2.{number}/24 dev {device}"))?;
        namespace.ip(&format!("addr add 2001:db8:300::{number}/64 dev {device} nodad"))?;
    }
    host.ip("route add default via 192.0.2.1")?;
    host.ip("route add default via 2001:db8:300::1")?;
    host.sysctl("net.ipv4.icmp_ratelimit", "0")?;
    host.sysctl("net.ipv6.icmp.ratelimit", "0")?;
    Ok(host)
}

#[test]
fn the_path_mtu_comes_back_to_the_pod() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let mut report = Report::default();
    for ip in far() {
        report.row(format!("a socket that allows no fragments {ip}"), || {
            let (client, server) = lab.pair(ip)?;
            learn_mtu(&client, &server, ip, NARROW)
        });
        report.row(format!("a socket like any other {ip}"), || may_be_cut(&lab, ip));
        report.row(format!("ping {ip}"), || ping_too_large(&lab, ip));
    }
    report.row("what was too large is counted", || {
        let dropped = lab.world.agent().counts("client")?.dropped("too-big");
        ensure!(dropped >= 4, "{dropped}");
        Ok(())
    });
    // Narrower than the way beyond: the node's own kernel refuses now.
    lab.world.topology.node.ip("link set up0 mtu 1290").unwrap();
    lab.pod.ip("route flush cache").unwrap();
    let ips = Host::Web.both();
    for ip in ips {
        report.row(format!("the node's own link {ip}"), || {
            let server = lab.world.topology.outside.udp_bind(SocketAddr::new(ip, 0))?;
            let any: SocketAddr = if ip.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
            let client = lab.pod.udp_bind(any)?;
            client.connect(server.local_addr()?)?;
            for socket in [&client, &server] {
                socket.set_read_timeout(Some(LIMIT))?;
            }
            learn_mtu(&client, &server, ip, 1_290)
        });
    }
    report.finish();
}

/// The first datagram that is too large is lost, with an error; the kernel refuses the next one itself.
fn learn_mtu(client: &UdpSocket, server: &UdpSocket, ip: IpAddr, mtu: u32) -> Result<()> {
    let headers = if ip.is_ipv4() { 28 } else { 48 };
    let known = || if ip.is_ipv4() { sockopt::ip_mtu(client) } else { sockopt::ipv6_mtu(client) };
    if ip.is_ipv4() {
        sockopt::set_ip_mtu_discover(client, Ipv4PathMtuDiscovery::DO)?;
    } else {
        sockopt::set_ipv6_mtu_discover(client, Ipv6PathMtuDiscovery::DO)?;
    }
    ensure!(known()? == 1_500, "the MTU before is {}", known()?);
    client.send(&[1; 1_400])?;
    let error = client.recv(&mut [0]).err().context("an answer")?;
    ensure!(is_too_large(&error), "{error}");
    ensure!(known()? == mtu, "the MTU is {}", known()?);
    let error = client.send(&[1; 1_400]).err().context("the second one was sent")?;
    ensure!(is_too_large(&error), "{error}");
    let largest = vec![7; mtu as usize - headers];
    client.send(&largest)?;
    let mut buffer = [0; 2_000];
    let length = server.recv(&mut buffer)?;
    ensure!(buffer[..length] == largest, "{length} octets");
    Ok(())
}

fn is_too_large(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error())
}

/// The pod's kernel cuts what is too large as soon as it knows the path.
fn may_be_cut(lab: &Lab, ip: IpAddr) -> Result<()> {
    let (client, server) = lab.pair(ip)?;
    server.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut buffer = [0; 2_000];
    wait::until_true("a large datagram", LIMIT, || {
        // An error of the one before may be told here.
        let _ = client.send(&[5; 1_400]);
        server.recv(&mut buffer).is_ok_and(|length| buffer[..length] == [5; 1_400])
    })
}

fn ping_too_large(lab: &Lab, ip: IpAddr) -> Result<()> {
    lab.pod.ip("route flush cache")?;
    lab.pod.ip("-6 route flush cache")?;
    let command = lab
        .pod
        .command("ping")
        .args(["-M", "do", "-s", "1400", "-c", "1", "-W", "5", &ip.to_string()])
        .output()?;
    let text = [command.stdout, command.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    ensure!(text.contains("mtu=1300") || text.contains("mtu = 1300"), "{text}");
    let text = lab.pod.run(&format!("ping -M do -s 1200 -c 1 -W 5 {ip}"))?;
    ensure!(text.contains(" 1 received"), "{text}");
    Ok(())
}

#[test]
fn the_header_goes_along() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let mut report = Report::default();
    let rules = "table inet seen {\ncounter v4 { }\ncounter v6 { }\ncounter echo { }\n\
        counter syn4 { }\ncounter syn6 { }\ncounter data4 { }\ncounter data6 { }\n\
        chain arrivals { type filter hook prerouting priority 0;\n\
        meta l4proto udp ip dscp ef ip ecn ect0 ip ttl 41 counter name v4\n\
        meta l4proto udp ip6 dscp ef ip6 ecn ect0 ip6 hoplimit 41 counter name v6\n\
        icmp type echo-request ip dscp ef ip ttl 29 counter name echo\n\
        tcp flags & (syn | ack) == syn ip dscp af41 ip ecn not-ect counter name syn4\n\
        tcp flags & (syn | ack) == syn ip6 dscp af41 ip6 ecn not-ect counter name syn6\n\
        tcp flags & psh == psh ip dscp ef counter name data4\n\
        tcp flags & psh == psh ip6 dscp ef counter name data6\n}\n}\n";
    let loaded = output_with_input(lab.beyond.command("nft").args(["-f", "-"]), rules.as_bytes()).unwrap();
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    let seen = |name: &str| -> Result<u64> {
        let text = run(lab.beyond.command("nft").args(["-j", "list", "counter", "inet", "seen", name]))?;
        let document: Value = serde_json::from_str(&text)?;
        let counters = document["nftables"].as_array().into_iter().flatten();
        let mut counts = counters.filter_map(|entry| entry["counter"]["packets"].as_u64());
        counts.next().context("no counter")
    };
    for (ip, name) in far().into_iter().zip(["v4", "v6"]) {
        report.row(format!("DSCP, ECN and hop limit of datagrams to {ip}"), || {
            let (client, server) = lab.pair(ip)?;
            // Expedited forwarding, ECT(0); the router takes one hop.
            set_class(&client, ip, 0xba)?;
            if ip.is_ipv4() {
                sockopt::set_ip_ttl(&client, 42)?;
            } else {
                sockopt::set_ipv6_unicast_hops(&client, Some(42))?;
            }
            client.send(b"marked")?;
            server.recv(&mut [0; 9])?;
            ensure!(seen(name)? == 1, "{} packets", seen(name)?);
            // And back to plain ones on the same socket.
            set_class(&client, ip, 0)?;
            client.send(b"plain")?;
            server.recv(&mut [0; 9])?;
            ensure!(seen(name)? == 1, "{} packets", seen(name)?);
            Ok(())
        });
        report.row(format!("hop limit of replies from {ip}"), || {
            let text = lab.pod.run(&format!("ping -c 1 -W 5 {ip}"))?;
            ensure!(text.contains("ttl=63"), "{text}");
            Ok(())
        });
    }
    for (ip, [syn, data]) in far().into_iter().zip([["syn4", "data4"], ["syn6", "data6"]]) {
        report.row(format!("DSCP of a connection to {ip}, also when it changes"), || {
            let listener = lab.beyond.tcp_listen(SocketAddr::new(ip, 0))?;
            let mut client = connect_marked(&lab.pod, listener.local_addr()?, 0x88)?;
            let (mut server, _) = listener.accept()?;
            ensure!(seen(syn)? == 1, "{} SYNs", seen(syn)?);
            for (class, expected) in [(0x88, 0), (0xb8, 1), (0x88, 1)] {
                set_class(&client, ip, class)?;
                client.write_all(b"x")?;
                server.read_exact(&mut [0])?;
                ensure!(seen(data)? == expected, "{} octets after {class:#x}", seen(data)?);
            }
            Ok(())
        });
    }
    report.row("DSCP and hop limit of echo requests", || {
        lab.pod.run("ping -c 1 -W 5 -t 30 -Q 0xb8 192.0.2.2")?;
        ensure!(seen("echo")? == 1);
        Ok(())
    });
    report.finish();
}

fn set_class(socket: impl AsFd, ip: IpAddr, class: u8) -> Result<()> {
    match ip {
        IpAddr::V4(_) => sockopt::set_ip_tos(socket, class)?,
        IpAddr::V6(_) => sockopt::set_ipv6_tclass(socket, u32::from(class))?,
    }
    Ok(())
}

/// A connection whose SYN is marked already.
fn connect_marked(pod: &Namespace, to: SocketAddr, class: u8) -> Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    pod.enter(|| {
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        set_class(&socket, to.ip(), class)?;
        connect(&socket, &to)?;
        Ok(TcpStream::from(socket))
    })
}

/// Debian's traceroute and mtr: the routers of the node's own way, of which the agent is none.
#[test]
fn a_route_is_traced() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let mut report = Report::default();
    for (ip, router) in far().into_iter().zip(["198.51.100.", "2001:db8:100::"]) {
        // Which of its addresses on the link the router tells is its own affair.
        let goes =
            |hops: &[String]| hops.len() == 2 && hops[0].starts_with(router) && hops[1] == ip.to_string();
        for method in ["-U", "-I", ""] {
            report.row(format!("traceroute {method} {ip}"), || {
                let hops = trace(&lab.pod, method, ip)?;
                ensure!(goes(&hops), "{hops:?}");
                Ok(())
            });
        }
        // The agent ends TCP: there is no way to be seen.
        report.row(format!("traceroute -T {ip}"), || {
            let hops = trace(&lab.pod, "-T -p 80", ip)?;
            ensure!(hops == [ip.to_string()], "{hops:?}");
            Ok(())
        });
        for method in ["", "-u"] {
            report.row(format!("mtr {method} {ip}"), || {
                let text = lab.pod.run(&format!("mtr -n -c 1 -G 2 --json {method} {ip}"))?;
                let document: Value = serde_json::from_str(&text)?;
                let hops: Vec<_> = document["report"]["hubs"]
                    .as_array()
                    .context("no hops")?
                    .iter()
                    .filter_map(|hop| hop["host"].as_str().map(ToOwned::to_owned))
                    .collect();
                ensure!(goes(&hops), "{text}");
                Ok(())
            });
        }
    }
    report.finish();
}

/// The addresses that traceroute prints, one for each hop.
fn trace(pod: &Pod, method: &str, ip: IpAddr) -> Result<Vec<String>> {
    let mut command: Command = pod.command("traceroute");
    command.args(["-n", "-q", "1", "-w", "5", "-m", "5"]).args(method.split_whitespace()).arg(ip.to_string());
    let text = run(&mut command)?;
    Ok(text.lines().skip(1).filter_map(|line| Some(line.split_whitespace().nth(1)?.to_owned())).collect())
}
