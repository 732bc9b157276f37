//! A SOCKS5 client (RFC 1928 CONNECT, RFC 1929): the sans-IO handshake and its tokio shell.

mod handshake;
mod lookup;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::Instant;

use crate::documents::Endpoint;

pub use handshake::{BadCredentials, Credentials, Handshake, HandshakeError, Reply, Target};
pub use lookup::Lookups;

/// One SOCKS5 server and how to talk to it.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Names are resolved by the node, anew for each connection that finds no lookup under way.
    pub address: Endpoint,
    pub credentials: Option<Credentials>,
    /// From the first packet to the proxy until its reply to CONNECT.
    pub timeout: Duration,
    pub lookups: Lookups,
}

/// Why a flow got no connection through the proxy.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the proxy's name {host:?} cannot be resolved: {source}")]
    Resolve { host: String, source: io::Error },
    #[error("the proxy {address} cannot be reached: {source}")]
    Unreachable { address: String, source: io::Error },
    #[error("the proxy {address} did not answer within {} ms", after.as_millis())]
    TimedOut { address: String, after: Duration },
    #[error("the proxy {address} broke off: {source}")]
    Broken { address: String, source: io::Error },
    #[error("the proxy {address} gave no connection: {source}")]
    Handshake { address: String, source: HandshakeError },
    /// The node's own fault, descriptors exhausted for example.
    #[error("no socket for the proxy {address}: {source}")]
    Local { address: String, source: io::Error },
}

impl Proxy {
    /// Connects to `target` through the proxy. The socket that comes back is non-blocking, belongs to no runtime, and
    /// the next byte read from it is the target's first. Bounded by [`Proxy::timeout`].
    pub async fn connect(&self, target: Target, mark: Option<u32>) -> Result<OwnedFd, ConnectError> {
        let within = tokio::time::timeout(self.timeout, async {
            match &self.address {
                Endpoint::Tcp { host, port } => self.connect_tcp(host, *port, target, mark).await,
                Endpoint::Unix(path) => self.connect_unix(path, target).await,
            }
        });
        within.await.unwrap_or_else(|_| {
            Err(ConnectError::TimedOut { address: self.address.to_string(), after: self.timeout })
        })
    }

    async fn connect_tcp(
        &self,
        host: &str,
        port: u16,
        target: Target,
        mark: Option<u32>,
    ) -> Result<OwnedFd, ConnectError> {
        let mut stream = self.reach(host, port, mark).await?;
        self.shake_hands(&mut stream, target).await?;
        Ok(stream.into_std().map_err(|source| self.local(source))?.into())
    }

    async fn connect_unix(&self, path: &Path, target: Target) -> Result<OwnedFd, ConnectError> {
        let mut stream = UnixStream::connect(path).await.map_err(|source| self.unreachable(source))?;
        self.shake_hands(&mut stream, target).await?;
        Ok(stream.into_std().map_err(|source| self.local(source))?.into())
    }

    /// Tries the proxy's addresses in the resolver's order; each gets its share of the time that is left.
    async fn reach(&self, host: &str, port: u16, mark: Option<u32>) -> Result<TcpStream, ConnectError> {
        let deadline = Instant::now() + self.timeout;
        let addresses = self
            .lookups
            .find(host, port)
            .await
            .map_err(|source| ConnectError::Resolve { host: host.to_owned(), source })?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        for (index, address) in addresses.iter().enumerate() {
            let share =
                deadline.duration_since(Instant::now()) / u32::try_from(addresses.len() - index).unwrap_or(1);
            let socket = open_socket(*address, mark).map_err(|source| self.local(source))?;
            match tokio::time::timeout(share, socket.connect(*address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(source)) => last = source,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        if last.kind() == io::ErrorKind::TimedOut {
            return Err(ConnectError::TimedOut { address: self.address.to_string(), after: self.timeout });
        }
        Err(self.unreachable(last))
    }

    async fn shake_hands<S>(&self, stream: &mut S, target: Target) -> Result<(), ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut handshake = Handshake::new(target, self.credentials.clone());
        // The longest thing ever wanted: a bound name of 255 octets and its port.
        let mut buffer = [0; 257];
        while !handshake.is_connected() {
            if let Some(message) = handshake.poll_transmit() {
                stream.write_all(&message).await.map_err(|source| self.broken(source))?;
            }
            let input = &mut buffer[..handshake.wanted()];
            stream.read_exact(input).await.map_err(|source| self.broken(source))?;
            handshake
                .handle_input(input)
                .map_err(|source| ConnectError::Handshake { address: self.address.to_string(), source })?;
        }
        Ok(())
    }

    fn unreachable(&self, source: io::Error) -> ConnectError {
        ConnectError::Unreachable { address: self.address.to_string(), source }
    }

    fn broken(&self, source: io::Error) -> ConnectError {
        ConnectError::Broken { address: self.address.to_string(), source }
    }

    fn local(&self, source: io::Error) -> ConnectError {
        ConnectError::Local { address: self.address.to_string(), source }
    }
}

/// A socket that is marked before its first packet, so that the node's own routing keeps it out of our TUN.
pub(super) fn open_socket(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_nodelay(true)?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests;
