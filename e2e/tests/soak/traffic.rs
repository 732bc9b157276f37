//! What pods do: each kind once, with its content checked, and all of them until they are told to end.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{AddressFamily, SocketType, ipproto, socket};
use tunproxy_testkit::{Host, Namespace};

use crate::octets::Octets;
use crate::servers::{CLOSED, ECHO, EXCHANGE, SHORT, address};

/// Octets of one exchange, each way.
pub const LENGTH: usize = 1 << 20;
const LIMIT: Duration = Duration::from_mins(1);
/// After which a datagram counts as lost.
const LOST: Duration = Duration::from_millis(500);
/// Of one ping: each has an identifier of its own, of which a pod may have no more than 256 at a time.
const ECHOES: u16 = 200;
/// Which the policy refuses.
pub const DENIED: u16 = 7_104;

/// Octets of one text that both ends know, and what was done so far.
#[derive(Debug)]
pub struct Traffic {
    pub octets: std::sync::Arc<Octets>,
    numbers: AtomicU64,
    done: [AtomicU64; KINDS.len()],
    lost: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Exchange,
    Short,
    Datagram,
    Query,
    Ping,
    Refused,
    Denied,
}

pub const KINDS: [Kind; 7] =
    [Kind::Exchange, Kind::Short, Kind::Datagram, Kind::Query, Kind::Ping, Kind::Refused, Kind::Denied];

impl Traffic {
    pub fn new(octets: std::sync::Arc<Octets>) -> Self {
        Self { octets, numbers: AtomicU64::new(0), done: Default::default(), lost: AtomicU64::new(0) }
    }

    /// All kinds at once from `pod`, each over and over, until `over`.
    pub fn run(&self, pod: &Namespace, over: &AtomicBool) -> Result<()> {
        thread::scope(|scope| {
            let endless = |kind: Kind| -> Result<()> {
                pod.enter(|| {
                    while !over.load(Ordering::Relaxed) {
                        self.once(kind).with_context(|| format!("{kind:?} from {}", pod.name()))?;
                    }
                    Ok(())
                })
            };
            let runs: Vec<_> = KINDS.map(|kind| scope.spawn(move || endless(kind))).into_iter().collect();
            runs.into_iter().try_for_each(|run| run.join().expect("a kind's thread"))
        })
    }

    /// One of a kind, from the thread's namespace; families take turns. A lost datagram is counted, and no error.
    pub fn once(&self, kind: Kind) -> Result<()> {
        let number = self.numbers.fetch_add(2, Ordering::Relaxed);
        let turn = number / 2;
        match kind {
            Kind::Exchange => self.exchange(number, address(EXCHANGE, turn))?,
            Kind::Short => short(address(SHORT, turn), number as u8)?,
            Kind::Datagram => self.datagrams(number, address(ECHO, turn))?,
            Kind::Query => self.query(number as u16, (Host::Dns.both()[turn as usize % 2], 53).into())?,
            Kind::Ping => self.ping(number, Host::Web.both()[turn as usize % 2])?,
            Kind::Refused => refused(address(CLOSED, turn))?,
            Kind::Denied => refused(address(DENIED, turn))?,
        }
        self.done[kind as usize].fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub fn done(&self, kind: Kind) -> u64 {
        self.done[kind as usize].load(Ordering::Relaxed)
    }

    /// Datagrams, queries and pings without an answer.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn exchange(&self, number: u64, to: SocketAddr) -> Result<()> {
        let stream = connect(to)?;
        thread::scope(|scope| {
            let sending = scope.spawn(|| -> Result<()> {
                { &stream }.write_all(&number.to_be_bytes()).context("send")?;
                { &stream }.write_all(self.octets.text(number, LENGTH)).context("send")
            });
            let (mut text, expected) = (Vec::with_capacity(LENGTH), self.octets.text(number + 1, LENGTH));
            let outcome = { &stream }.read_to_end(&mut text).context("receive");
            sending.join().expect("the sending thread")?;
            outcome?;
            ensure!(text.len() == LENGTH, "{} octets: the other end did not like what it got", text.len());
            let wrong = text.iter().zip(expected).position(|(got, sent)| got != sent);
            ensure!(wrong.is_none(), "octet {wrong:?} of text {number} is wrong");
            Ok(())
        })
    }

