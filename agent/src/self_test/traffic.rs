//! What a pod's programs do: plain sockets of the kernel, in the pod's namespace.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tunproxy_linux_net::sysctl;

use super::dns;
use super::outside::{ALLOWED_NAME, CLOSED, DENIED_NAME, DNS, ECHO, FORBIDDEN, HOST_V4, HOST_V6};
use super::report::{LOOK, Row};
use crate::causes::told;

/// For one answer. All is on this machine: an answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(3);
/// A refusal is to be immediate, not a time-out.
const AT_ONCE: Duration = Duration::from_secs(1);
const MEBIBYTE: usize = 1 << 20;
/// Octets of a datagram, and of an echo request's payload.
const DATAGRAM: usize = 1_200;

/// Connections below that policy has to refuse.
pub const REFUSALS: u64 = 2;

const V4: IpAddr = IpAddr::V4(HOST_V4);
const V6: IpAddr = IpAddr::V6(HOST_V6);

struct Check {
    name: &'static str,
    needs: Needs,
    run: fn() -> anyhow::Result<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    IPv6,
    EchoSockets,
    Both,
}

const CHECKS: [Check; 10] = [
    Check { name: "tcp-v4", needs: Needs::Nothing, run: || transfer(V4) },
    Check { name: "tcp-v6", needs: Needs::IPv6, run: || transfer(V6) },
    Check { name: "tcp-denied", needs: Needs::Nothing, run: || refused(SocketAddr::new(V4, FORBIDDEN)) },
    Check { name: "tcp-closed-port", needs: Needs::Nothing, run: || refused(SocketAddr::new(V4, CLOSED)) },
    Check { name: "udp-v4", needs: Needs::Nothing, run: || datagram(V4) },
    Check { name: "udp-v6", needs: Needs::IPv6, run: || datagram(V6) },
    Check { name: "ping-v4", needs: Needs::EchoSockets, run: || ping(V4) },
    Check { name: "ping-v6", needs: Needs::Both, run: || ping(V6) },
    Check { name: "name-allowed", needs: Needs::Nothing, run: allowed_name },
    Check { name: "name-denied", needs: Needs::Nothing, run: denied_name },
];

/// Runs every check at once: one that has to wait for its time-out does not hold up the others.
///
/// `no_ping` is why pings cannot be tried.
pub fn rows(no_ping: Option<&str>) -> Vec<Row> {
    thread::scope(|scope| {
        let running = CHECKS.map(|check| scope.spawn(move || row(&check, no_ping)));
        running.map(|check| check.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).into()
    })
}

fn row(check: &Check, no_ping: Option<&str>) -> Row {
    let needs = |this| check.needs == this || check.needs == Needs::Both;
    if needs(Needs::IPv6) && !sysctl::has_ipv6() {
        return Row::skipped(check.name, "this kernel has no IPv6");
    }
    if let (true, Some(reason)) = (needs(Needs::EchoSockets), no_ping) {
        return Row::skipped(check.name, reason);
    }
    match (check.run)() {
        Ok(found) => Row::ok(check.name, found),
        Err(error) => Row::failed(check.name, told(&error), LOOK),
    }
}

/// A socket whose time is over says only that there is nothing to read yet.
fn in_time<T>(result: io::Result<T>) -> anyhow::Result<T> {
    result.map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => anyhow!("nothing came within {PATIENCE:?}"),
        _ => error.into(),
    })
}

