//! Where the sample programs are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

use anyhow::{Context, Result};
use tunproxy_testkit::process::run;

/// A sample program of this package, as new as its sources.
pub fn sample(name: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let directory = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    Ok(directory.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?.join(name))
}

/// `cargo test` builds the examples, `cargo test --test NAME` does not.
fn build() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let directory = program.parent().and_then(Path::parent).context("a test below target/PROFILE/deps")?;
    let examples = directory.join("examples");
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = newest(&package.join("src"))?.max(newest(&package.join("examples"))?);
    let is_new =
        |name| examples.join(name).metadata().and_then(|file| file.modified()).is_ok_and(|at| at > sources);
    if is_new("echo") && is_new("connect") {
        return Ok(examples);
    }
    let profile = directory.file_name().and_then(|name| name.to_str()).context("a profile")?;
    let profile = if profile == "debug" { "dev" } else { profile };
    let target = directory.parent().context("a target directory")?;
    run(Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--examples", "--package", env!("CARGO_PKG_NAME"), "--profile", profile])
        .arg("--manifest-path")
        .arg(package.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target))?;
    Ok(examples)
}

fn newest(directory: &Path) -> Result<SystemTime> {
    let mut latest = SystemTime::UNIX_EPOCH;
    for entry in directory.read_dir()? {
        let entry = entry?;
        let time = if entry.file_type()?.is_dir() {
            newest(&entry.path())?
        } else {
            entry.metadata()?.modified()?
        };
        latest = latest.max(time);
    }
    Ok(latest)
}
