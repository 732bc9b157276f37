//! The agent dies and comes back with pods attached: nothing leaks, and new flows work without the plugin.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use tunproxy_e2e::{Path, Report, World, WorldOptions, rows};
use tunproxy_testkit::{Host, Namespace, root_or_skip};

const SHORT: Duration = Duration::from_millis(700);

/// TCP, UDP, DNS, ping, v4 and v6: none may get an answer.
fn nothing_leaves(world: &World, pod: &Namespace) -> Result<()> {
    for ip in Host::Web.both() {
        let connected = pod.accepts(SocketAddr::new(ip, 80), SHORT);
        ensure!(!connected, "connected to {ip} while the agent is down");
        let any: IpAddr = if ip.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
        let server = world.topology.outside.udp_bind(SocketAddr::new(ip, 0))?;
        let client = pod.udp_bind(SocketAddr::new(any, 0))?;
        // An immediate error is as good as silence.
        let _ = client.send_to(b"leak", server.local_addr()?);
        server.set_read_timeout(Some(SHORT))?;
        ensure!(server.recv_from(&mut [0; 16]).is_err(), "a datagram reached {ip}");
        ensure!(pod.run(&format!("ping -c 1 -W 1 {ip}")).is_err(), "{ip} answered a ping");
    }
    ensure!(pod.run("dig +time=1 +tries=1 allowed.test").is_err(), "a DNS answer came");
    rows::no_leak(world, Path::AfterPtp)
}

fn works(world: &World, pod: &Namespace) -> Result<()> {
    for family in ["-4", "-6"] {
        let text = pod.run(&world.curl(&format!("{family} https://allowed.test/")))?;
        ensure!(text.starts_with("allowed.test"), "{text}");
    }
    Ok(())
}

/// A flow of `pod` that is open at both ends.
struct Live {
    client: TcpStream,
    _server: TcpStream,
    _listener: TcpListener,
}

impl Live {
    fn open(world: &World, pod: &Namespace, ip: IpAddr) -> Result<Self> {
        let listener = world.topology.outside.tcp_listen(SocketAddr::new(ip, 0))?;
        let client = pod.tcp_connect(listener.local_addr()?, Duration::from_mins(1))?;
        let (server, _) = listener.accept()?;
        Ok(Self { client, _server: server, _listener: listener })
    }

    /// It ends, and in an error: an end of file would pass for the end of the data.
    fn fails(&mut self) -> Result<()> {
        self.client.set_read_timeout(Some(Duration::from_mins(1)))?;
        let outcome = self.client.write_all(b"?").and_then(|()| self.client.read(&mut [0]));
        let failed = outcome.as_ref().is_err_and(|error| {
            // The read's own limit is `WouldBlock`: the flow hangs.
            matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::TimedOut)
        });
        ensure!(failed, "{outcome:?}");
        Ok(())
    }
}

fn restart(path: Path, orderly: bool) {
    if !root_or_skip() {
        return;
    }
    let mut world = World::new(&WorldOptions::for_path(path)).unwrap();
    let pod = world.pod(path, "client").unwrap();
    let mut report = Report::default();
    report.row("works at first", || works(&world, &pod));
    let flows = Host::Web.both().map(|ip| (ip, Live::open(&world, &pod, ip).unwrap()));
    let agent = world.agent.as_mut().unwrap();
    if orderly {
        let status = agent.terminate().unwrap();
        assert!(status.success(), "SIGTERM ended it with {status}");
    } else {
        agent.kill().unwrap();
    }
    report.row("nothing leaves while it is down", || nothing_leaves(&world, &pod));
    world.agent.as_mut().unwrap().start_again().unwrap();
    report.row("works again without the plugin", || works(&world, &pod));
    for (ip, mut flow) in flows {
        report.row(format!("the old flow to {ip} fails"), || flow.fails());
    }
    report.row("no leak", || rows::no_leak(&world, path));
    report.finish();
}

#[test]
fn killed_chained() {
    restart(Path::AfterPtp, false);
}

#[test]
fn killed_standalone() {
    restart(Path::Standalone, false);
}

#[test]
fn stopped_in_order() {
    restart(Path::AfterPtp, true);
}
