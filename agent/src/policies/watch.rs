//! Notices that policy documents changed.
//!
//! Editors and Kubernetes' volumes replace files by rename, and a path may not exist yet: so folders are watched, that
//! of each file and each folder itself, and every event in one of them leads to a new reading.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

/// The documents are read once nothing happened for this long: an editor's several steps are one change.
const QUIET: Duration = Duration::from_millis(20);
/// ... and at the latest after this, whatever still happens: a change is in force within 100 ms.
const AT_MOST: Duration = Duration::from_millis(60);

/// Watches as long as it lives.
#[derive(Debug)]
pub struct DocumentWatch {
    /// Held for its drop, which ends the watching.
    _watcher: RecommendedWatcher,
    events: mpsc::Receiver<()>,
}

impl DocumentWatch {
    pub fn start(paths: &[PathBuf]) -> notify::Result<Self> {
        // One place: an event that finds it taken adds nothing to the one that waits.
        let (sender, events) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, is_change) {
                let _ = sender.try_send(());
            }
        })?;
        for folder in folders(paths) {
            watcher.watch(&folder, RecursiveMode::NonRecursive)?;
        }
        Ok(Self { _watcher: watcher, events })
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
    }
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
    use std::fs;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

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
