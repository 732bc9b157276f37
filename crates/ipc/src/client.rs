//! The plugin's side: connect, ask, get the answer, each before a deadline.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::frame::FrameError;
use crate::message::{Failure, Request, Response};
use crate::socket::Connection;

/// The agent could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no agent answers at {path}: {source}; is tunproxy-agent running on this node, with this cniSocket?"
    )]
    Unreachable { path: PathBuf, source: io::Error },
    #[error(
        "the process listening at {path} runs as uid {uid}, which is neither root nor this process's user"
    )]
    Untrusted { path: PathBuf, uid: u32 },
    #[error("the agent at {path} did not answer in time")]
    TimedOut { path: PathBuf },
    #[error("the agent at {path} closed the connection without an answer")]
    Closed { path: PathBuf },
    #[error("talking to the agent at {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("talking to the agent at {path}: {source}")]
    Frame { path: PathBuf, source: FrameError },
    #[error("the agent refused: {0}")]
    Refused(Failure),
}

/// A connection to the agent.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    path: PathBuf,
    deadline: Instant,
}

impl Client {
    /// Connects to the agent; this and every later call end at `deadline`.
    pub fn connect(path: &Path, deadline: Instant) -> Result<Self, ClientError> {
        let unreachable = |source: io::Error| ClientError::Unreachable { path: path.to_owned(), source };
        let address = SocketAddrUnix::new(path).map_err(|errno| unreachable(errno.into()))?;
        let fd = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|errno| unreachable(errno.into()))?;
        let client = Self { connection: fd.into(), path: path.to_owned(), deadline };
        // A Unix connect waits for room in the backlog, at most as long as a send may.
        client.arm(Timeout::Send)?;
        net::connect(&client.connection, &address).map_err(|errno| {
            let source = io::Error::from(errno);
            if is_timeout(&source) { client.timed_out() } else { unreachable(source) }
        })?;
        let peer = client.connection.peer().map_err(|source| client.io(source))?;
        if !peer.is_trusted() {
            return Err(ClientError::Untrusted { path: client.path, uid: peer.uid });
        }
        Ok(client)
    }

    /// One question and its answer; [`Response::Error`] comes back as [`ClientError::Refused`].
    pub fn call(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Response, ClientError> {
        self.arm(Timeout::Send)?;
        self.connection.send_request(request, fds).map_err(|source| self.io(source))?;
        self.arm(Timeout::Recv)?;
        let packet = self.connection.recv().map_err(|source| self.io(source))?;
        if packet.is_end() {
            return Err(ClientError::Closed { path: self.path.clone() });
        }
        match packet.response() {
            Ok(Response::Error(failure)) => Err(ClientError::Refused(failure)),
            Ok(response) => Ok(response),
            Err(source) => Err(ClientError::Frame { path: self.path.clone(), source }),
        }
    }

    /// Gives the next blocking call what is left until the deadline.
    fn arm(&self, direction: Timeout) -> Result<(), ClientError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left < MIN_WAIT {
            return Err(self.timed_out());
        }
        set_socket_timeout(&self.connection, direction, Some(left)).map_err(|errno| self.io(errno.into()))
    }

    fn io(&self, source: io::Error) -> ClientError {
        if is_timeout(&source) {
            return self.timed_out();
        }
        ClientError::Io { path: self.path.clone(), source }
    }

    fn timed_out(&self) -> ClientError {
        ClientError::TimedOut { path: self.path.clone() }
    }
}

/// A socket timeout of zero would mean "for ever"; the kernel's unit is the microsecond.
const MIN_WAIT: Duration = Duration::from_micros(1);

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests;
