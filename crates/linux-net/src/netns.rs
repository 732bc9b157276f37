//! Network namespaces: open, identify, enter on a thread of their own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// The calling thread's namespace, not that of the process's main thread.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// `NSFS_MAGIC`, include/uapi/linux/magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// A namespace that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    #[error("network namespace {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path} is not a network namespace")]
    NotANamespace { path: PathBuf },
    #[error("cannot enter network namespace {path}: {source}")]
    Enter { path: PathBuf, source: io::Error },
    #[error("cannot make a network namespace: {source}; it takes root or a user namespace")]
    Create { source: io::Error },
    #[error("cannot start a thread for network namespace {path}: {source}")]
    Thread { path: PathBuf, source: io::Error },
}

impl NetNsError {
    /// There is nothing at the path, or something that never was a namespace: a pod that is gone.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Open { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
            }
            Self::NotANamespace { .. } => true,
            Self::Enter { .. } | Self::Create { .. } | Self::Thread { .. } => false,
        }
    }
}

/// Identity of a namespace: device and inode of its nsfs entry, unique while the namespace lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetNsId {
    pub device: u64,
    pub inode: u64,
}

/// An open network namespace; keeps it alive.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    path: PathBuf,
    id: NetNsId,
}

impl NetNs {
    /// Opens a bind mount or a `/proc/PID/ns/net` link.
    pub fn open(path: &Path) -> Result<Self, NetNsError> {
        // A path is what somebody gave us: a FIFO there must not make us wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|errno| NetNsError::Open { path: path.to_owned(), source: errno.into() })?;
        Self::from_fd(fd, path)
    }

    /// Takes over a descriptor; `path` is what messages call it.
    pub fn from_fd(fd: OwnedFd, path: &Path) -> Result<Self, NetNsError> {
        let failed =
            |errno: rustix::io::Errno| NetNsError::Open { path: path.to_owned(), source: errno.into() };
        let is_nsfs = rustix::fs::fstatfs(&fd).map_err(failed)?.f_type as u64 == NSFS_MAGIC;
        if !is_nsfs || namespace_type(fd.as_fd()) != Some(libc::CLONE_NEWNET) {
            return Err(NetNsError::NotANamespace { path: path.to_owned() });
        }
        let found = rustix::fs::fstat(&fd).map_err(failed)?;
        let id = NetNsId { device: found.st_dev, inode: found.st_ino };
        Ok(Self { fd, path: path.to_owned(), id })
    }

    /// The calling thread's namespace.
    pub fn current() -> Result<Self, NetNsError> {
        Self::open(Path::new(CURRENT))
    }

    /// A new namespace without a name: it lives as long as the handle and what runs inside.
    pub fn create() -> Result<Self, NetNsError> {
        on_thread(Path::new("(new)"), || {
            // SAFETY: CLONE_NEWNET changes the network namespace of this thread only, which ends right after.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|errno| NetNsError::Create { source: errno.into() })?;
            Self::current()
        })?
    }

    pub fn id(&self) -> NetNsId {
        self.id
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The namespace of this process, or of the machine's init as far as it can be seen.
    pub fn is_host(&self) -> bool {
        [CURRENT, "/proc/1/ns/net"]
            .into_iter()
            .filter_map(|path| Self::open(Path::new(path)).ok())
            .any(|host| host.id == self.id)
    }

    /// Runs `inside` on a new thread in this namespace. The caller's thread never leaves its own, whatever happens.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
        on_thread(&self.path, || {
            move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|errno| NetNsError::Enter { path: self.path.clone(), source: errno.into() })?;
            Ok(inside())
        })?
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl TryFrom<NetNs> for File {
    type Error = io::Error;

    fn try_from(namespace: NetNs) -> io::Result<Self> {
        Ok(File::from(namespace.fd))
    }
}

/// Runs a closure on a thread that ends with it; a panic inside continues in the caller.
fn on_thread<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
    thread::scope(|scope| {
        let handle = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(|source| NetNsError::Thread { path: path.to_owned(), source })?;
        handle.join().map_err(|panic| std::panic::resume_unwind(panic))
    })
}

/// `NS_GET_NSTYPE` (ioctl_ns(2)): `None` when the descriptor is no namespace.
fn namespace_type(fd: BorrowedFd<'_>) -> Option<i32> {
    use std::os::fd::AsRawFd;
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request takes no argument and the descriptor is open for the whole call.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    (kind >= 0).then_some(kind)
}

#[cfg(test)]
mod tests;
