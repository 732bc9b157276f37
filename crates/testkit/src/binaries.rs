//! Where the product's programs are: built once per test process, with the profile the test itself was built with.

use std::collections::HashMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result};

use crate::process::run;

/// The programs of this workspace that tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Program {
    Plugin,
    Agent,
    Bench,
}

impl Program {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plugin => "tunproxy",
            Self::Agent => "tunproxy-agent",
            Self::Bench => "tunproxy-bench",
        }
    }

    const fn package(self) -> &'static str {
        match self {
            Self::Plugin => "tunproxy-cni-plugin",
            Self::Agent => "tunproxy-agent",
            Self::Bench => "tunproxy-bench",
        }
    }

    /// The program's file: in `TUNPROXY_BIN_DIR` if that is set, else built by cargo beside the running test.
    pub fn path(self) -> Result<PathBuf> {
        static BUILT: Mutex<Option<HashMap<Program, PathBuf>>> = Mutex::new(None);
        if let Some(directory) = env::var_os("TUNPROXY_BIN_DIR") {
            return std::path::absolute(PathBuf::from(directory).join(self.name()))
                .context("TUNPROXY_BIN_DIR is no path");
        }
        let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let built = built.get_or_insert_default();
        if let Some(path) = built.get(&self) {
            return Ok(path.clone());
        }
        let path = self.build()?;
        built.insert(self, path.clone());
        Ok(path)
    }

    fn build(self) -> Result<PathBuf> {
        let directory = profile_directory()?;
        let profile = directory.file_name().and_then(|name| name.to_str()).context("no profile directory")?;
        let profile = if profile == "debug" { "dev" } else { profile };
        let target = directory.parent().context("no target directory")?;
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
        run(Command::new(cargo)
            .args([
                "build",
                "--quiet",
                "--profile",
                profile,
                "--package",
                self.package(),
                "--bin",
                self.name(),
            ])
            .arg("--manifest-path")
            .arg(manifest)
            .arg("--target-dir")
            .arg(target))
        .with_context(|| format!("cannot build {}", self.name()))?;
        Ok(directory.join(self.name()))
    }
}

/// `target/debug` for a test in `target/debug/deps` or a binary in `target/debug`.
fn profile_directory() -> Result<PathBuf> {
    let program = env::current_exe()?;
    let directory = program.parent().context("a program without directory")?;
    let inner = ["deps", "examples"].iter().any(|inner| directory.ends_with(inner));
    Ok(if inner { directory.parent().unwrap_or(directory) } else { directory }.to_owned())
}
