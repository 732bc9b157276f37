//! Real servers from Debian packages, each ready when its `start` returns and gone when its value is dropped (the process
//! before its directory, so that a failed test can still print the log).

mod dns;
mod git;
mod iperf;
mod nginx;
mod socks;
mod sshd;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

pub use dns::DnsServer;
pub use git::GitRepository;
pub use iperf::Iperf;
pub use nginx::{Nginx, WebNames};
pub use socks::{Danted, Microsocks};
pub use sshd::Sshd;

/// How long any of them may take to start.
pub(crate) const START: Duration = Duration::from_secs(20);

/// Finds a server program; Debian keeps most of them in /usr/sbin, which is not on everybody's PATH.
pub(crate) fn program(name: &str) -> Result<String> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|directory| format!("{directory}/{name}"))
        .find(|path| Path::new(path).exists())
        .with_context(|| format!("{name} is not installed; run scripts/setup.sh test"))
}

/// SHA-256 of a file in hexadecimal, by coreutils.
pub fn sha256(file: &Path) -> Result<String> {
    let text = crate::process::run(Command::new("sha256sum").arg(file))?;
    Ok(text.split_whitespace().next().context("sha256sum printed nothing")?.to_owned())
}

/// A file of `length` bytes that no compression shortens, the same for the same seed.
pub fn random_file(path: &Path, length: u64, seed: u64) -> Result<()> {
    use std::io::Write;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut file = std::fs::File::create(path)?;
    let mut chunk = vec![0; 1 << 20];
    let mut left = length;
    while left > 0 {
        let size = left.min(chunk.len() as u64) as usize;
        random.fill(&mut chunk[..size]);
        file.write_all(&chunk[..size])?;
        left -= size as u64;
    }
    Ok(())
}
