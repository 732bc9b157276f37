//! A TCP connection.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use smoltcp::iface::SocketHandle;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stack::Handle;

/// A TCP connection. Reading and writing are bounded by the stack's buffers. `shutdown` closes the writing half; reading
/// goes on until the peer's end, which is zero bytes. A reset is `ConnectionReset`, a peer that is silent for too long
/// `TimedOut`.
///
/// Dropped, it still delivers what was written, for [`crate::StackConfig::linger`] at most. As with the kernel's sockets
/// that is a reset when data is there, or comes, that was not read.
#[derive(Debug)]
pub struct Stream {
    handle: Arc<Handle>,
    socket: SocketHandle,
    local: SocketAddr,
    peer: SocketAddr,
}

impl Stream {
    pub(crate) fn new(handle: Arc<Handle>, socket: SocketHandle) -> Self {
        let (local, peer) = handle.shared.engine().endpoints(socket);
        Self { handle, socket, local, peer }
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let unfilled = buffer.initialize_unfilled();
        let length = ready!(self.handle.shared.engine().poll_read(self.socket, unfilled, context))?;
        buffer.advance(length);
        // The window is open again.
        self.handle.shared.wake.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let length = ready!(self.handle.shared.engine().poll_write(self.socket, bytes, context))?;
        self.handle.shared.wake.notify_one();
        Poll::Ready(Ok(length))
    }

    /// What is written is on its way already.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handle.change(|engine, _| engine.shut_down(self.socket));
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.handle.change(|engine, now| engine.abandon(now, self.socket));
    }
}
