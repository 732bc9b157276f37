//! The ends outside. Their threads wait in `accept` until the test's process ends.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use tunproxy_testkit::{Host, Namespace};

use crate::octets::Octets;
use crate::traffic::LENGTH;

/// Where each kind of traffic goes, on every address of [`Host::Iperf`].
pub const EXCHANGE: u16 = 7_100;
pub const SHORT: u16 = 7_101;
pub const ECHO: u16 = 7_102;
/// Nobody listens there.
pub const CLOSED: u16 = 7_103;

pub fn address(port: u16, turn: u64) -> SocketAddr {
    let ip: IpAddr = Host::Iperf.both()[(turn % 2) as usize];
    SocketAddr::new(ip, port)
}

pub fn start(outside: &Namespace, octets: &Arc<Octets>) -> Result<()> {
    for family in 0..2 {
        let listen = |port| outside.tcp_listen(address(port, family)).with_context(|| format!("port {port}"));
        let (exchange, short) = (listen(EXCHANGE)?, listen(SHORT)?);
        let shared = Arc::clone(octets);
        thread::spawn(move || serve(&exchange, &shared));
        for _ in 0..4 {
            let short = short.try_clone()?;
            thread::spawn(move || answer(&short));
        }
        let echo = outside.udp_bind(address(ECHO, family))?;
        thread::spawn(move || send_back(&echo));
    }
    Ok(())
}

fn serve(listener: &TcpListener, octets: &Arc<Octets>) {
    for stream in listener.incoming().flatten() {
        let octets = Arc::clone(octets);
        thread::spawn(move || exchange(&stream, &octets));
    }
}

/// The client's number comes first, then its text; ours is that of the next number. What is wrong is answered by a reset
/// instead of a text's end: octets are left unread.
fn exchange(stream: &TcpStream, octets: &Octets) -> Option<()> {
    let mut number = [0; 8];
    { stream }.read_exact(&mut number).ok()?;
    let number = u64::from_be_bytes(number);
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let (mut text, expected) = (vec![0; LENGTH], octets.text(number, LENGTH));
            { stream }.read_exact(&mut text).is_ok() && text == expected
        });
        let (most, last) = octets.text(number + 1, LENGTH).split_at(LENGTH - 1);
        { stream }.write_all(most).ok()?;
        // The last octet says that the other text was right.
        if reading.join().is_ok_and(|right| right) {
            { stream }.write_all(last).ok()?;
        }
        stream.shutdown(Shutdown::Both).ok()
    })
}

fn answer(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        let mut byte = [0];
        if stream.read(&mut byte).is_ok() {
            let _ = stream.write_all(&byte);
        }
    }
}

fn send_back(socket: &UdpSocket) {
    let mut buffer = vec![0; 65_536];
    loop {
        // An error is that of an earlier answer whose pod has gone.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}
