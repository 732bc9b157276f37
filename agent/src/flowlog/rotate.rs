//! A log file that begins anew when it is full.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file bounded in size, with a bounded number of predecessors: `PATH.1` is the latest of them.
#[derive(Debug)]
pub struct RotatingFile {
    path: PathBuf,
    rotate: u64,
    keep: usize,
    file: BufWriter<File>,
    size: u64,
}

impl RotatingFile {
    /// Opens `path` for appending; makes its folder if need be.
    pub fn open(path: &Path, rotate: u64, keep: usize) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| named(folder, &error))?;
        }
        let (file, size) = append(path)?;
        Ok(Self { path: path.to_owned(), rotate, keep, file, size })
    }

    /// Appends `line`, in a new file if this one would grow beyond its bound. A line is never split.
    pub fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.size > 0 && self.size.saturating_add(length) > self.rotate {
            self.begin_anew()?;
        }
        self.file.write_all(line)?;
        self.size += length;
        Ok(())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// Opens the path again: whoever renamed the file keeps what was written to it.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file.flush()?;
        (self.file, self.size) = append(&self.path)?;
        Ok(())
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        self.file.flush()?;
        if self.keep == 0 {
            unless_gone(&self.path, std::fs::remove_file(&self.path))?;
        }
        for age in (1..=self.keep).rev() {
            let younger = if age == 1 { self.path.clone() } else { self.predecessor(age - 1) };
            unless_gone(&younger, std::fs::rename(&younger, self.predecessor(age)))?;
        }
        (self.file, self.size) = append(&self.path)?;
        Ok(())
    }

    fn predecessor(&self, age: usize) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{age}"));
        name.into()
    }
}

/// The log names what pods talk to: it is the owner's and its group's to read.
fn append(path: &Path) -> io::Result<(BufWriter<File>, u64)> {
    let open = || {
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        let size = file.metadata()?.len();
        Ok((BufWriter::new(file), size))
    };
    open().map_err(|error: io::Error| named(path, &error))
}

/// A file that somebody moved away need not be moved.
fn unless_gone(path: &Path, outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named(path, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
