//! Many connections: nothing is left of the short ones, little is held for the idle ones.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tunproxy_e2e::{Path, Report, World, WorldOptions, rows};
use tunproxy_testkit::{AgentProcess, Host, Namespace, root_or_skip, wait};

const LIMIT: Duration = Duration::from_mins(1);
/// Longer than any closed flow may linger.
const SETTLED: Duration = Duration::from_secs(90);

/// A server that answers each connection with one byte and closes, on two threads.
fn one_byte_server(outside: &Namespace) -> Result<SocketAddr> {
    let listener = outside.tcp_listen(SocketAddr::new(Host::Web.v4().into(), 0))?;
    let address = listener.local_addr()?;
    for _ in 0..2 {
        let listener = listener.try_clone()?;
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut byte = [0];
                if stream.read(&mut byte).is_ok() {
                    let _ = stream.write_all(&byte);
                }
            }
        });
    }
    Ok(address)
}

/// `count` connections, 16 at once: connect, one byte there and back, close.
fn short_connections(pod: &Namespace, to: SocketAddr, count: u64) -> Result<()> {
    let left = AtomicU64::new(count);
    let work = || -> Result<()> {
        pod.enter(|| {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                let mut stream = TcpStream::connect_timeout(&to, LIMIT).context("connect")?;
                stream.set_read_timeout(Some(LIMIT))?;
                stream.write_all(&[7])?;
                let mut back = Vec::new();
                stream.read_to_end(&mut back)?;
                ensure!(back == [7], "{back:?} came back");
            }
            Ok(())
        })
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..16).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a client's thread"))
    })
}

/// What the agent holds once no flow lives any more.
struct Held {
    flows: u64,
    descriptors: usize,
    memory: u64,
}

impl Held {
    fn at_rest(agent: &AgentProcess) -> Result<Self> {
        wait::until_true("every flow to end", SETTLED, || agent.live_flows().is_ok_and(|flows| flows == 0))
            .with_context(|| format!("{:?} flows live", agent.live_flows()))?;
        Ok(Self {
            flows: agent.live_flows()?,
            descriptors: agent.open_descriptors()?,
            memory: agent.rss_kib()?,
        })
    }
}

/// As many flows as before, and at most 5 % more of everything else.
fn nothing_stays(report: &mut Report, agent: &AgentProcess, before: &Held) {
    report.row("as many flows as before", || {
        let flows = Held::at_rest(agent)?.flows;
        ensure!(flows == before.flows, "{flows} instead of {}", before.flows);
        Ok(())
    });
    report.row("descriptors within 5 %", || {
        let most = before.descriptors + before.descriptors / 20;
        wait::until_true(format!("at most {most} descriptors"), LIMIT, || {
            agent.open_descriptors().is_ok_and(|now| now <= most)
        })
        .with_context(|| format!("now {:?}", agent.open_descriptors()))
    });
    report.row("memory within 5 %", || {
        let most = before.memory + before.memory / 20;
        wait::until_true(format!("at most {most} KiB"), SETTLED, || {
            agent.rss_kib().is_ok_and(|now| now <= most)
        })
        .with_context(|| format!("now {:?} KiB", agent.rss_kib()))
    });
}

fn churn(path: Path) {
    if !root_or_skip() {
        return;
    }
    let world = World::new(&WorldOptions::for_path(path)).unwrap();
    let pod = world.pod(path, "client").unwrap();
    // A client's port is not free again for a minute (TIME-WAIT) unless the kernel may reuse it.
    pod.sysctl("net.ipv4.tcp_tw_reuse", "1").unwrap();
    pod.sysctl("net.ipv4.ip_local_port_range", "1024 65000").unwrap();
    let server = one_byte_server(&world.topology.outside).unwrap();
    let mut report = Report::default();
    // The first round brings the allocator and every pool to their working size.
    report.row("warm up: 20,000 connections", || short_connections(&pod, server, 20_000));
    let before = world.agent.as_ref().map(|agent| Held::at_rest(agent).unwrap());
    report.row("20,000 short connections", || short_connections(&pod, server, 20_000));
    if let (Some(agent), Some(before)) = (&world.agent, before) {
        nothing_stays(&mut report, agent, &before);
    }
    report.row("no leak", || rows::no_leak(&world, path));
    report.finish();
}

#[test]
fn routed() {
    churn(Path::Routed);
}

#[test]
fn chained() {
    churn(Path::AfterPtp);
}

/// The server speaks first and closes at once: data and FIN may be there before the flow is set up.
fn server_speaks_first(path: Path) {
    if !root_or_skip() {
        return;
    }
    let world = World::new(&WorldOptions::for_path(path)).unwrap();
    let pod = world.pod(path, "client").unwrap();
    pod.sysctl("net.ipv4.ip_local_port_range", "1024 65000").unwrap();
    let listener = world.topology.outside.tcp_listen(SocketAddr::new(Host::Web.v4().into(), 0)).unwrap();
    let to = listener.local_addr().unwrap();
    for _ in 0..2 {
        let listener = listener.try_clone().unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.write_all(b"greeting");
            }
        });
    }
    let left = AtomicU64::new(5_000);
    let work = || -> Result<()> {
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            let mut stream = TcpStream::connect_timeout(&to, LIMIT).context("connect")?;
            stream.set_read_timeout(Some(LIMIT))?;
            let mut greeting = Vec::new();
            let outcome = stream.read_to_end(&mut greeting);
            ensure!(
                outcome.is_ok() && greeting == b"greeting",
                "from {}: {outcome:?} after {greeting:?}, {} left",
                stream.local_addr()?,
                left.load(Ordering::Relaxed)
            );
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..32).map(|_| scope.spawn(|| pod.enter(work))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a client's thread"))
    })
    .unwrap();
}

#[test]
fn server_speaks_first_routed() {
    server_speaks_first(Path::Routed);
}

#[test]
fn server_speaks_first_chained() {
    server_speaks_first(Path::AfterPtp);
}

/// Connected pairs through `pod`, both ends held here.
fn hold(pod: &Namespace, listener: &TcpListener, count: usize) -> Result<Vec<(TcpStream, TcpStream)>> {
    let to = listener.local_addr()?;
    pod.enter(|| {
        (0..count)
            .map(|_| {
                let mut client = TcpStream::connect_timeout(&to, LIMIT).context("connect")?;
                let (mut server, _) = listener.accept()?;
                // Each has carried something: a flow that never did could be cheaper.
                client.write_all(b"hello")?;
                server.read_exact(&mut [0; 5])?;
                server.write_all(b"hello")?;
                client.read_exact(&mut [0; 5])?;
                Ok((client, server))
            })
            .collect()
    })
}

#[test]
fn idle_connections_are_cheap() {
    const COUNT: usize = 5_000;
    if !root_or_skip() {
        return;
    }
    let path = Path::AfterPtp;
    let world = World::new(&WorldOptions::for_path(path)).unwrap();
    let pod = world.pod(path, "client").unwrap();
    let listener = world.topology.outside.tcp_listen(SocketAddr::new(Host::Web.v4().into(), 0)).unwrap();
    drop(hold(&pod, &listener, 200).unwrap());
    let before = world.agent().rss_kib().unwrap();
    let mut pairs = hold(&pod, &listener, COUNT).unwrap();
    let grown = world.agent().rss_kib().unwrap().saturating_sub(before);
    println!("{COUNT} idle flows: {grown} KiB, {:.2} KiB each", grown as f64 / COUNT as f64);
    assert!(grown < COUNT as u64, "{grown} KiB for {COUNT} idle flows");
    // They are all still alive.
    for (client, server) in &mut pairs {
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
    }
}
