//! What lies between rtnetlink, which is asynchronous, and callers that are not.

use std::future::Future;
use std::io;
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::proto::Connection;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A connection and the runtime it lives on, which has no thread: it runs while somebody waits for it.
#[derive(Debug)]
pub(super) struct Driver {
    /// Present until dropped.
    runtime: Option<Runtime>,
    connection: JoinHandle<()>,
}

impl Driver {
    /// `open` makes the connection, in the calling thread's namespace, and whatever comes with it.
    pub fn start<T>(
        open: impl FnOnce() -> io::Result<(Connection<RouteNetlinkMessage>, T)>,
    ) -> io::Result<(Self, T)> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let (connection, rest) = {
            let _context = runtime.enter();
            open()?
        };
        let connection = runtime.spawn(connection);
        Ok((Self { runtime: Some(runtime), connection }, rest))
    }

    /// Waits for `future`, at most this long.
    pub fn wait<T: Send>(&self, patience: Duration, future: impl Future<Output = T> + Send) -> io::Result<T> {
        let limited = async { timeout(patience, future).await };
        let outcome = if Handle::try_current().is_err() {
            self.runtime().block_on(limited)
        } else {
            // A thread that runs tasks may not block on another runtime; a new one may.
            thread::scope(|scope| {
                let waiter = thread::Builder::new().name("netlink".into());
                let waiter = waiter.spawn_scoped(scope, || self.runtime().block_on(limited))?;
                Ok::<_, io::Error>(waiter.join().unwrap_or_else(|panic| resume_unwind(panic)))
            })?
        };
        outcome.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {patience:?}")))
    }

    /// The connection's socket failed: nothing is sent or received any more.
    pub fn is_broken(&self) -> bool {
        self.connection.is_finished()
    }

    #[cfg(test)]
    pub fn abort(&self) {
        self.connection.abort();
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("present until dropped")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Dropping a runtime waits for its blocking tasks, which is not allowed inside another one; this has none.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
