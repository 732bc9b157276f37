//! The attachments on disk: what lets a restarted agent serve the pods that are already there.
//!
//! One JSON file for each attachment, written under a temporary name, synced and renamed, so that a file is whole or
//! absent. A lock keeps a second agent off the same folder.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use tunproxy_ipc::{Attachment, AttachmentKey};

const SUFFIX: &str = ".json";
const LOCK: &str = "lock";
/// A container id is 64 hex digits; 200 leaves room for other runtimes and for the interface within NAME_MAX.
const MAX_PART: usize = 200;

/// The folder of attachments, locked for this process.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// Holds the lock as long as it is open.
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{}: {source}; stateDir must be a folder this user can write", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is in use by another agent; stop it, or give this one a stateDir of its own", path.display())]
    InUse { path: PathBuf },
    #[error(
        "the {what} {text:?} cannot name a file: it must be 1-{MAX_PART} letters, digits, '_', '.', '-', not begin with '.'"
    )]
    BadKey { what: &'static str, text: String },
}

/// A file that holds no attachment; it is left for a person to look at.
#[derive(Debug)]
pub struct Unreadable {
    pub path: PathBuf,
    pub reason: String,
}

impl Store {
    /// Makes the folder if need be and locks it.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let folder = state_dir.join("attachments");
        let failed = |source| StoreError::Io { path: folder.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
        let path = state_dir.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| StoreError::Io { path: path.clone(), source })?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { folder, _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse { path: state_dir.to_owned() }),
            Err(errno) => Err(StoreError::Io { path, source: errno.into() }),
        }
    }

    /// Writes `attachment`; when this returns, it survives the process and the machine.
    pub fn save(&self, attachment: &Attachment) -> Result<(), StoreError> {
        let path = self.path_of(&attachment.key)?;
        let temporary = path.with_extension("tmp");
        let text = serde_json::to_vec_pretty(attachment).expect("an attachment is plain data");
        let write = || {
            let mut file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|source| StoreError::Io { path, source })
    }

    /// Forgets the attachment; one that is not there is forgotten already.
    pub fn remove(&self, key: &AttachmentKey) -> Result<(), StoreError> {
        let path = self.path_of(key)?;
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::Io { path, source }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Everything that was kept, and what cannot be read. Torn temporary files are removed.
    pub fn load(&self) -> Result<(Vec<Attachment>, Vec<Unreadable>), StoreError> {
        let failed = |source| StoreError::Io { path: self.folder.clone(), source };
        let mut attachments = Vec::new();
        let mut unreadable = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            match path.extension().and_then(OsStr::to_str) {
                Some("tmp") => drop(fs::remove_file(&path)),
                Some("json") => match read(&path) {
                    Ok(attachment) => attachments.push(attachment),
                    Err(reason) => unreadable.push(Unreadable { path, reason }),
                },
                Some(_) | None => {}
            }
        }
        attachments.sort_by(|a, b| a.key.cmp(&b.key));
        Ok((attachments, unreadable))
    }

    /// `@` stands in neither part, so no two keys share a file.
    fn path_of(&self, key: &AttachmentKey) -> Result<PathBuf, StoreError> {
        check("container id", &key.container_id)?;
        check("interface name", &key.ifname)?;
        Ok(self.folder.join(format!("{}@{}{SUFFIX}", key.container_id, key.ifname)))
    }
}

fn read(path: &Path) -> Result<Attachment, String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

fn check(what: &'static str, text: &str) -> Result<(), StoreError> {
    let fine = (1..=MAX_PART).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if fine { Ok(()) } else { Err(StoreError::BadKey { what, text: text.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tunproxy_ipc::{Mode, NamespaceId, PodIdentity};

    use super::*;

    fn attachment(container_id: &str, ifname: &str) -> Attachment {
        Attachment {
            key: AttachmentKey { container_id: container_id.into(), ifname: ifname.into() },
            network: "net".into(),
            mode: Mode::Chained,
            tun_name: "tun0".into(),
            queues: 1,
            mtu: 1500,
            netns_path: "/run/netns/x".into(),
            netns: NamespaceId { device: 4, inode: 4_026_532_000 },
            addresses: Vec::new(),
            pod: PodIdentity { namespace: "shop".into(), ..PodIdentity::default() },
        }
    }

    #[test]
    fn what_is_saved_is_there_after_a_restart_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (a, b) = (attachment("abc", "eth0"), attachment("abc", "net1"));
        store.save(&b).unwrap();
        store.save(&a).unwrap();
        store.save(&a).unwrap();
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.load().unwrap().0, [a.clone(), b.clone()]);
        store.remove(&a.key).unwrap();
        store.remove(&a.key).unwrap();
        assert_eq!(store.load().unwrap().0, [b]);
    }

    #[test]
    fn a_second_agent_is_refused_while_the_first_lives() {
        let folder = tempfile::tempdir().unwrap();
        let first = Store::open(folder.path()).unwrap();
        let error = Store::open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
        drop(first);
        Store::open(folder.path()).unwrap();
    }

    #[test]
    fn a_broken_file_is_reported_and_a_torn_one_swept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.save(&attachment("abc", "eth0")).unwrap();
        fs::write(folder.path().join("attachments/bad@eth0.json"), "{").unwrap();
        fs::write(folder.path().join("attachments/torn@eth0.tmp"), "{").unwrap();
        let (attachments, unreadable) = store.load().unwrap();
        assert_eq!(attachments.len(), 1);
        assert_eq!(unreadable.len(), 1);
        assert!(unreadable[0].path.ends_with("bad@eth0.json"));
        assert!(!folder.path().join("attachments/torn@eth0.tmp").exists());
    }

    proptest! {
        #[test]
        fn no_key_writes_outside_the_folder(container_id in ".{0,20}|[./@a-z]{1,12}", ifname in "[./@a-z]{0,12}") {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let saved = store.save(&attachment(&container_id, &ifname)).is_ok();
            let entries = fs::read_dir(folder.path()).unwrap().count();
            prop_assert_eq!(entries, 2, "the lock and the folder of attachments");
            prop_assert_eq!(store.load().unwrap().0.len(), usize::from(saved));
        }
    }
}
