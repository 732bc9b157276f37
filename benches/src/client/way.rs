//! How the load generator gets to its server: from which namespaces, and through which proxy.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub struct Way {
    via: Option<SocketAddr>,
    namespaces: Vec<File>,
}

impl Way {
    /// `namespaces` are entered one after the other, a connection each; none of them: where the process is.
    pub fn new(via: Option<SocketAddr>, namespaces: &[PathBuf]) -> Result<Self> {
        let open = |path: &PathBuf| File::open(path).with_context(|| format!("{}", path.display()));
        Ok(Self { via, namespaces: namespaces.iter().map(open).collect::<Result<_>>()? })
    }

    /// The `number`th connection. Moves the calling thread into the namespace whose turn it is.
    pub fn connect(&self, number: usize, server: SocketAddr) -> Result<TcpStream> {
        if !self.namespaces.is_empty() {
            let namespace = &self.namespaces[number % self.namespaces.len()];
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .context("setns")?;
        }
        let first = self.via.unwrap_or(server);
        let mut stream =
            TcpStream::connect_timeout(&first, TIMEOUT).with_context(|| format!("connect to {first}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        if self.via.is_some() {
            ask_proxy(&mut stream, server).with_context(|| format!("{server} through {first}"))?;
        }
        Ok(stream)
    }
}

/// CONNECT without authentication (RFC 1928 sections 3, 4 and 6).
fn ask_proxy(stream: &mut TcpStream, server: SocketAddr) -> Result<()> {
    stream.write_all(&[5, 1, 0])?;
    let mut method = [0; 2];
    stream.read_exact(&mut method)?;
    ensure!(method == [5, 0], "the proxy chose {method:?}");
    let mut request = vec![5, 1, 0];
    match server.ip() {
        IpAddr::V4(ip) => request.extend([&[1], ip.octets().as_slice()].concat()),
        IpAddr::V6(ip) => request.extend([&[4], ip.octets().as_slice()].concat()),
    }
    request.extend(server.port().to_be_bytes());
    stream.write_all(&request)?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply)?;
    ensure!(reply[..2] == [5, 0], "the proxy replied {reply:?}");
    let address = match reply[3] {
        1 => 4,
        4 => 16,
        kind => anyhow::bail!("the proxy gave an address of type {kind}"),
    };
    Ok(stream.read_exact(&mut [0; 18][..address + 2])?)
}
