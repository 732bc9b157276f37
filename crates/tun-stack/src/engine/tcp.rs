//! Connections: dialled or accepted, until their stream is dropped.

use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Instant;

use super::{Engine, to_endpoint, to_socket_addr, to_stack_time};
use crate::error::SocketError;

/// Who ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Peer,
    Timer,
}

/// What smoltcp does not keep of a connection that a stream holds.
#[derive(Debug)]
pub struct Connection {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// The peer's FIN has come: its end is an end, whatever happens to the socket later.
    finished: bool,
    /// The stream was shut down for writing.
    shut: bool,
    /// Set when the socket is closed.
    cause: Option<Cause>,
    /// Unread data of a connection in TIME-WAIT, after which smoltcp throws it away.
    rest: Vec<u8>,
}

impl Connection {
    fn new(local: SocketAddr, peer: SocketAddr) -> Self {
        Self { local, peer, finished: false, shut: false, cause: None, rest: Vec::new() }
    }

    /// Why a connection that nobody shut down is closed.
    fn failure(&self, silent: Duration) -> SocketError {
        let (local, peer) = (self.local, self.peer);
        match self.cause {
            Some(Cause::Timer) => SocketError::Silent { local, peer, silent },
            Some(Cause::Peer) | None => SocketError::Reset { local, peer },
        }
    }
}

impl Engine {
    /// Sends a SYN with the next poll.
    pub fn connect(&mut self, peer: SocketAddr, within: Duration) -> Result<SocketHandle, SocketError> {
        self.check_alive()?;
        if peer.port() == 0 || peer.ip().is_unspecified() || peer.ip().is_multicast() {
            return Err(SocketError::NoDestination { address: peer });
        }
        let source = self.source_for(peer)?;
        let port = self.free_tcp_port()?;
        let local = SocketAddr::new(source, port);
        let mut socket = self.new_tcp();
        socket.set_timeout(Some(to_stack_time(within)));
        let connected = socket.connect(self.interface.context(), to_endpoint(peer), to_endpoint(local));
        connected.map_err(|_| SocketError::NoDestination { address: peer })?;
        let handle = self.add(socket)?;
        self.connections.insert(handle, Connection::new(local, peer));
        Ok(handle)
    }