    /// A few sizes on one flow, up to more than a packet holds.
    fn datagrams(&self, number: u64, to: SocketAddr) -> Result<()> {
        let socket = UdpSocket::bind(any(to.ip()))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(LOST))?;
        for (step, length) in [1, 64, 1_400, 4_000].into_iter().enumerate() {
            let sent = self.octets.text(number + step as u64, length);
            let answer = self.ask(&socket, sent, 65_536, |answer| answer.len() == length)?;
            ensure!(answer.is_none_or(|answer| answer == sent), "a datagram of {length} came back changed");
        }
        Ok(())
    }

    /// A question for the addresses of `allowed.test` (RFC 1035 section 4.1).
    fn query(&self, id: u16, server: SocketAddr) -> Result<()> {
        let socket = UdpSocket::bind(any(server.ip()))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(LOST))?;
        let header = [id.to_be_bytes(), [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]].concat();
        let question = [header.as_slice(), b"\x07allowed\x04test\0", &[0, 1, 0, 1]].concat();
        let answer = self.ask(&socket, &question, 512, |answer| answer.starts_with(&id.to_be_bytes()))?;
        let expected = Host::Web.v4().octets();
        ensure!(answer.as_ref().is_none_or(|answer| answer.ends_with(&expected)), "answered {answer:?}");
        Ok(())
    }

    /// By an unprivileged socket: the kernel chooses the identifier and sums (icmp(7)).
    fn ping(&self, number: u64, to: IpAddr) -> Result<()> {
        let (family, protocol, request) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
        };
        let socket = UdpSocket::from(socket(family, SocketType::DGRAM, Some(protocol))?);
        socket.connect(SocketAddr::new(to, 0))?;
        socket.set_read_timeout(Some(LOST))?;
        for sequence in 0..ECHOES {
            let payload = self.octets.text(number + u64::from(sequence), 56);
            let sequence = sequence.to_be_bytes();
            let packet = [[request, 0, 0, 0, 0, 0].as_slice(), &sequence, payload].concat();
            let answer = self.ask(&socket, &packet, 1_500, |answer| answer.get(6..8) == Some(&sequence))?;
            ensure!(answer.is_none_or(|answer| answer[8..] == *payload), "another echo came back");
        }
        Ok(())
    }

    /// What came back that `wanted` accepts; `None` when nothing did.
    fn ask(
        &self,
        socket: &UdpSocket,
        sent: &[u8],
        longest: usize,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Vec<u8>>> {
        socket.send(sent).context("send")?;
        let mut buffer = vec![0; longest];
        loop {
            match socket.recv(&mut buffer) {
                Ok(length) if wanted(&buffer[..length]) => {
                    buffer.truncate(length);
                    return Ok(Some(buffer));
                }
                // That of an earlier one, which was given up.
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    return Ok(None);
                }
                Err(error) => bail!("no answer: {error}"),
            }
        }
    }
}

pub fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, LIMIT).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn any(like: IpAddr) -> SocketAddr {
    if like.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() }
}

fn short(to: SocketAddr, byte: u8) -> Result<()> {
    let mut stream = connect(to)?;
    stream.write_all(&[byte])?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer == [byte], "{answer:?} came back for {byte}");
    Ok(())
}

fn refused(to: SocketAddr) -> Result<()> {
    match TcpStream::connect_timeout(&to, LIMIT) {
        Ok(_) => bail!("{to} accepted"),
        Err(error) => {
            ensure!(error.kind() == ErrorKind::ConnectionRefused, "{to}: {error}");
            Ok(())
        }
    }
}
