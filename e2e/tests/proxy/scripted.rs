//! A SOCKS5 server that does as the destination's port tells it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use anyhow::Result;
use tunproxy_testkit::{Host, Topology};

pub const PROXY_PORT: u16 = 1090;
pub const MUTE_PORT: u16 = 1091;
/// The destination's port tells the proxy what to do: a reply of `FIRST_PORT` + code, or one of those below.
pub const FIRST_PORT: u16 = 9000;
pub const CLOSES: u16 = 8001;
pub const TALKS_HTTP: u16 = 8002;
pub const HALF_A_REPLY: u16 = 8003;
pub const STRANGE_ADDRESS: u16 = 8004;
/// No answer to CONNECT at all; the pod, or the agent, is the first to give up.
pub const SILENT: u16 = 8005;
pub const SILENT_BRIEFLY: u16 = 8006;
/// Led to a proxy that does not even answer the greeting.
pub const MUTE: u16 = 8007;
/// An answer, success or refusal, only when the test says so.
pub const LATE_SUCCESS: u16 = 8008;
pub const LATE_REFUSAL: u16 = 8009;
/// Led to a proxy that wants another password, or any.
pub const WRONG_PASSWORD: u16 = 8010;
pub const NO_PASSWORD: u16 = 8011;

/// What the proxy was asked to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Address(SocketAddr),
    Name(String, u16),
}

impl Asked {
    fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Name(_, port) => *port,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    asked: Vec<Asked>,
    /// Late answers may be given.
    released: bool,
    /// Ports of connections of which the proxy saw the end, those that get no answer or a late one.
    ended: Vec<u16>,
}

/// A SOCKS5 server that does as it is told, outside.
#[derive(Clone, Debug, Default)]
pub struct Proxy(Arc<(Mutex<State>, Condvar)>);

impl Proxy {
    pub fn start(topology: &Topology) -> Result<Self> {
        let proxy = Self::default();
        let listener = topology.outside.tcp_listen(SocketAddr::new(Host::Socks.v4().into(), PROXY_PORT))?;
        let server = proxy.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                thread::spawn(move || server.answer(stream));
            }
        });
        Ok(proxy)
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = [0; 2];
        stream.read_exact(&mut head)?;
        stream.read_exact(&mut vec![0; usize::from(head[1])])?;
        stream.write_all(&[5, 0])?;
        let asked = read_request(&mut stream)?;
        let port = asked.port();
        self.with(|state| state.asked.push(asked));
        let reply = |code: u8| [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
        match port {
            CLOSES => Ok(()),
            TALKS_HTTP => stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            HALF_A_REPLY => stream.write_all(&[5, 0, 0, 1, 192]),
            STRANGE_ADDRESS => stream.write_all(&[5, 0, 0, 9, 0, 0, 0, 0, 0, 0]),
            FIRST_PORT => {
                stream.write_all(&reply(0))?;
                stream.write_all(b"carried")
            }
            SILENT | SILENT_BRIEFLY => self.wait_for_end(stream, port),
            LATE_SUCCESS | LATE_REFUSAL => {
                self.wait_for_release();
                stream.write_all(&reply(if port == LATE_SUCCESS { 0 } else { 5 }))?;
                self.wait_for_end(stream, port)
            }
            other => stream.write_all(&reply((other - FIRST_PORT) as u8)),
        }
    }

    /// Until the other end closes or resets.
    fn wait_for_end(&self, mut stream: TcpStream, port: u16) -> std::io::Result<()> {
        let end = stream.read(&mut [0]);
        self.with(|state| state.ended.push(port));
        end.map(drop)
    }

    fn wait_for_release(&self) {
        let (state, changed) = &*self.0;
        let state = state.lock().expect("no thread panicked");
        drop(changed.wait_while(state, |state| !state.released).expect("no thread panicked"));
    }

    pub fn release(&self) {
        self.with(|state| state.released = true);
        self.0.1.notify_all();
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.0.lock().expect("no thread panicked"))
    }

    /// Everything that was asked for with this port.
    pub fn asked(&self, port: u16) -> Vec<Asked> {
        self.with(|state| state.asked.iter().filter(|asked| asked.port() == port).cloned().collect())
    }

    pub fn ended(&self, port: u16) -> usize {
        self.with(|state| state.ended.iter().filter(|ended| **ended == port).count())
    }
}

/// RFC 1928 section 4.
fn read_request(stream: &mut TcpStream) -> std::io::Result<Asked> {
    let mut take = |length: usize| {
        let mut octets = vec![0; length];
        stream.read_exact(&mut octets).map(|()| octets)
    };
    let kind = take(4)?[3];
    let host = match kind {
        3 => {
            let length = usize::from(take(1)?[0]);
            take(length)?
        }
        4 => take(16)?,
        _ => take(4)?,
    };
    let port = take(2)?;
    let port = u16::from_be_bytes([port[0], port[1]]);
    Ok(match (kind, <[u8; 4]>::try_from(&host[..]), <[u8; 16]>::try_from(&host[..])) {
        (1, Ok(v4), _) => Asked::Address((v4, port).into()),
        (4, _, Ok(v6)) => Asked::Address((v6, port).into()),
        _ => Asked::Name(String::from_utf8_lossy(&host).into_owned(), port),
    })
}
