//! The client's side: one kind of load, one measurement.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::server::{CHUNK, DOWNLOAD, ECHO, UPLOAD, count_port, idle_port, short_port};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Slow start and the pools' first growth are over by then.
const WARM_UP: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    Up,
    Down,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Load {
    /// Bulk TCP: bits a second, summed over the streams.
    Bulk { direction: Direction, streams: usize, seconds: f64 },
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
}

/// What one measurement gave; the figures that do not apply are absent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// In the row's unit.
    pub value: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// Payload bytes in the whole run, warm-up included.
    #[serde(default)]
    pub bytes: u64,
}

impl Load {
    pub fn run(&self, server: SocketAddr) -> Result<Measured> {
        match *self {
            Self::Bulk { direction, streams, seconds } => bulk(server, direction, streams, seconds),
            Self::Connect { threads, seconds } => connections(server, threads, seconds),
            Self::RoundTrip { seconds } => round_trips(server, seconds),
            Self::Datagrams { window, seconds } => datagrams(server, window, seconds),
            Self::Flood { seconds } => flood(server, seconds),
            Self::Idle { count } => idle(server, count),
        }
    }
}

fn connect(server: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&server, TIMEOUT).with_context(|| format!("connect to {server}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn bulk(server: SocketAddr, direction: Direction, streams: usize, seconds: f64) -> Result<Measured> {
    let (moved, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let opened: Vec<TcpStream> = (0..streams).map(|_| connect(server)).collect::<Result<_>>()?;
    thread::scope(|scope| {
        let workers: Vec<_> = opened
            .into_iter()
            .map(|stream| scope.spawn(|| move_bytes(stream, direction, &moved, &stop)))
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

fn move_bytes(
    mut stream: TcpStream,
    direction: Direction,
    moved: &AtomicU64,
    stop: &AtomicBool,
) -> Result<()> {
    let mut buffer = vec![0xa5; CHUNK];
    stream.write_all(&[match direction {
        Direction::Up => UPLOAD,
        Direction::Down => DOWNLOAD,
    }])?;
    while !stop.load(Ordering::Relaxed) {
        let count = match direction {
            Direction::Up => stream.write(&buffer)?,
            Direction::Down => stream.read(&mut buffer)?,
        };
        moved.fetch_add(count as u64, Ordering::Relaxed);
    }
    Ok(())
}

fn connections(server: SocketAddr, threads: usize, seconds: f64) -> Result<Measured> {
    let server = short_port(server);
    let done = AtomicU64::new(0);
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(seconds);
    let work = || -> Result<()> {
        while Instant::now() < until {
            let mut answer = Vec::new();
            connect(server)?.read_to_end(&mut answer)?;
            anyhow::ensure!(answer == b"x", "a short connection answered {answer:?}");
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a client's thread"))
    })?;
    let count = done.load(Ordering::Relaxed);
    Ok(Measured { value: count as f64 / began.elapsed().as_secs_f64(), ..Measured::default() })
}

fn round_trips(server: SocketAddr, seconds: f64) -> Result<Measured> {
    let mut stream = connect(server)?;
    stream.write_all(&[ECHO])?;
    let mut took = Vec::with_capacity(1 << 18);
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(seconds);
    while Instant::now() < until {
        let sent = Instant::now();
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        took.push(sent.elapsed());
    }
    took.sort_unstable();
    let micros = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    Ok(Measured { value: micros(0.5), p99: Some(micros(0.99)), ..Measured::default() })
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

fn idle(server: SocketAddr, count: usize) -> Result<Measured> {
    let server = idle_port(server);
    let held: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut stream = connect(server)?;
            stream.write_all(b"hello")?;
            stream.read_exact(&mut [0; 5])?;
            Ok(stream)
        })
        .collect::<Result<_>>()?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(Measured { value: held.len() as f64, ..Measured::default() })
}
