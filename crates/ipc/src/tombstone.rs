//! Removals that happened while no agent was there: files that the plugin leaves and the agent drains.
//!
//! One file per attachment below `<stateDir>/tombstones`. Each is written under a temporary name, synced and renamed,
//! so a reader sees whole files only. Names that begin with a dot are unfinished.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::message::AttachmentKey;

/// Most tombstones kept. An agent that is down for longer finds dead attachments by their missing namespaces anyway.
pub const MAX_TOMBSTONES: usize = 4096;

/// Longest file that is read: a container id and an interface name in JSON.
const MAX_FILE: u64 = 4096;

/// A tombstone could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum TombstoneError {
    #[error("tombstone directory {path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("tombstone {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path} holds {MAX_TOMBSTONES} tombstones already: no agent has drained them")]
    Full { path: PathBuf },
}

/// The directory of tombstones.
#[derive(Debug, Clone)]
pub struct Tombstones {
    directory: PathBuf,
}

impl Tombstones {
    /// `state_dir` is the plugin's `stateDir`. Nothing is made yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { directory: state_dir.join("tombstones") }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Remembers a removal; again for the same key is no more than once.
    pub fn write(&self, key: &AttachmentKey) -> Result<(), TombstoneError> {
        let directory = |source| TombstoneError::Directory { path: self.directory.clone(), source };
        fs::create_dir_all(&self.directory).map_err(directory)?;
        let path = self.directory.join(file_name(key));
        if !path.exists() && self.names()?.len() >= MAX_TOMBSTONES {
            return Err(TombstoneError::Full { path: self.directory.clone() });
        }
        let text = serde_json::to_vec(key).expect("a key is plain strings");
        write_whole(&self.directory, &path, &text).map_err(|source| TombstoneError::File { path, source })
    }

    /// All removals that were remembered. A file that is not a tombstone is left out, and removed.
    pub fn read(&self) -> Result<Vec<AttachmentKey>, TombstoneError> {
        let mut keys = Vec::new();
        for name in self.names()? {
            let path = self.directory.join(&name);
            match read_bounded(&path).map(|text| serde_json::from_slice(&text)) {
                Ok(Ok(key)) => keys.push(key),
                Ok(Err(_)) => drop(fs::remove_file(&path)),
                // Drained by somebody else in between.
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(TombstoneError::File { path, source }),
            }
        }
        Ok(keys)
    }

    /// Forgets a removal after it has been carried out. Not there is a success.
    pub fn remove(&self, key: &AttachmentKey) -> Result<(), TombstoneError> {
        let path = self.directory.join(file_name(key));
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(TombstoneError::File { path, source })
            }
            _ => Ok(()),
        }
    }

    fn names(&self) -> Result<Vec<String>, TombstoneError> {
        let failed = |source| TombstoneError::Directory { path: self.directory.clone(), source };
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(failed(source)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            names.extend(name.into_string().ok().filter(|name| !name.starts_with('.')));
        }
        Ok(names)
    }
}

/// Both parts hold no slash; an equals sign is in neither.
fn file_name(key: &AttachmentKey) -> String {
    format!("{}={}.json", key.container_id, key.ifname)
}

fn write_whole(directory: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!(".{}", std::process::id()));
    let mut file = File::create(&temporary)?;
    let written =
        file.write_all(text).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    File::open(directory)?.sync_all()
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> AttachmentKey {
        AttachmentKey { container_id: id.into(), ifname: "eth0".into() }
    }

    #[test]
    fn what_is_written_is_read_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let tombstones = Tombstones::new(dir.path());
        assert_eq!(tombstones.read().unwrap(), []);
        for id in ["a", "b", "a"] {
            tombstones.write(&key(id)).unwrap();
        }
        let mut found = tombstones.read().unwrap();
        found.sort();
        assert_eq!(found, [key("a"), key("b")]);
        tombstones.remove(&key("a")).unwrap();
        tombstones.remove(&key("a")).unwrap();
        assert_eq!(tombstones.read().unwrap(), [key("b")]);
    }

    #[test]
    fn torn_and_foreign_files_do_not_stop_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let tombstones = Tombstones::new(dir.path());
        tombstones.write(&key("a")).unwrap();
        fs::write(tombstones.directory().join("b=eth0.json"), "{\"containerId\":").unwrap();
        fs::write(tombstones.directory().join(".4711"), "{").unwrap();
        assert_eq!(tombstones.read().unwrap(), [key("a")]);
        assert!(!tombstones.directory().join("b=eth0.json").exists());
    }

    #[test]
    fn the_number_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let tombstones = Tombstones::new(dir.path());
        fs::create_dir_all(tombstones.directory()).unwrap();
        for n in 0..MAX_TOMBSTONES {
            fs::write(tombstones.directory().join(format!("c{n}=eth0.json")), "x").unwrap();
        }
        assert!(matches!(tombstones.write(&key("new")).unwrap_err(), TombstoneError::Full { .. }));
        tombstones.write(&key("c7")).unwrap();
    }
}
