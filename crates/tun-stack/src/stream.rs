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

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use smoltcp::time::Instant;

    use super::*;
    use crate::config::StackConfig;
    use crate::engine::Engine;
    use crate::stack::Shared;

    const WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

    fn engine(address: &str) -> Engine {
        Engine::new("test0", 1_500, StackConfig::new([address.parse().unwrap()]), 7).unwrap()
    }

    fn context() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    fn exchange(one: &mut Engine, other: &mut Engine) {
        let now = Instant::from_secs(1);
        let carry = |from: &mut Engine, to: &mut Engine| {
            from.poll(now);
            from.outbox().packets().for_each(|packet| to.handle_packet(now, packet));
            let any = !from.outbox().is_empty();
            from.outbox().clear();
            any
        };
        while carry(one, other) | carry(other, one) {}
    }

    fn is_woken(shared: &Shared) -> bool {
        std::pin::pin!(shared.wake.notified()).poll(&mut context()).is_ready()
    }

    /// Nothing else tells the peer that there is room again: it would wait until its own timer asks.
    #[test]
    fn reading_wakes_the_driver() {
        let shared = Arc::new(Shared::new(engine("192.0.2.1/24")));
        let mut far = engine("192.0.2.2/24");
        let address: SocketAddr = "192.0.2.2:80".parse().unwrap();
        far.listen(address).unwrap();
        let socket = shared.engine().connect(address, WITHIN).unwrap();
        exchange(&mut shared.engine(), &mut far);
        assert!(shared.engine().poll_connected(socket, WITHIN, &context()).is_ready());
        let accepted = far.accept(address).unwrap().unwrap();
        let mut stream = Stream::new(Arc::new(Handle { shared: Arc::clone(&shared) }), socket);
        assert!(far.poll_write(accepted, b"fill the window", &context()).is_ready());
        exchange(&mut shared.engine(), &mut far);
        assert!(!is_woken(&shared));
        let mut buffer = [0; 9];
        let mut buffer = ReadBuf::new(&mut buffer);
        assert!(Pin::new(&mut stream).poll_read(&mut context(), &mut buffer).is_ready());
        assert_eq!(buffer.filled(), b"fill the ");
        assert!(is_woken(&shared));
    }
}
