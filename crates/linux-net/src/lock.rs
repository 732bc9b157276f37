//! One lock for each name, all in one file, held by a process and by the children that it starts meanwhile.
//!
//! A lock is an open-file-description lock (fcntl(2), F_OFD_SETLK) on the octet whose place is the name's hash. Nothing is
//! written, so nothing grows and nothing has to be removed; it ends with the last process that holds its descriptor,
//! however that one ends. Two names of one hash only wait for each other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use rustix::io::{FdFlags, fcntl_setfd};

/// A lock that is held. Children started while it lives hold it too, until they end.
#[derive(Debug)]
pub struct NameLock {
    _file: File,
}

impl NameLock {
    /// Waits until nobody else holds the lock of `name` in the file at `path`, which is made if need be; `None` when that
    /// does not happen before `end`.
    pub fn acquire(path: &Path, name: &str, end: Instant) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let place = place_of(name);
        if !lock(file.as_raw_fd(), libc::F_OFD_SETLK, place)? && !wait(&file, place, end)? {
            return Ok(None);
        }
        // From here on children inherit it, and with it the lock.
        fcntl_setfd(&file, FdFlags::empty())?;
        Ok(Some(Self { _file: file }))
    }
}

/// The kernel wakes a thread of its own, because a wait for a lock has no time-out.
fn wait(file: &File, place: i64, end: Instant) -> io::Result<bool> {
    let same = file.try_clone()?;
    let (sender, outcome) = mpsc::channel();
    thread::spawn(move || {
        let locked = loop {
            match lock(same.as_raw_fd(), libc::F_OFD_SETLKW, place) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let _ = sender.send(locked);
    });
    outcome.recv_timeout(end.saturating_duration_since(Instant::now())).unwrap_or(Ok(false))
}

/// `false`: somebody else holds it.
fn lock(file: RawFd, command: libc::c_int, place: i64) -> io::Result<bool> {
    let range = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: place,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the command takes a pointer to a flock, which lives until the call is over.
    match unsafe { libc::fcntl(file, command, &raw const range) } {
        -1 => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
            error => Err(error),
        },
        _ => Ok(true),
    }
}

/// FNV-1a, which is the same in every build, without its sign and a place below the last.
fn place_of(name: &str) -> i64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(octet)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash >> 2) as i64
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    const LIMIT: Duration = Duration::from_mins(1);

    fn take(path: &Path, name: &str, patience: Duration) -> Option<NameLock> {
        NameLock::acquire(path, name, Instant::now() + patience).unwrap()
    }

    #[test]
    fn each_name_has_a_lock_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = take(&path, "a=eth0", LIMIT).unwrap();
        assert!(take(&path, "a=eth0", Duration::ZERO).is_none());
        assert!(take(&path, "a=eth0", Duration::from_millis(20)).is_none());
        take(&path, "a=eth1", LIMIT).unwrap();
        drop(first);
        take(&path, "a=eth0", LIMIT).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 0);
    }

    #[test]
    fn a_child_holds_it_until_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = take(&path, "a", LIMIT).unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        drop(lock);
        assert!(take(&path, "a", Duration::from_millis(20)).is_none());
        let waiting = thread::spawn({
            let path = path.clone();
            move || take(&path, "a", LIMIT).is_some()
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(waiting.join().unwrap());
    }
}
