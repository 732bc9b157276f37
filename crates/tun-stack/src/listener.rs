//! Accepting connections.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::stack::Handle;
use crate::stream::Stream;

/// Accepts connections to one address. Dropped, it resets those that nobody has accepted.
#[derive(Debug)]
pub struct Listener {
    pub(crate) handle: Arc<Handle>,
    pub(crate) address: SocketAddr,
    pub(crate) ready: Arc<Notify>,
}

impl Listener {
    /// The next connection and its peer. Several tasks may wait; dropping the future loses nothing. Fails when the stack
    /// has ended.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        loop {
            let mut ready = pin!(self.ready.notified());
            // Before the look, so that nothing that comes after it is missed.
            ready.as_mut().enable();
            if let Some(socket) = self.handle.change(|engine, _| engine.accept(self.address))? {
                let stream = Stream::new(Arc::clone(&self.handle), socket);
                let peer = stream.peer_addr();
                return Ok((stream, peer));
            }
            ready.await;
        }
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.handle.change(|engine, now| engine.unlisten(now, self.address));
    }
}
