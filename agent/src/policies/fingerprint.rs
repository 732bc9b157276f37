//! Whether files changed, without reading them.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::documents::{DEPTH, is_subfolder};

/// What `stat` says of every file under some paths; symbolic links are followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<PathBuf, Stamp>);

/// The change time moves with every write and rename, and nobody can set it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Fingerprint {
    /// Of the files `paths`, and of what is in the folders among them and below. What is not there counts as such.
    pub fn of(paths: &[PathBuf]) -> Self {
        let mut stamps = BTreeMap::new();
        for path in paths {
            if path.is_dir() {
                add_folder(&mut stamps, path, 0);
            } else {
                add(&mut stamps, path);
            }
        }
        Self(stamps)
    }
}

fn add_folder(stamps: &mut BTreeMap<PathBuf, Stamp>, folder: &Path, depth: usize) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        add(stamps, &path);
        if depth < DEPTH && is_subfolder(&path) {
            add_folder(stamps, &path, depth + 1);
        }
    }
}

fn add(stamps: &mut BTreeMap<PathBuf, Stamp>, path: &Path) {
    if let Ok(metadata) = fs::metadata(path) {
        stamps.insert(path.to_owned(), Stamp::from(&metadata));
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_and_a_look_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let policies = folder.path().join("policies");
        fs::create_dir(&policies).unwrap();
        let single = folder.path().join("single.yaml");
        let paths = [policies.clone(), single.clone()];
        let mut seen = vec![Fingerprint::of(&paths)];
        let mut changed = |what: &str| {
            let now = Fingerprint::of(&paths);
            assert!(!seen.contains(&now), "{what} was not seen");
            assert_eq!(now, Fingerprint::of(&paths));
            seen.push(now);
        };
        fs::write(&single, "a").unwrap();
        changed("a new file");
        fs::write(policies.join("a.yaml"), "a").unwrap();
        changed("a file in a folder");
        fs::write(folder.path().join("new"), "a").unwrap();
        fs::rename(folder.path().join("new"), policies.join("a.yaml")).unwrap();
        changed("a replaced file of the same size");
        fs::remove_file(&single).unwrap();
        changed("a removed file");
        fs::create_dir_all(policies.join("team/web")).unwrap();
        changed("new folders");
        fs::write(policies.join("team/web/a.yaml"), "a").unwrap();
        changed("a file in a folder of a folder");

        let before = Fingerprint::of(&paths);
        fs::write(folder.path().join("unrelated"), "a").unwrap();
        fs::read(policies.join("a.yaml")).unwrap();
        assert_eq!(before, Fingerprint::of(&paths));
    }
}
