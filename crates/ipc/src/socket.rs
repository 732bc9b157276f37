//! The seqpacket socket: one datagram is one frame with its descriptors.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::frame::{FrameError, MAX_FRAME, decode_request, decode_response, encode_request, encode_response};
use crate::message::{Request, Response};

/// Most descriptors of one frame: a network namespace and 32 queues.
pub const MAX_FDS: usize = 33;

/// Requests that may wait in the kernel for `accept`: one parallel ADD of every pod of a large node.
const BACKLOG: i32 = 256;

/// The socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("socket path {path} is longer than the 107 bytes a Unix socket may have: choose a shorter one")]
    PathTooLong { path: PathBuf },
    #[error("cannot listen on {path}: {source}")]
    Listen { path: PathBuf, source: io::Error },
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    pub gid: u32,
    /// 0: in a pid namespace that cannot be seen from here.
    pub pid: i32,
}

impl Peer {
    /// Only root and the user this process runs as are talked to.
    pub fn is_trusted(self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

/// A received datagram. Empty means that the peer closed the connection.
#[derive(Debug)]
pub struct Packet {
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Packet {
    pub fn is_end(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn request(&self) -> Result<Request, FrameError> {
        decode_request(&self.bytes)
    }

    pub fn response(&self) -> Result<Response, FrameError> {
        decode_response(&self.bytes)
    }
}

/// One end of a connection. `recv` and `send` fail with `WouldBlock` when the descriptor is non-blocking and the
/// call would wait.
#[derive(Debug)]
pub struct Connection {
    fd: OwnedFd,
}

impl Connection {
    /// Two connected, blocking ends; the second is meant for a child process.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self { fd: a }, Self { fd: b }))
    }

    pub fn peer(&self) -> io::Result<Peer> {
        // nix, not rustix: the pid is 0 when the peer lives in a pid namespace this process cannot see (an agent in
        // a pod, the plugin on the host), and rustix's type has no such value.
        let credentials = getsockopt(&self.fd, sockopt::PeerCredentials)?;
        Ok(Peer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() })
    }

    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.fd, nonblocking)?)
    }

    /// Receives one datagram. A truncated one is an error: it is not a frame of ours.
    pub fn recv(&self) -> io::Result<Packet> {
        let mut bytes = vec![0; MAX_FRAME];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = net::recvmsg(
            &self.fd,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        // The control buffer's alignment has room for a descriptor more than asked.
        if fds.len() > MAX_FDS || received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("datagram exceeds {MAX_FRAME} bytes or {MAX_FDS} descriptors"),
            ));
        }
        bytes.truncate(received.bytes);
        Ok(Packet { bytes, fds })
    }

    pub fn send(&self, frame: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits =
            fds.len() <= MAX_FDS && (fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
        if !fits {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} descriptors exceed the limit of {MAX_FDS}", fds.len()),
            ));
        }
        net::sendmsg(&self.fd, &[IoSlice::new(frame)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    pub fn send_request(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send(&encode_request(request).map_err(invalid_input)?, fds)
    }

    pub fn send_response(&self, response: &Response) -> io::Result<()> {
        self.send(&encode_response(response).map_err(invalid_input)?, &[])
    }
}

impl From<OwnedFd> for Connection {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<Connection> for OwnedFd {
    fn from(connection: Connection) -> Self {
        connection.fd
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A non-blocking listening socket. Its path is removed on drop, unless another listener took the path over.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
    /// Device and inode of the socket file: tells ours from a successor's.
    identity: (u64, u64),
}

impl Listener {
    /// Listens on `path` with mode 0600. The socket is bound under a temporary name and renamed over `path`: what a
    /// dead listener left is replaced, and there is no moment at which the path is absent.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let temporary = temporary_name(path);
        let address = SocketAddrUnix::new(&temporary)
            .map_err(|_| SocketError::PathTooLong { path: path.to_owned() })?;
        let failed = |source: io::Error| SocketError::Listen { path: path.to_owned(), source };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|errno| failed(errno.into()))?;
        let _ = fs::remove_file(&temporary);
        net::bind(&fd, &address).map_err(|errno| failed(errno.into()))?;
        let identity = publish(&fd, &temporary, path).map_err(|source| {
            let _ = fs::remove_file(&temporary);
            failed(source)
        })?;
        Ok(Self { fd, path: path.to_owned(), identity })
    }

    /// Accepts one connection, non-blocking. The caller drops it unless [`Peer::is_trusted`].
    pub fn accept(&self) -> io::Result<(Connection, Peer)> {
        let fd = net::accept_with(&self.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        let connection = Connection { fd };
        let peer = connection.peer()?;
        Ok((connection, peer))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Listens first and appears under the final name last: who sees the path can connect.
fn publish(fd: &OwnedFd, temporary: &Path, path: &Path) -> io::Result<(u64, u64)> {
    fs::set_permissions(temporary, fs::Permissions::from_mode(0o600))?;
    net::listen(fd, BACKLOG)?;
    let found = fs::symlink_metadata(temporary)?;
    fs::rename(temporary, path)?;
    Ok((found.dev(), found.ino()))
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    PathBuf::from(name)
}

fn invalid_input(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

#[cfg(test)]
mod tests;
