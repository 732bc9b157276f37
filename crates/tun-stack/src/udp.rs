//! A UDP socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::{future, io};

use smoltcp::iface::SocketHandle;

use crate::stack::Handle;

/// A UDP socket. It holds a bounded number of datagrams each way; what is received beyond that is dropped.
#[derive(Debug)]
pub struct UdpSocket {
    pub(crate) handle: Arc<Handle>,
    pub(crate) socket: SocketHandle,
    pub(crate) local: SocketAddr,
}

impl UdpSocket {
    /// Sends one datagram; waits while the socket holds as many as it may. A datagram larger than the MTU takes is an
    /// `InvalidInput`: the stack does not fragment. One task at a time.
    pub async fn send_to(&self, bytes: &[u8], peer: SocketAddr) -> io::Result<usize> {
        let shared = &self.handle.shared;
        let sent =
            future::poll_fn(|context| shared.engine().poll_send(self.socket, bytes, peer, context)).await?;
        shared.wake.notify_one();
        Ok(sent)
    }

    /// Receives one datagram and tells who sent it. What does not fit `buffer` is cut off. One task at a time.
    pub async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let shared = &self.handle.shared;
        let received = future::poll_fn(|context| shared.engine().poll_recv(self.socket, buffer, context));
        Ok(received.await?)
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.handle.change(|engine, _| engine.unbind(self.socket));
    }
}
