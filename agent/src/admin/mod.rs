//! Health, status and metrics over HTTP: on a Unix socket, and on an address for collectors. The socket alone captures
//! packets too: it is root's.

mod captures;
mod metrics;
mod status;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config;
use crate::flowlog::Recorder;
use crate::pcap::Captures;
use crate::policies::Policies;
use crate::serve::pods::Pods;

pub use status::{NodeStatus, PodStatus, PolicyStatus};

/// What the pages show.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub pods: Arc<Pods>,
    pub policies: Arc<Policies>,
    pub recorder: Arc<Recorder>,
    /// The plugin's socket is open and the attachments of the last agent are served.
    pub started: AtomicBool,
}

impl Node {
    /// Why pods cannot be added now; `None` when they can.
    pub fn unready(&self) -> Option<String> {
        if !self.started.load(Ordering::Acquire) {
            return Some("the agent is starting".to_owned());
        }
        let status = self.pods.status();
        (!status.ready).then_some(status.message)
    }
}

/// The open sockets; the Unix socket's path is removed on drop.
#[derive(Debug)]
pub struct Admin {
    unix: Option<(UnixListener, SocketPath)>,
    tcp: Option<TcpListener>,
}

impl Admin {
    /// Binds what is configured. Must run on the tokio runtime.
    pub async fn bind(settings: &config::Admin) -> anyhow::Result<Self> {
        let unix = settings.socket.as_deref().map(bind_unix).transpose()?;
        let tcp = match settings.metrics {
            Some(address) => Some(bind_tcp(address).await?),
            None => None,
        };
        Ok(Self { unix, tcp })
    }

    /// Serves until `stop` turns true.
    pub async fn serve(self, node: Arc<Node>, stop: watch::Receiver<bool>) {
        let mut servers = JoinSet::new();
        if let Some((listener, path)) = self.unix {
            let captures = Arc::new(Captures::default());
            let app = routes(node.clone()).merge(captures::routes(node.clone(), captures.clone()));
            let stop = stop.clone();
            servers.spawn(async move {
                let ending = async move {
                    stopped(stop).await;
                    // Else the server would wait for them.
                    captures.end_all();
                };
                let result = axum::serve(listener, app).with_graceful_shutdown(ending).await;
                drop(path);
                result
            });
        }
        if let Some(listener) = self.tcp {
            let app = routes(node);
            servers
                .spawn(async move { axum::serve(listener, app).with_graceful_shutdown(stopped(stop)).await });
        }
        while let Some(ended) = servers.join_next().await {
            if let Ok(Err(error)) = ended {
                tracing::warn!(%error, "the admin server ended");
            }
        }
    }
}

/// Removes the socket's file when it goes.
#[derive(Debug)]
struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn routes(node: Arc<Node>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .route("/status", get(status_page))
        .with_state(node)
}

async fn readyz(State(node): State<Arc<Node>>) -> Response {
    match node.unready() {
        None => "ok\n".into_response(),
        Some(mut reason) => {
            reason.push('\n');
            (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
        }
    }
}

async fn status_page(State(node): State<Arc<Node>>) -> Response {
    blocking(move || Json(NodeStatus::of(&node)).into_response()).await
}

async fn metrics_page(State(node): State<Arc<Node>>) -> Response {
    blocking(move || {
        let content_type =
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
        (content_type, metrics::render(&node)).into_response()
    })
    .await
}

/// A snapshot asks each worker and waits for its answer.
async fn blocking(page: impl FnOnce() -> Response + Send + 'static) -> Response {
    tokio::task::spawn_blocking(page)
        .await
        .unwrap_or_else(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response())
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The lock on stateDir keeps a second agent away, so a socket that is there is a dead agent's.
fn bind_unix(path: &Path) -> anyhow::Result<(UnixListener, SocketPath)> {
    let bind = || -> io::Result<UnixListener> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    let listener = bind().with_context(|| {
        format!(
            "{}: the admin socket cannot be opened; set admin.socket to another path or to none",
            path.display()
        )
    })?;
    Ok((listener, SocketPath(path.to_owned())))
}

async fn bind_tcp(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "{address}: the metrics address cannot be opened; set admin.metrics to another one or to none"
        )
    })
}
