//! What a connection's ends see of each other: half-close, reset, refusal, silence, slowness.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tunproxy_e2e::{Path, Pod, Report, World, WorldOptions, rows};
use tunproxy_testkit::topology::{BLACK_HOLE_V4, BLACK_HOLE_V6, UNREACHABLE_V4, UNREACHABLE_V6};
use tunproxy_testkit::{AgentProcess, Host, Namespace, root_or_skip, wait};

const LIMIT: Duration = Duration::from_mins(1);

/// One path's pod, and an outside to listen in.
struct Lab {
    /// Dropped (and DELed) while its agent is still there.
    pod: Pod,
    world: World,
    path: Path,
}

impl Lab {
    fn new(path: Path) -> Self {
        let world = World::new(&WorldOptions::for_path(path)).unwrap();
        let pod = world.pod(path, "client").unwrap();
        Self { pod, world, path }
    }

    fn outside(&self) -> &Arc<Namespace> {
        &self.world.topology.outside
    }

    fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.pod.tcp_connect(to, LIMIT)
    }

    /// Does `work` while the agent stands still, where there is one.
    fn stopped(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let Some(agent) = &self.world.agent else { return work() };
        agent.signal(Signal::STOP)?;
        let outcome = work();
        agent.signal(Signal::CONT)?;
        outcome
    }

    /// A connected pair: the pod's end and the server's.
    fn pair(&self, ip: IpAddr) -> Result<(TcpStream, TcpStream)> {
        let listener = self.outside().tcp_listen(SocketAddr::new(ip, 0))?;
        let client = self.connect(listener.local_addr()?).context("connect")?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(LIMIT))?;
            end.set_write_timeout(Some(LIMIT))?;
        }
        Ok((client, server))
    }
}

fn everything(path: Path) {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new(path);
    let mut report = Report::default();
    for ip in Host::Web.both() {
        report.row(format!("half-close by the pod {ip}"), || half_close(lab.pair(ip)?));
        report.row(format!("half-close by the server {ip}"), || {
            let (client, server) = lab.pair(ip)?;
            half_close((server, client))
        });
        report.row(format!("reset by the pod {ip}"), || reset(lab.pair(ip)?));
        report.row(format!("reset by the server {ip}"), || {
            let (client, server) = lab.pair(ip)?;
            reset((server, client))
        });
        report.row(format!("refused {ip}"), || refused(&lab, ip));
        report.row(format!("UDP to a closed port {ip}"), || datagram_refused(&lab, SocketAddr::new(ip, 9)));
        report.row(format!("one byte at a time {ip}"), || dribble(lab.pair(ip)?));
        report.row(format!("close with unread data {ip}"), || unread_close(lab.pair(ip)?));
        report.row(format!("UDP of every size {ip}"), || datagrams(&lab, ip));
        report.row(format!("bursts of UDP {ip}"), || bursts(&lab, ip));
        report.row(format!("slow writers {ip}"), || slow_writers(&lab, ip));
        report.row(format!("slow reader outside {ip}"), || slow_reader(&lab, ip, false));
        report.row(format!("slow reader in the pod {ip}"), || slow_reader(&lab, ip, true));
    }
    for ip in [IpAddr::from(UNREACHABLE_V4), UNREACHABLE_V6.into()] {
        report.row(format!("unreachable {ip}"), || unreachable(&lab, ip));
    }
    for ip in [IpAddr::from(BLACK_HOLE_V4), BLACK_HOLE_V6.into()] {
        report.row(format!("black hole {ip}"), || black_hole(&lab, ip));
    }
    report.row("no leak", || rows::no_leak(&lab.world, lab.path));
    report.finish();
}

#[test]
fn routed() {
    everything(Path::Routed);
}

#[test]
fn chained() {
    everything(Path::AfterPtp);
}

#[test]
fn standalone() {
    everything(Path::Standalone);
}

/// The first end says its request and FIN; the other hears the FIN, and only then answers at length.
fn half_close((mut first, mut second): (TcpStream, TcpStream)) -> Result<()> {
    let answer = pattern(300_000, 5);
    let expected = answer.clone();
    let serving = thread::spawn(move || -> Result<Vec<u8>> {
        let mut request = Vec::new();
        second.read_to_end(&mut request)?;
        second.write_all(&answer)?;
        Ok(request)
    });
    first.write_all(b"question")?;
    first.shutdown(Shutdown::Write)?;
    let mut received = Vec::new();
    first.read_to_end(&mut received)?;
    ensure!(received == expected, "{} bytes came back", received.len());
    let request = serving.join().expect("the server's thread")?;
    ensure!(request == b"question", "{request:?}");
    Ok(())
}

/// The first end resets; the other sees a reset, not an orderly end.
fn reset((mut first, mut second): (TcpStream, TcpStream)) -> Result<()> {
    second.write_all(b"before")?;
    first.read_exact(&mut [0; 6])?;
    first.write_all(b"data")?;
    second.read_exact(&mut [0; 4])?;
    rustix::net::sockopt::set_socket_linger(&first, Some(Duration::ZERO))?;
    drop(first);
    let error = second.read(&mut [0]).err().context("an orderly end instead of a reset")?;
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    Ok(())
}

