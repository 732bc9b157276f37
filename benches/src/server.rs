//! The server's side: streams on one port, one-byte connections on the next, held connections on the third, UDP echo, and
//! UDP that is counted.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};

use crate::client::Pattern;

pub const UPLOAD: u8 = b'u';
pub const DOWNLOAD: u8 = b'd';
pub const ECHO: u8 = b'e';
pub const CHUNK: usize = 128 * 1024;

/// Where short connections go.
pub fn short_port(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port() + 1)
}

/// Where datagrams go that are only counted.
pub fn count_port(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port() + 1)
}

/// Where idle connections go.
pub fn idle_port(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port() + 2)
}

pub fn serve(address: SocketAddr) -> Result<()> {
    let bind = |address| TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"));
    let pattern = Arc::new(Pattern::new(CHUNK));
    let (streams, short, idle) = (bind(address)?, bind(short_port(address))?, bind(idle_port(address))?);
    let datagrams = UdpSocket::bind(address)?;
    thread::spawn(move || echo_datagrams(&datagrams));
    let counted = UdpSocket::bind(count_port(address))?;
    thread::spawn(move || count_datagrams(&counted));
    // One for each client at once: a server that cannot accept would be what is measured.
    for _ in 0..32 {
        let short = short.try_clone()?;
        thread::spawn(move || answer_short(&short));
    }
    thread::spawn(move || hold(&idle));
    println!("ready");
    for stream in streams.incoming() {
        let (stream, pattern) = (stream?, Arc::clone(&pattern));
        thread::spawn(move || serve_stream(stream, &pattern));
    }
    Ok(())
}

/// The first byte says what the stream is for. An end is how every measurement ends, so it is no error.
fn serve_stream(mut stream: TcpStream, pattern: &Pattern) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut command = [0];
    stream.read_exact(&mut command).ok()?;
    match command[0] {
        UPLOAD => {
            let arrived = whole(&mut stream, pattern).ok()?;
            stream.write_all(&arrived.to_be_bytes()).ok()?;
        }
        DOWNLOAD => {
            let mut place = 0;
            loop {
                place += stream.write(pattern.from(place, CHUNK)).ok()? as u64;
            }
        }
        ECHO => loop {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            stream.write_all(&byte).ok()?;
        },
        _ => {}
    }
    Some(())
}

/// Reads to the end; how many octets came before a wrong one.
fn whole(stream: &mut TcpStream, pattern: &Pattern) -> std::io::Result<u64> {
    let (mut buffer, mut place, mut right) = (vec![0; CHUNK], 0, true);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(place);
        }
        right &= pattern.fits(place, &buffer[..count]);
        place += if right { count as u64 } else { 0 };
    }
}

fn answer_short(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        let mut byte = [0];
        let _ = stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte));
    }
}

fn hold(listener: &TcpListener) {
    let mut held = Vec::new();
    for mut stream in listener.incoming().flatten() {
        let mut bytes = [0; 5];
        if stream.read_exact(&mut bytes).and_then(|()| stream.write_all(&bytes)).is_ok() {
            held.push(stream);
        }
        // The clients of a finished measurement have closed theirs.
        if held.len().is_multiple_of(1024) {
            held.retain(|stream| stream.set_nonblocking(true).is_ok() && stream.peek(&mut [0]).is_err());
        }
    }
}

/// A datagram of one octet asks how many longer ones have come so far.
fn count_datagrams(socket: &UdpSocket) {
    let (mut buffer, mut count) = (vec![0; 65_536], 0u64);
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        if length == 1 {
            let _ = socket.send_to(&count.to_be_bytes(), from);
        } else {
            count += 1;
        }
    }
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut buffer = vec![0; 65_536];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(&buffer[..length], from);
    }
}
