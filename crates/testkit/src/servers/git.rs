//! A git repository to clone over HTTP: git's "dumb" protocol, which any web server that serves files speaks.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process::run;

#[derive(Clone, Debug)]
pub struct GitRepository {
    head: String,
}

impl GitRepository {
    /// Makes `directory`/NAME.git with a few hundred objects, packed and loose, ready to be served.
    pub fn create(directory: &Path, name: &str) -> Result<Self> {
        let work = directory.join(format!("{name}.work"));
        fs::create_dir_all(work.join("folder"))?;
        let git = |arguments: &[&str]| {
            run(Command::new("git")
                .arg("-C")
                .arg(&work)
                .args(["-c", "user.name=t", "-c", "user.email=t@t"])
                .args(arguments))
        };
        git(&["init", "-q", "-b", "main"])?;
        for index in 0..100 {
            fs::write(work.join(format!("folder/{index}.txt")), format!("file {index}\n").repeat(index + 1))?;
        }
        git(&["add", "."])?;
        git(&["commit", "-q", "-m", "packed"])?;
        git(&["gc", "-q"])?;
        fs::write(work.join("loose.txt"), "loose\n")?;
        git(&["add", "."])?;
        git(&["commit", "-q", "-m", "loose"])?;
        git(&["update-server-info"])?;
        let head = git(&["rev-parse", "HEAD"])?.trim().to_owned();
        fs::rename(work.join(".git"), directory.join(format!("{name}.git")))?;
        fs::remove_dir_all(&work)?;
        Ok(Self { head })
    }

    /// The commit that a clone must arrive at.
    pub fn head(&self) -> &str {
        &self.head
    }
}