/// Closing a socket that holds unread data is a reset too (RFC 1122 4.2.2.13).
fn unread_close((mut client, server): (TcpStream, TcpStream)) -> Result<()> {
    client.write_all(b"nobody reads this")?;
    wait::until_true("data at the server", LIMIT, || server.peek(&mut [0; 32]).is_ok_and(|count| count > 0))?;
    drop(server);
    let error = client.read(&mut [0]).err().context("an orderly end instead of a reset")?;
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    Ok(())
}

fn refused(lab: &Lab, ip: IpAddr) -> Result<()> {
    let error = lab.connect(SocketAddr::new(ip, 9)).err().context("connected to a closed port")?;
    ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
    Ok(())
}

/// The error of a closed port comes back to the socket that sent the datagram.
fn datagram_refused(lab: &Lab, to: SocketAddr) -> Result<()> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let client = lab.pod.udp_bind(any)?;
    client.connect(to)?;
    client.set_read_timeout(Some(LIMIT))?;
    client.send(b"anybody?")?;
    let error = client.recv(&mut [0; 16]).err().context("an answer")?;
    ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
    Ok(())
}

fn unreachable(lab: &Lab, ip: IpAddr) -> Result<()> {
    let error = lab.connect(SocketAddr::new(ip, 80)).err().context("connected to nowhere")?;
    ensure!(matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable), "{error}");
    Ok(())
}

/// Nothing comes back: the client must stay in SYN-SENT, neither connected nor refused.
fn black_hole(lab: &Lab, ip: IpAddr) -> Result<()> {
    let pod = &lab.pod;
    let to = SocketAddr::new(ip, 80);
    thread::scope(|scope| {
        let attempt = scope.spawn(|| pod.tcp_connect(to, Duration::from_secs(3)));
        wait::until_true("a socket in SYN-SENT", LIMIT, || {
            let filter = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
            pod.run(&format!("ss -Htn state syn-sent dst {filter}")).is_ok_and(|text| !text.trim().is_empty())
        })?;
        let error =
            attempt.join().expect("the client's thread").err().context("connected to a black hole")?;
        ensure!(error.kind() == ErrorKind::TimedOut, "{error}");
        Ok(())
    })
}

fn dribble((mut client, mut server): (TcpStream, TcpStream)) -> Result<()> {
    client.set_nodelay(true)?;
    let echo = thread::spawn(move || -> std::io::Result<()> {
        let mut byte = [0];
        while server.read(&mut byte)? == 1 {
            server.write_all(&byte)?;
        }
        Ok(())
    });
    for index in 0..500u32 {
        let sent = [(index % 251) as u8];
        client.write_all(&sent)?;
        let mut back = [0];
        client.read_exact(&mut back)?;
        ensure!(sent == back, "byte {index}");
    }
    drop(client);
    echo.join().expect("the server's thread").context("echo")
}

fn datagrams(lab: &Lab, ip: IpAddr) -> Result<()> {
    let server = lab.outside().udp_bind(SocketAddr::new(ip, 0))?;
    let any: SocketAddr = if ip.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let client = lab.pod.udp_bind(any)?;
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(LIMIT))?;
    }
    let mut buffer = vec![0; 65_536];
    for size in [0, 1, 512, 1232, 1400, 1452, 1473, 4000, 9000, 30_000, 65_507] {
        let sent = pattern(size, size as u64);
        client.send_to(&sent, server.local_addr()?)?;
        let (length, from) = server.recv_from(&mut buffer).with_context(|| format!("{size} bytes there"))?;
        ensure!(buffer[..length] == sent, "{size} bytes there");
        server.send_to(&sent, from)?;
        let (length, _) = client.recv_from(&mut buffer).with_context(|| format!("{size} bytes back"))?;
        ensure!(buffer[..length] == sent, "{size} bytes back");
    }
    Ok(())
}

