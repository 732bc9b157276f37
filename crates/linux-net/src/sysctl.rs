//! Settings of `/proc/sys/net` of the calling thread's network namespace: the kernel picks the namespace by who opens
//! the file, so these run inside [`crate::NetNs::run`].

use std::fs;
use std::io;
use std::path::PathBuf;

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("sysctl {path}: {source}")]
pub struct SysctlError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// Reads `net/...`, without the final newline.
pub fn read(name: &str) -> Result<String, SysctlError> {
    let path = path(name);
    let text = fs::read_to_string(&path).map_err(|source| SysctlError { path, source })?;
    Ok(text.trim_end().to_owned())
}

/// Writes `net/...` unless it already has the value: a read-only `/proc` is no obstacle then.
pub fn write(name: &str, value: &str) -> Result<(), SysctlError> {
    if read(name)? == value {
        return Ok(());
    }
    let path = path(name);
    fs::write(&path, value).map_err(|source| SysctlError { path, source })
}

/// Writes a setting that an older kernel, or one without IPv6, may not have.
pub fn write_if_present(name: &str, value: &str) -> Result<(), SysctlError> {
    match write(name, value) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Lets this process's group open ping sockets, which a new namespace allows nobody.
pub fn allow_ping_sockets() -> Result<(), SysctlError> {
    let gid = rustix::process::getegid().as_raw();
    write_if_present("ipv4/ping_group_range", &format!("{gid}\t{gid}"))
}

/// The kernel has IPv6, whether or not an interface uses it.
pub fn has_ipv6() -> bool {
    path("ipv6/conf/all").exists()
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}
