//! The client's side: one kind of load, one measurement.

mod pattern;
mod way;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::{Subcommand, ValueEnum};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use serde::{Deserialize, Serialize};

pub use self::pattern::Pattern;
use self::way::TIMEOUT;
pub use self::way::Way;
use crate::server::{CHUNK, DOWNLOAD, ECHO, UPLOAD, count_port, idle_port, short_port};

/// Slow start and the pools' first growth are over by then.
const WARM_UP: Duration = Duration::from_millis(200);
/// For what fills the buffers of both kernels when an upload ends, over the worst of links.
const DRAIN: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    Up,
    Down,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Load {
    /// Bulk TCP: bits a second, summed over the streams.
    Bulk {
        direction: Direction,
        streams: usize,
        seconds: f64,
        /// Do not ask the server at an upload's end what arrived: not every program on the way passes an end on.
        #[arg(long)]
        unconfirmed: bool,
    },
    /// Connect, one byte, close, by this many threads: connections a second.
    Connect { threads: usize, seconds: f64 },
    /// One byte there and back on one connection: latencies.
    RoundTrip { seconds: f64 },
    /// 64-byte datagrams there and back, this many under way: datagrams a second.
    Datagrams { window: usize, seconds: f64 },
    /// 1,400-byte datagrams up on one flow, as fast as they go: datagrams a second that arrived.
    Flood { seconds: f64 },
    /// Opens connections, prints "ready" and holds them until standard input ends.
    Idle { count: usize },
    /// The same, until all of them are reset: when the last one was, in milliseconds since 1970.
    Doomed { count: usize },
}

/// What one measurement gave; the figures that do not apply are absent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// In the row's unit.
    pub value: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowest: Option<f64>,
    /// Payload bytes in the whole run, warm-up included.
    #[serde(default)]
    pub bytes: u64,
    /// Connections, round trips or datagrams in the whole run.
    #[serde(default)]
    pub count: u64,
}

impl Load {
    pub fn run(&self, server: SocketAddr, way: &Way) -> Result<Measured> {
        match *self {
            Self::Bulk { direction, streams, seconds, unconfirmed } => {
                bulk(server, way, direction, streams, seconds, unconfirmed)
            }
            Self::Connect { threads, seconds } => connections(server, way, threads, seconds),
            Self::RoundTrip { seconds } => round_trips(server, way, seconds),
            Self::Datagrams { window, seconds } => datagrams(server, window, seconds),
            Self::Flood { seconds } => flood(server, seconds),
            Self::Idle { count } => idle(server, way, count),
            Self::Doomed { count } => doomed(server, way, count),
        }
    }
}

fn bulk(
    server: SocketAddr,
    way: &Way,
    direction: Direction,
    streams: usize,
    seconds: f64,
    unconfirmed: bool,
) -> Result<Measured> {
    let (moved, stop, pattern) = (AtomicU64::new(0), AtomicBool::new(false), Pattern::new(CHUNK));
    let opened: Vec<TcpStream> =
        (0..streams).map(|number| way.connect(number, server)).collect::<Result<_>>()?;
    thread::scope(|scope| {
        let workers: Vec<_> = opened
            .into_iter()
            .map(|stream| {
                scope.spawn(|| match direction {
                    Direction::Up => upload(stream, &pattern, &moved, &stop, unconfirmed),
                    Direction::Down => download(stream, &pattern, &moved, &stop),
                })
            })
            .collect();
        thread::sleep(WARM_UP);
        let (from, began) = (moved.load(Ordering::Relaxed), Instant::now());
        thread::sleep(Duration::from_secs_f64(seconds));
        let bytes = moved.load(Ordering::Relaxed) - from;
        let elapsed = began.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().try_for_each(|worker| worker.join().expect("a stream's thread"))?;
        Ok(Measured {
            value: bytes as f64 * 8.0 / elapsed,
            bytes: moved.load(Ordering::Relaxed),
            ..Measured::default()
        })
    })
}

/// At its end the server says how many octets came as they were to come.
fn upload(
    mut stream: TcpStream,
    pattern: &Pattern,
    moved: &AtomicU64,
    stop: &AtomicBool,
    unconfirmed: bool,
) -> Result<()> {
    stream.write_all(&[UPLOAD])?;
    let mut place = 0;
    while !stop.load(Ordering::Relaxed) {
        let count = stream.write(pattern.from(place, CHUNK))?;
        place += count as u64;
        moved.fetch_add(count as u64, Ordering::Relaxed);
    }
    if unconfirmed {
        return Ok(());
    }
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(DRAIN))?;
    let mut arrived = [0; 8];
    stream.read_exact(&mut arrived)?;
    let arrived = u64::from_be_bytes(arrived);
    ensure!(arrived == place, "of {place} octets sent, {arrived} arrived whole");
    Ok(())
}

fn download(mut stream: TcpStream, pattern: &Pattern, moved: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    stream.write_all(&[DOWNLOAD])?;
    let (mut buffer, mut place) = (vec![0; CHUNK], 0);
    while !stop.load(Ordering::Relaxed) {
        let count = stream.read(&mut buffer)?;
        ensure!(count > 0, "the download ended by itself");
        ensure!(pattern.fits(place, &buffer[..count]), "wrong octets at {place} of a download");
        place += count as u64;
        moved.fetch_add(count as u64, Ordering::Relaxed);
    }
    Ok(())
}

