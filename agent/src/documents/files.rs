//! Which files there are, and their text.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::yaml::Mistake;

/// More than 20,000 rules fit in, and a mistaken path to something huge does no harm.
const LARGEST: u64 = 4 << 20;
/// Folders in folders; links can make a circle.
pub(crate) const DEPTH: usize = 16;

pub(super) struct Found {
    pub files: Vec<PathBuf>,
    pub mistakes: Vec<Mistake>,
}

pub(super) fn find(paths: &[PathBuf]) -> Found {
    let mut found = Found { files: Vec::new(), mistakes: Vec::new() };
    for path in paths {
        if path.is_dir() {
            found.folder(path, 0);
        } else {
            found.file(path.clone());
        }
    }
    found
}

impl Found {
    fn file(&mut self, file: PathBuf) {
        if !self.files.contains(&file) {
            self.files.push(file);
        }
    }

    fn folder(&mut self, folder: &Path, depth: usize) {
        if depth == DEPTH {
            self.wrong(folder, format!("lies more than {DEPTH} folders deep; is there a circle of links?"));
            return;
        }
        let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.wrong(folder, format!("cannot be read: {error}")),
        };
        let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            if is_hidden(&path) {
                continue;
            }
            if path.is_dir() {
                self.folder(&path, depth + 1);
            } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
                self.file(path);
            }
        }
    }

    fn wrong(&mut self, path: &Path, message: String) {
        self.mistakes.push(Mistake { file: path.to_owned(), line: 0, key: String::new(), message });
    }
}

/// The folders right below `folder` that are read with it.
pub(crate) fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| is_subfolder(path)).collect()
}

/// Whether `path`, found in a folder, is a folder that is read with it.
pub(crate) fn is_subfolder(path: &Path) -> bool {
    !is_hidden(path) && path.is_dir()
}

/// Kubernetes mounts a ConfigMap as links into hidden folders; editors leave hidden files.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

pub(super) fn read(file: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|open| open.take(LARGEST + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!("is larger than {} MiB; split it", LARGEST >> 20));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.split(|byte| *byte == b'\n').count();
        format!("is not UTF-8 text (line {line}); save it as UTF-8")
    })
}