    /// Ready when the handshake is over.
    pub fn poll_connected(
        &mut self,
        handle: SocketHandle,
        within: Duration,
        context: &Context<'_>,
    ) -> Poll<Result<(), SocketError>> {
        self.check_alive()?;
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        match socket.state() {
            State::SynSent | State::SynReceived => {
                socket.register_send_waker(context.waker());
                Poll::Pending
            }
            State::Closed | State::Listen => {
                let connection = &self.connections[&handle];
                let peer = connection.peer;
                Poll::Ready(Err(match connection.cause {
                    Some(Cause::Timer) => SocketError::NoAnswer { peer, within },
                    Some(Cause::Peer) | None => SocketError::Refused { peer },
                }))
            }
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => {
                self.watch(handle);
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Hands a connection that a listener took over to a stream.
    pub(super) fn adopt(&mut self, handle: SocketHandle, local: SocketAddr, peer: SocketAddr) {
        self.connections.insert(handle, Connection::new(local, peer));
        self.watch(handle);
    }

    pub fn endpoints(&self, handle: SocketHandle) -> (SocketAddr, SocketAddr) {
        let connection = &self.connections[&handle];
        (connection.local, connection.peer)
    }

    /// Zero bytes are the end.
    pub fn poll_read(
        &mut self,
        handle: SocketHandle,
        buffer: &mut [u8],
        context: &Context<'_>,
    ) -> Poll<Result<usize, SocketError>> {
        let connection = self.connections.get_mut(&handle).expect("a stream's connection");
        if !connection.rest.is_empty() {
            let length = connection.rest.len().min(buffer.len());
            buffer[..length].copy_from_slice(&connection.rest[..length]);
            connection.rest.drain(..length);
            return Poll::Ready(Ok(length));
        }
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        match socket.recv_slice(buffer) {
            Ok(0) if !buffer.is_empty() => {
                socket.register_recv_waker(context.waker());
                Poll::Pending
            }
            Ok(length) => Poll::Ready(Ok(length)),
            Err(RecvError::Finished) => Poll::Ready(Ok(0)),
            Err(RecvError::InvalidState) if connection.finished => Poll::Ready(Ok(0)),
            Err(RecvError::InvalidState) => {
                let failure = connection.failure(self.config.peer_timeout);
                self.check_alive()?;
                Poll::Ready(Err(failure))
            }
        }
    }

    pub fn poll_write(
        &mut self,
        handle: SocketHandle,
        bytes: &[u8],
        context: &Context<'_>,
    ) -> Poll<Result<usize, SocketError>> {
        self.check_alive()?;
        let connection = &self.connections[&handle];
        if connection.shut {
            let (local, peer) = (connection.local, connection.peer);
            return Poll::Ready(Err(SocketError::WriteAfterShutdown { local, peer }));
        }
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        match socket.send_slice(bytes) {
            Ok(0) if !bytes.is_empty() => {
                socket.register_send_waker(context.waker());
                Poll::Pending
            }
            Ok(length) => Poll::Ready(Ok(length)),
            Err(_) => Poll::Ready(Err(connection.failure(self.config.peer_timeout))),
        }
    }

    /// FIN after what was written; reading goes on.
    pub fn shut_down(&mut self, handle: SocketHandle) {
        self.connections.get_mut(&handle).expect("a stream's connection").shut = true;
        self.tcp_mut(handle).close();
    }

    /// The stream is dropped.
    pub fn abandon(&mut self, now: Instant, handle: SocketHandle) {
        self.connections.remove(&handle);
        self.tcp_mut(handle).close();
        self.orphan(now, handle);
    }

    pub(super) fn orphan(&mut self, now: Instant, handle: SocketHandle) {
        let deadline = now + to_stack_time(self.config.linger);
        self.orphans.insert(handle, deadline);
    }

    pub(super) fn new_tcp(&self) -> Socket<'static> {
        let mut socket = Socket::new(
            SocketBuffer::new(vec![0; self.config.receive_buffer]),
            SocketBuffer::new(vec![0; self.config.send_buffer]),
        );
        socket.set_nagle_enabled(false);
        // One acknowledgement for each batch of packets, at once: the peer is on this machine.
        socket.set_ack_delay(None);
        socket
    }

    /// Notes what happened to connections, before smoltcp forgets it.
    pub(super) fn settle_connections(&mut self, cause: Cause) {
        for (handle, connection) in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket<'_>>(*handle);
            match socket.state() {
                State::CloseWait | State::LastAck | State::Closing => connection.finished = true,
                State::TimeWait => {
                    connection.finished = true;
                    let unread = socket.recv_queue();
                    if unread > 0 {
                        let start = connection.rest.len();
                        connection.rest.resize(start + unread, 0);
                        let copied = socket.recv_slice(&mut connection.rest[start..]).unwrap_or(0);
                        connection.rest.truncate(start + copied);
                    }
                }
                State::Closed => {
                    connection.cause.get_or_insert(cause);
                }
                State::Listen
                | State::SynSent
                | State::SynReceived
                | State::Established
                | State::FinWait1
                | State::FinWait2 => {}
            }
        }
    }

    /// From now on the peer has to show signs of life.
    fn watch(&mut self, handle: SocketHandle) {
        let timeout = Some(to_stack_time(self.config.peer_timeout));
        let keep_alive = Some(to_stack_time(self.config.keep_alive));
        let socket = self.tcp_mut(handle);
        socket.set_timeout(timeout);
        socket.set_keep_alive(keep_alive);
    }

    fn free_tcp_port(&mut self) -> Result<u16, SocketError> {
        let (sockets, listeners) = (&self.sockets, &self.listeners);
        let used: std::collections::HashSet<u16> = sockets
            .iter()
            .filter_map(|(_, socket)| match socket {
                smoltcp::socket::Socket::Tcp(tcp) => Some(tcp.local_endpoint()?.port),
                _ => None,
            })
            .chain(listeners.keys().map(SocketAddr::port))
            .collect();
        self.ports
            .take(|port| !used.contains(&port))
            .ok_or_else(|| SocketError::NoFreePort { device: self.device.clone() })
    }

    /// A socket has this connection, so a SYN of it is a repetition, or smoltcp's to answer.
    pub(super) fn knows(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        self.sockets.iter().any(|(_, socket)| match socket {
            smoltcp::socket::Socket::Tcp(tcp) => {
                tcp.local_endpoint().map(to_socket_addr) == Some(local)
                    && tcp.remote_endpoint().map(to_socket_addr) == Some(peer)
            }
            _ => false,
        })
    }
}
