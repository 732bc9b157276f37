//! Notices that policy documents changed.
//!
//! Editors and Kubernetes' volumes replace files by rename, and a path may not exist yet: so folders are watched, that
//! of each file, and each folder itself with all below it, and every event in one of them leads to a new reading. Folders
//! that appear are watched before that reading, so that nothing can be written into them unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use crate::documents::{DEPTH, subfolders};

/// The documents are read once nothing happened for this long: an editor's several steps are one change.
const QUIET: Duration = Duration::from_millis(20);
/// ... and at the latest after this, whatever still happens: a change is in force within 100 ms.
const AT_MOST: Duration = Duration::from_millis(60);

/// Watches as long as it lives.
#[derive(Debug)]
pub struct DocumentWatch {
    watcher: RecommendedWatcher,
    events: mpsc::Receiver<()>,
    paths: Vec<PathBuf>,
    /// The folders that are watched. A path may come to mean another folder, which the watch would not notice.
    watched: BTreeMap<PathBuf, Identity>,
}

/// Device and inode.
type Identity = (u64, u64);

impl DocumentWatch {
    pub fn start(paths: &[PathBuf]) -> notify::Result<Self> {
        // One place: an event that finds it taken adds nothing to the one that waits.
        let (sender, events) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, is_change) {
                let _ = sender.try_send(());
            }
        })?;
        let mut watch = Self { watcher, events, paths: paths.to_owned(), watched: BTreeMap::new() };
        for folder in folders(paths) {
            watch.watcher.watch(&folder, RecursiveMode::NonRecursive)?;
            watch.watched.extend(identity(&folder).map(|identity| (folder, identity)));
        }
        watch.follow_folders();
        Ok(watch)
    }

    /// Waits for a change and for its end. Cancel safe: a change that was seen and not reported is seen again by the
    /// reading that follows any later one.
    pub async fn changed(&mut self) {
        if self.events.recv().await.is_none() {
            return std::future::pending().await;
        }
        let deadline = Instant::now() + AT_MOST;
        let quiet =
            async { while timeout(QUIET, self.events.recv()).await.is_ok_and(|event| event.is_some()) {} };
        let _ = timeout_at(deadline, quiet).await;
        self.follow_folders();
    }

    /// Watches the folders there are now, and no others.
    fn follow_folders(&mut self) {
        let mut found = BTreeSet::new();
        for folder in folders(&self.paths) {
            self.follow(folder, &mut found, 0);
        }
        let gone: Vec<PathBuf> =
            self.watched.keys().filter(|folder| !found.contains(*folder)).cloned().collect();
        for folder in gone {
            self.watched.remove(&folder);
            // A folder that is gone took its watch along.
            let _ = self.watcher.unwatch(&folder);
        }
    }

    /// First the watch and then the look into the folder: what comes in between is an event.
    fn follow(&mut self, folder: PathBuf, found: &mut BTreeSet<PathBuf>, depth: usize) {
        let Some(identity) = identity(&folder) else { return };
        self.watch(&folder, identity);
        if depth < DEPTH && self.paths.iter().any(|path| folder.starts_with(path)) {
            for below in subfolders(&folder) {
                self.follow(below, found, depth + 1);
            }
        }
        found.insert(folder);
    }

    fn watch(&mut self, folder: &Path, identity: Identity) {
        match self.watched.get(folder) {
            Some(known) if *known == identity => return,
            Some(_) => drop(self.watcher.unwatch(folder)),
            None => {}
        }
        match self.watcher.watch(folder, RecursiveMode::NonRecursive) {
            Ok(()) => drop(self.watched.insert(folder.to_owned(), identity)),
            // It may have gone again, which is an event of the folder that it was in.
            Err(_) if !folder.exists() => {}
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "a folder of policy documents is not watched; send HUP after edits in it");
            }
        }
    }
}

fn identity(folder: &Path) -> Option<Identity> {
    let metadata = fs::metadata(folder).ok().filter(fs::Metadata::is_dir)?;
    Some((metadata.dev(), metadata.ino()))
}

/// Reading a document is an event too, and must not lead to the next reading.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

fn folders(paths: &[PathBuf]) -> BTreeSet<PathBuf> {
    let folder = |path: &PathBuf| {
        if path.is_dir() {
            return path.clone();
        }
        match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            Some(_) | None => PathBuf::from("."),
        }
    };
    paths.iter().map(folder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    async fn sees(watch: &mut DocumentWatch) -> bool {
        timeout(DEADLINE, watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn every_way_of_changing_a_document_is_seen() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("policies");
        fs::create_dir(&folder).unwrap();
        let single = root.path().join("single.yaml");
        let mut watch = DocumentWatch::start(&[folder.clone(), single.clone()]).unwrap();

        fs::write(&single, "a file that was not there").unwrap();
        assert!(sees(&mut watch).await);
        fs::write(folder.join("new.tmp"), "a file").unwrap();
        assert!(sees(&mut watch).await);
        fs::rename(folder.join("new.tmp"), folder.join("new.yaml")).unwrap();
        assert!(sees(&mut watch).await);
        fs::remove_file(folder.join("new.yaml")).unwrap();
        assert!(sees(&mut watch).await);
    }

    #[tokio::test]
    async fn folders_below_are_watched_as_they_come_and_go() {
        let root = tempfile::tempdir().unwrap();
        let nested = root.path().join("a/b");
        fs::create_dir_all(&nested).unwrap();
        let mut watch = DocumentWatch::start(&[root.path().to_owned()]).unwrap();
        fs::write(nested.join("policy.yaml"), "text").unwrap();
        assert!(sees(&mut watch).await, "a file in a folder that was there");

        let later = root.path().join("later");
        fs::create_dir(&later).unwrap();
        assert!(sees(&mut watch).await, "a new folder");
        fs::write(later.join("policy.yaml"), "text").unwrap();
        assert!(sees(&mut watch).await, "a file in a folder that came later");

        // The same path is another folder now.
        fs::rename(&later, root.path().join("a/old")).unwrap();
        fs::create_dir(&later).unwrap();
        assert!(sees(&mut watch).await, "a folder in the place of another");
        fs::write(later.join("policy.yaml"), "text").unwrap();
        assert!(sees(&mut watch).await, "a file in the folder that took its place");
        assert_eq!(watch.watched.len(), 5, "{:?}", watch.watched);
        fs::remove_dir_all(root.path().join("a")).unwrap();
        assert!(sees(&mut watch).await, "folders that go");
        assert!(!watch.watched.contains_key(&nested), "{:?}", watch.watched);
    }

    #[tokio::test]
    async fn reading_a_document_is_no_change() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("policy.yaml");
        fs::write(&path, "text").unwrap();
        let mut watch = DocumentWatch::start(&[root.path().to_owned()]).unwrap();
        fs::read(&path).unwrap();
        // The write that follows is the first thing seen: its event comes after the read's in the same queue.
        fs::write(&path, "other").unwrap();
        assert!(sees(&mut watch).await);
        let events = [
            EventKind::Access(AccessKind::Open(AccessMode::Any)),
            EventKind::Access(AccessKind::Close(AccessMode::Read)),
        ];
        assert!(!events.into_iter().any(|kind| is_change(&Event::new(kind))));
    }

    #[test]
    fn a_file_is_watched_by_its_folder() {
        let expected = BTreeSet::from([PathBuf::from("."), PathBuf::from("/nonexistent")]);
        assert_eq!(folders(&["policy.yaml".into(), "/nonexistent/policy.yaml".into()]), expected);
    }
}