fn connections(server: SocketAddr, way: &Way, threads: usize, seconds: f64) -> Result<Measured> {
    let server = short_port(server);
    let (begun, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(seconds);
    let work = || -> Result<()> {
        while Instant::now() < until {
            let mut answer = Vec::new();
            let number = begun.fetch_add(1, Ordering::Relaxed);
            let mut stream = way.connect(number, server)?;
            stream.write_all(b"x")?;
            stream.read_to_end(&mut answer)?;
            ensure!(answer == b"x", "a short connection answered {answer:?}");
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a client's thread"))
    })?;
    let count = done.load(Ordering::Relaxed);
    Ok(Measured { value: count as f64 / began.elapsed().as_secs_f64(), count, ..Measured::default() })
}

fn round_trips(server: SocketAddr, way: &Way, seconds: f64) -> Result<Measured> {
    let mut stream = way.connect(0, server)?;
    stream.write_all(&[ECHO])?;
    let mut took = Vec::with_capacity(1 << 18);
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(seconds);
    while Instant::now() < until {
        let (sent, asked) = (Instant::now(), took.len() as u8);
        stream.write_all(&[asked])?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        took.push(sent.elapsed());
        ensure!(answer == [asked], "{answer:?} came back for {asked}");
    }
    took.sort_unstable();
    let micros = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    let count = took.len() as u64;
    let (p99, slowest) = (Some(micros(0.99)), Some(micros(1.0)));
    Ok(Measured { value: micros(0.5), p99, slowest, count, ..Measured::default() })
}

/// What the socket or the path has no room for is lost; only what arrived counts.
fn flood(server: SocketAddr, seconds: f64) -> Result<Measured> {
    let socket = udp(count_port(server))?;
    let payload = [0x44; 1_400];
    let send_for = |time: Duration| {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let _ = socket.send(&payload);
        }
    };
    send_for(WARM_UP);
    let (before, began) = (arrived(&socket)?, Instant::now());
    send_for(Duration::from_secs_f64(seconds));
    let elapsed = began.elapsed();
    let count = arrived(&socket)? - before;
    Ok(Measured { value: count as f64 / elapsed.as_secs_f64(), ..Measured::default() })
}

/// The question waits behind the flood, and may be lost like a part of it.
fn arrived(socket: &UdpSocket) -> Result<u64> {
    let until = Instant::now() + TIMEOUT;
    while Instant::now() < until {
        let _ = socket.send(b"?");
        let mut count = [0; 8];
        if socket.recv(&mut count).is_ok() {
            return Ok(u64::from_be_bytes(count));
        }
    }
    anyhow::bail!("no answer over UDP within {TIMEOUT:?}")
}

fn udp(server: SocketAddr) -> Result<UdpSocket> {
    let any: SocketAddr = if server.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    Ok(socket)
}

/// A lost datagram is replaced after a while: UDP promises nothing, and the window must not drain.
fn datagrams(server: SocketAddr, window: usize, seconds: f64) -> Result<Measured> {
    let socket = udp(server)?;
    let payload = [0x33; 64];
    let mut buffer = [0; 128];
    let send_window = || (0..window).try_for_each(|_| socket.send(&payload).map(drop));
    send_window()?;
    let (mut count, began) = (0u64, Instant::now());
    let until = began + Duration::from_secs_f64(seconds);
    while Instant::now() < until {
        if socket.recv(&mut buffer).is_ok() {
            count += 1;
            socket.send(&payload)?;
        } else {
            send_window()?;
        }
    }
    Ok(Measured { value: count as f64 / began.elapsed().as_secs_f64(), ..Measured::default() })
}

fn idle(server: SocketAddr, way: &Way, count: usize) -> Result<Measured> {
    let held = open_idle(server, way, count)?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(Measured { value: held.len() as f64, ..Measured::default() })
}

fn open_idle(server: SocketAddr, way: &Way, count: usize) -> Result<Vec<TcpStream>> {
    let server = idle_port(server);
    let open = |number| {
        let mut stream = way.connect(number, server)?;
        stream.write_all(b"hello")?;
        stream.read_exact(&mut [0; 5])?;
        Ok(stream)
    };
    (0..count).map(open).collect()
}

fn doomed(server: SocketAddr, way: &Way, count: usize) -> Result<Measured> {
    let held = open_idle(server, way, count)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for stream in &held {
        // Errors are always told of, and nothing else is to be, each once.
        epoll::add(&poll, stream, epoll::EventData::new_u64(0), epoll::EventFlags::ONESHOT)?;
    }
    println!("ready");
    let (mut left, mut events) = (count, Vec::with_capacity(1_024));
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    while left > 0 {
        events.clear();
        epoll::wait(&poll, spare_capacity(&mut events), Some(&limit))?;
        ensure!(!events.is_empty(), "{left} connections of {count} are open still");
        left -= events.len();
    }
    let last = SystemTime::now().duration_since(UNIX_EPOCH)?;
    for stream in &held {
        let error = stream.take_error()?;
        let reset = error.as_ref().is_some_and(|error| error.kind() == ErrorKind::ConnectionReset);
        ensure!(reset, "a connection ended by {error:?}");
    }
    Ok(Measured { value: last.as_secs_f64() * 1e3, count: count as u64, ..Measured::default() })
}