/// Many datagrams wait in the TUN when the agent comes to them: each arrives as it was, and in order, whatever it did to
/// send them at once.
fn bursts(lab: &Lab, ip: IpAddr) -> Result<()> {
    let (server, other) =
        (lab.outside().udp_bind(SocketAddr::new(ip, 0))?, lab.outside().udp_bind(SocketAddr::new(ip, 0))?);
    let any: SocketAddr = if ip.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let client = lab.pod.udp_bind(any)?;
    for socket in [&server, &other] {
        socket.set_read_timeout(Some(LIMIT))?;
    }
    // A run ends by a shorter one, by one of nothing, by a longer one; the path takes none of 4,000 octets.
    let odd = vec![1_400, 1_400, 700, 1_400, 0, 0, 1, 1, 1_452, 1_452];
    for burst in [vec![1_400; 50], odd, vec![4_000; 10], vec![64; 90]] {
        lab.stopped(|| {
            for (index, &length) in burst.iter().enumerate() {
                client.send_to(&pattern(length, index as u64), server.local_addr()?)?;
                if index % 20 == 19 {
                    client.send_to(b"between", other.local_addr()?)?;
                }
            }
            Ok(())
        })?;
        for (index, &length) in burst.iter().enumerate() {
            expect(&server, &pattern(length, index as u64)).with_context(|| format!("datagram {index}"))?;
            if index % 20 == 19 {
                expect(&other, b"between")?;
            }
        }
    }
    // The same as one super-segment of the pod's own making.
    nix::sys::socket::setsockopt(&client, nix::sys::socket::sockopt::UdpGsoSegment, &1_400)?;
    let whole = pattern(30 * 1_400 + 9, 3);
    client.send_to(&whole, server.local_addr()?)?;
    whole.chunks(1_400).try_for_each(|datagram| expect(&server, datagram))
}

fn expect(socket: &UdpSocket, wanted: &[u8]) -> Result<()> {
    let mut buffer = vec![0; 65_536];
    let (length, _) = socket.recv_from(&mut buffer)?;
    ensure!(buffer[..length] == *wanted, "{length} octets instead of {}", wanted.len());
    Ok(())
}

/// One end writes and the other does not read: the writer is held back after a bounded amount, for which the agent
/// needs bounded memory; then the reader reads, and every byte is there.
fn slow_reader(lab: &Lab, ip: IpAddr, pod_is_slow: bool) -> Result<()> {
    const FLOWS: usize = 8;
    const PER_FLOW: usize = 24 << 20;
    let data = Arc::new(pattern(PER_FLOW, 1));
    let before = lab.world.agent.as_ref().map(resident_from_now).transpose()?;
    let filling: Vec<_> = (0..FLOWS)
        .map(|_| {
            let (client, server) = lab.pair(ip)?;
            let (writer, reader) = if pod_is_slow { (server, client) } else { (client, server) };
            let data = Arc::clone(&data);
            Ok((reader, thread::spawn(move || fill(writer, &data))))
        })
        .collect::<Result<_>>()?;
    let held: Vec<(TcpStream, TcpStream, usize)> = filling
        .into_iter()
        .map(|(reader, writer)| {
            writer.join().expect("a writer's thread").map(|(writer, held)| (reader, writer, held))
        })
        .collect::<Result<_>>()?;
    if let (Some(agent), Some(before)) = (&lab.world.agent, before) {
        let grown = agent.peak_rss_kib()?.saturating_sub(before);
        ensure!(grown < (FLOWS as u64) * 8 * 1024, "the agent grew by {grown} KiB for {FLOWS} flows");
    }
    for (mut reader, writer, held) in held {
        ensure!(held < PER_FLOW, "{held} bytes were taken and nobody read one");
        drop(writer);
        let mut received = Vec::with_capacity(held);
        reader.read_to_end(&mut received)?;
        ensure!(received.len() == held, "{} of {held} bytes", received.len());
        ensure!(received == data[..held], "other bytes than were sent");
    }
    Ok(())
}

/// What is resident now; the kernel remembers the most from now on, so that no peak is missed.
fn resident_from_now(agent: &AgentProcess) -> Result<u64> {
    agent.forget_peak_rss()?;
    agent.rss_kib()
}

/// Many clients that begin a request and say no more for now: the agent needs little for each, and each goes on later.
fn slow_writers(lab: &Lab, ip: IpAddr) -> Result<()> {
    const FLOWS: u64 = 200;
    let before = lab.world.agent.as_ref().map(resident_from_now).transpose()?;
    let mut pairs = Vec::new();
    for _ in 0..FLOWS {
        let (mut client, mut server) = lab.pair(ip)?;
        client.write_all(b"G")?;
        server.read_exact(&mut [0])?;
        pairs.push((client, server));
    }
    if let (Some(agent), Some(before)) = (&lab.world.agent, before) {
        let grown = agent.peak_rss_kib()?.saturating_sub(before);
        // The pool and the allocator take their steps too, whatever the number of flows.
        ensure!(grown < 8 * FLOWS + 4096, "the agent grew by {grown} KiB for {FLOWS} slow writers");
    }
    for (client, server) in &mut pairs {
        client.write_all(b"ET")?;
        let mut rest = [0; 2];
        server.read_exact(&mut rest)?;
        ensure!(rest == *b"ET", "{rest:?}");
    }
    Ok(())
}

/// Writes until nothing is taken for half a second; how much went.
fn fill(mut writer: TcpStream, data: &[u8]) -> Result<(TcpStream, usize)> {
    writer.set_write_timeout(Some(Duration::from_millis(500)))?;
    let mut sent = 0;
    while sent < data.len() {
        match writer.write(&data[sent..data.len().min(sent + 65_536)]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("write"),
        }
    }
    Ok((writer, sent))
}

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let block: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(65_521).collect();
    block.iter().copied().cycle().take(length).collect()
}
