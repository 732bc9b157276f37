//! The socket on which the CNI plugin asks: one request, one answer, many at once.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, watch};
use tunproxy_ipc::{Connection, ErrorCode, Failure, FrameError, Listener, Packet, Response};

use super::pods::{Answer, Pods};

/// Plugins served at once; more wait in the kernel's backlog.
const CONNECTIONS: usize = 256;
/// A plugin asks at once and ends; one that says nothing for this long is cut off.
const SILENCE: Duration = Duration::from_secs(30);
/// Between two accepts that failed, when descriptors are exhausted for example.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Serves `listener` until `stop` turns true, then lets the requests under way finish.
pub async fn serve(listener: Listener, pods: Arc<Pods>, mut stop: watch::Receiver<bool>) -> io::Result<()> {
    let listener = watched(listener)?;
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accept(&listener) => accepted,
        };
        match accepted {
            Ok(Some(connection)) => {
                let pods = pods.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(connection, pods).await {
                        tracing::debug!(%error, "a plugin's connection broke");
                    }
                    drop(permit);
                });
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection of the plugin can be accepted");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
    let all = u32::try_from(CONNECTIONS).expect("a small number");
    // Requests under way hold a permit each; a plugin that is silent does not hold up the stop.
    let _ = tokio::time::timeout(Duration::from_secs(5), permits.acquire_many(all)).await;
    Ok(())
}

/// The next connection, or `None` if the peer is not to be talked to.
async fn accept(listener: &AsyncFd<Listener>) -> io::Result<Option<Connection>> {
    let (connection, peer) = listener.async_io(tokio::io::Interest::READABLE, Listener::accept).await?;
    if peer.is_trusted() {
        return Ok(Some(connection));
    }
    tracing::warn!(uid = peer.uid, pid = peer.pid, "a stranger on the plugin's socket was refused");
    Ok(None)
}

async fn converse(connection: Connection, pods: Arc<Pods>) -> io::Result<()> {
    let connection = watched(connection)?;
    loop {
        let received = connection.async_io(tokio::io::Interest::READABLE, Connection::recv);
        let Ok(packet) = tokio::time::timeout(SILENCE, received).await else { return Ok(()) };
        let packet = packet?;
        if packet.is_end() {
            return Ok(());
        }
        let Answer { response, unconfirmed } = answer(packet, pods.clone()).await;
        let sent = connection
            .async_io(tokio::io::Interest::WRITABLE, |connection| connection.send_response(&response))
            .await;
        if let (Err(_), Some(unconfirmed)) = (&sent, unconfirmed) {
            let pods = pods.clone();
            tokio::task::spawn_blocking(move || pods.abandon(&unconfirmed)).await?;
        }
        sent?;
    }
}

/// Attachments touch the disk and other namespaces: off the async threads with them.
async fn answer(packet: Packet, pods: Arc<Pods>) -> Answer {
    let request = match packet.request() {
        Ok(request) => request,
        Err(error) => return failed(malformed(&error)),
    };
    let handled = tokio::task::spawn_blocking(move || pods.handle(request, packet.fds)).await;
    match handled {
        Ok(Ok(answer)) => answer,
        Ok(Err(failure)) => {
            tracing::warn!(
                message = failure.message,
                code = failure.code.as_str(),
                "a plugin's request failed"
            );
            failed(failure)
        }
        Err(error) => failed(Failure {
            code: ErrorCode::Internal,
            message: format!("the agent failed while it served the request: {error}; see its log"),
        }),
    }
}

fn failed(failure: Failure) -> Answer {
    Answer { response: Response::Error(failure), unconfirmed: None }
}

/// Both types own their descriptor and never replace it, which is what `AsyncFd::register` asks its caller to promise
/// with an `unsafe` that this crate does without.
#[expect(deprecated, reason = "the sound replacement is an unsafe function")]
fn watched<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::new(inner)
}

fn malformed(error: &FrameError) -> Failure {
    let code = match error {
        FrameError::Version { .. } => ErrorCode::ProtocolMismatch,
        FrameError::TooLarge { .. } | FrameError::Malformed { .. } => ErrorCode::BadRequest,
    };
    Failure { code, message: error.to_string() }
}