/// A mebibyte there and back at once, then the ends of both ways.
fn transfer(to: IpAddr) -> anyhow::Result<String> {
    let mut stream = connect(SocketAddr::new(to, ECHO))?;
    let sent: Vec<u8> = (0..MEBIBYTE).map(octet).collect();
    let mut writer = stream.try_clone()?;
    let received = thread::scope(|scope| {
        let sending = scope.spawn(|| writer.write_all(&sent).and_then(|()| writer.shutdown(Shutdown::Write)));
        let mut received = Vec::with_capacity(MEBIBYTE);
        let reading = in_time(stream.read_to_end(&mut received)).context("reading");
        in_time(sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .context("writing")?;
        reading.map(|_| received)
    })?;
    ensure!(received.len() == sent.len(), "{} of {} octets came back", received.len(), sent.len());
    if let Some(place) = sent.iter().zip(&received).position(|(sent, received)| sent != received) {
        bail!("octet {place} came back changed");
    }
    Ok("1 MiB there and back, every octet in its place, both ends closed".to_owned())
}

/// Its place shows, over more than any window or segment.
fn octet(place: usize) -> u8 {
    (place ^ place >> 8 ^ place >> 16) as u8
}

fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream =
        in_time(TcpStream::connect_timeout(&to, PATIENCE)).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn refused(to: SocketAddr) -> anyhow::Result<String> {
    let started = Instant::now();
    let Err(error) = TcpStream::connect_timeout(&to, PATIENCE) else {
        bail!("connect to {to}: succeeds, and must be refused");
    };
    let elapsed = started.elapsed();
    ensure!(error.kind() == ErrorKind::ConnectionRefused, "connect to {to}: {error}, where a refusal is due");
    ensure!(elapsed < AT_ONCE, "connect to {to}: refused, but only after {elapsed:.1?}");
    Ok(format!("refused after {elapsed:.1?}"))
}

fn datagram(to: IpAddr) -> anyhow::Result<String> {
    let answer = ask(SocketAddr::new(to, ECHO), &payload())?;
    ensure!(answer == payload(), "the datagram came back changed");
    Ok(format!("a datagram of {DATAGRAM} octets there and back"))
}

/// Sends a datagram and takes the answer.
fn ask(to: SocketAddr, question: &[u8]) -> anyhow::Result<Vec<u8>> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    socket.send(question).with_context(|| format!("send to {to}"))?;
    let mut answer = vec![0; 2 * DATAGRAM];
    let length = in_time(socket.recv(&mut answer)).with_context(|| format!("an answer of {to}"))?;
    answer.truncate(length);
    Ok(answer)
}

fn payload() -> Vec<u8> {
    (0..DATAGRAM).map(octet).collect()
}

/// An echo request (RFC 792, RFC 4443) through a ping socket.
fn ping(to: IpAddr) -> anyhow::Result<String> {
    const HEADER: usize = 8;
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let mut socket = Socket::new(domain, Type::DGRAM, Some(protocol)).context("a ping socket")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&SockAddr::from(SocketAddr::new(to, 0)))?;
    // Type, code, checksum, identifier, sequence; the kernel fills in the two in the middle.
    let message = [&[request, 0, 0, 0, 0, 0, 0, 1], &payload()[..]].concat();
    socket.send(&message).with_context(|| format!("an echo request to {to}"))?;
    let mut answer = vec![0; 2 * DATAGRAM];
    let length = in_time(socket.read(&mut answer)).with_context(|| format!("an echo reply of {to}"))?;
    ensure!(answer[0] == reply, "ICMP type {} came back, not {reply}", answer[0]);
    ensure!(answer[6..length] == message[6..], "the echo reply's sequence or payload is not the request's");
    Ok(format!("an echo of {} octets there and back", message.len() - HEADER))
}

fn allowed_name() -> anyhow::Result<String> {
    let address = resolve(1, ALLOWED_NAME)?;
    let mut stream = connect(SocketAddr::new(address, ECHO))?;
    stream.write_all(b"hello")?;
    let mut answer = [0; 5];
    in_time(stream.read_exact(&mut answer)).context("reading")?;
    ensure!(&answer == b"hello", "what came back is not what was sent");
    Ok(format!("{ALLOWED_NAME} resolved to {address} and connected"))
}

fn denied_name() -> anyhow::Result<String> {
    let address = resolve(2, DENIED_NAME)?;
    let refusal = refused(SocketAddr::new(address, ECHO))?;
    Ok(format!("{DENIED_NAME} resolved to {address}, {refusal}"))
}

fn resolve(id: u16, name: &str) -> anyhow::Result<IpAddr> {
    let answer =
        ask(SocketAddr::new(V4, DNS), &dns::query(id, name)).with_context(|| format!("resolving {name}"))?;
    Ok(dns::read_answer(id, &answer).with_context(|| format!("resolving {name}"))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_told_as_such_and_other_errors_as_they_are() {
        let silent = in_time::<()>(Err(ErrorKind::WouldBlock.into())).unwrap_err();
        assert_eq!(silent.to_string(), "nothing came within 3s");
        let reset = in_time::<()>(Err(io::Error::from_raw_os_error(104))).unwrap_err();
        assert!(reset.to_string().contains("reset"), "{reset}");
        assert_eq!(in_time(Ok(7)).unwrap(), 7);
    }

    /// What a datapath might mix up differs: neighbouring segments, super-segments and windows.
    #[test]
    fn octets_show_their_place() {
        for apart in [1, 1_448, 65_536, 65_160, MEBIBYTE / 2] {
            let differ = (0..MEBIBYTE - apart).filter(|&place| octet(place) != octet(place + apart)).count();
            assert!(differ > (MEBIBYTE - apart) / 2, "{apart}: only {differ}");
        }
    }
}
