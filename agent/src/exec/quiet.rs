//! No answers past policy: services of the host that resolve names over Unix sockets are out of the command's sight.
//!
//! A network namespace does not hold such sockets back, and glibc asks behind them first (nss-resolve, nscd, nss-mdns).
//! Without them it falls back to DNS, which goes through the TUN.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount, mount_remount};

/// The folders of systemd-resolved (varlink), nscd and avahi. Folders rather than sockets: a service that starts again
/// makes its sockets anew.
const SERVICES: [&str; 4] = ["/run/systemd/resolve", "/run/nscd", "/var/run/nscd", "/run/avahi-daemon"];

/// A service that answers names stays in sight.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} cannot be hidden from the command, which would resolve names past policy: {source}; stop the service behind it",
    folder.display()
)]
pub struct HideError {
    folder: PathBuf,
    source: io::Error,
}

/// Covers those folders in this mount namespace. `keep` is a file that stays readable at its path: resolv.conf is often
/// a link into one of them.
pub fn hide_resolvers(keep: &Path) -> Result<(), HideError> {
    hide(&SERVICES.map(Path::new), keep)
}

fn hide(folders: &[&Path], keep: &Path) -> Result<(), HideError> {
    // Links are followed once, so that two names of one folder do not make two mounts.
    let folders: BTreeSet<PathBuf> = folders
        .iter()
        .filter_map(|folder| folder.canonicalize().ok())
        .filter(|folder| folder.is_dir())
        .collect();
    let kept = keep.canonicalize().ok();
    for folder in folders {
        let inside = kept.as_deref().filter(|kept| kept.starts_with(&folder));
        cover(&folder, inside).map_err(|source| HideError { folder, source })?;
    }
    Ok(())
}

/// Mounts an empty folder over `folder`; nothing is in it but a copy of `kept`.
fn cover(folder: &Path, kept: Option<&Path>) -> io::Result<()> {
    let copy = kept.map(fs::read).transpose()?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", folder, "tmpfs", flags, Some(c"mode=0755,size=1m"))?;
    if let (Some(path), Some(text)) = (kept, copy) {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, text)?;
    }
    mount_remount(folder, flags | MountFlags::RDONLY, c"")?;
    Ok(())
}
