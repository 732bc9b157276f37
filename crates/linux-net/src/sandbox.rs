//! A network namespace for one command, whose only way out is a TUN, or for this process, without any.
//!
//! [`enter`] runs in a child process that has one thread: it moves that process, hands back the TUN's queues for the
//! parent to serve, and the child then becomes the command. As root the command keeps its rights; as an ordinary user
//! it gets a user namespace in which its own ids are the only ones, and loses the rights over the new namespaces with
//! `exec`, so that it cannot undo the TUN.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{getegid, geteuid};
use rustix::thread::UnshareFlags;

use crate::netlink::{Family, MAIN_TABLE, Netlink, NetlinkError, Route, RouteKind};
use crate::sysctl::{self, SysctlError};
use crate::tun::{self, Tun, TunError, TunSpec};

/// What the command finds.
#[derive(Debug, Clone)]
pub struct SandboxPlan {
    pub tun_name: String,
    pub queues: u16,
    pub mtu: u32,
    /// Of the TUN; a default route for each family that has one.
    pub addresses: Vec<IpNet>,
    /// Appears in the place of `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
}

/// The sandbox cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("a process with {threads} threads cannot enter a sandbox: start it in a child of its own")]
    Threads { threads: usize },
    #[error(
        "no user namespace for an ordinary user: {source}; an administrator allows it with `sysctl -w user.max_user_namespaces=10000` (and, where they exist, `kernel.unprivileged_userns_clone=1` and `kernel.apparmor_restrict_unprivileged_userns=0`), or run it as root"
    )]
    UserNamespace { source: io::Error },
    #[error("no network namespace: {source}; root needs CAP_SYS_ADMIN for it")]
    Namespaces { source: io::Error },
    #[error("cannot write {path}: {source}")]
    IdMap { path: &'static str, source: io::Error },
    #[error("cannot put {source_path} in the place of {RESOLV_CONF}: {source}")]
    ResolvConf { source_path: PathBuf, source: io::Error },
    #[error(transparent)]
    Tun(#[from] TunError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Moves this process into new namespaces and makes the TUN. It cannot go back.
pub fn enter(plan: &SandboxPlan) -> Result<Tun, SandboxError> {
    unshare(UnshareFlags::NEWNS, Identity::Kept)?;
    // Mounts made here must not show outside.
    let private = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|errno| SandboxError::Namespaces { source: errno.into() })?;
    if let Some(source) = &plan.resolv_conf {
        replace_resolv_conf(source)?;
    }
    let tun = make_tun(plan)?;
    // Raw sockets take a capability that the command does not have.
    sysctl::allow_ping_sockets()?;
    Ok(tun)
}

/// Moves this process into a network namespace that has nothing but its loopback. It cannot go back. The namespace ends
/// with the process, however that ends.
///
/// An ordinary user gets a user namespace in which it is root, with every right over that network and those that it makes.
pub fn enter_empty() -> Result<(), SandboxError> {
    unshare(UnshareFlags::empty(), Identity::Root)?;
    Ok(set_loopback_up(&mut Netlink::open()?)?)
}

/// What an ordinary user is called inside its user namespace.
#[derive(Clone, Copy)]
enum Identity {
    Kept,
    Root,
}

/// A network namespace, and `more`; for an ordinary user a user namespace too.
fn unshare(more: UnshareFlags, identity: Identity) -> Result<(), SandboxError> {
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(SandboxError::Threads { threads });
    }
    let (uid, gid) = (geteuid(), getegid());
    let mut flags = UnshareFlags::NEWNET | more;
    if !uid.is_root() {
        flags |= UnshareFlags::NEWUSER;
    }
    // SAFETY: the process has one thread, and none of the flags unshares the descriptor table.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|errno| {
        let source = errno.into();
        if uid.is_root() {
            SandboxError::Namespaces { source }
        } else {
            SandboxError::UserNamespace { source }
        }
    })?;
    if uid.is_root() {
        return Ok(());
    }
    // Without "deny" an ordinary user may not write gid_map (user_namespaces(7)).
    write_map("/proc/self/setgroups", "deny")?;
    let inside = |outside| match identity {
        Identity::Kept => outside,
        Identity::Root => 0,
    };
    write_map("/proc/self/uid_map", &format!("{} {uid} 1", inside(uid.as_raw())))?;
    write_map("/proc/self/gid_map", &format!("{} {gid} 1", inside(gid.as_raw())))
}

fn write_map(path: &'static str, text: &str) -> Result<(), SandboxError> {
    fs::write(path, text).map_err(|source| SandboxError::IdMap { path, source })
}

fn replace_resolv_conf(source: &Path) -> Result<(), SandboxError> {
    mount_bind(source, RESOLV_CONF)
        .map_err(|errno| SandboxError::ResolvConf { source_path: source.to_owned(), source: errno.into() })
}

fn set_loopback_up(netlink: &mut Netlink) -> Result<(), NetlinkError> {
    match netlink.links()?.iter().find(|link| link.loopback) {
        Some(loopback) => netlink.set_link_up(loopback),
        None => Ok(()),
    }
}

fn make_tun(plan: &SandboxPlan) -> Result<Tun, SandboxError> {
    let mut netlink = Netlink::open()?;
    set_loopback_up(&mut netlink)?;
    let spec = TunSpec { name: &plan.tun_name, queues: plan.queues, mtu: plan.mtu, persistent: None };
    let tun = tun::create(&mut netlink, &spec)?;
    for address in &plan.addresses {
        netlink.add_address(&tun.link, *address)?;
    }
    netlink.set_link_up(&tun.link)?;
    for family in Family::ALL {
        let Some(source) = plan.addresses.iter().map(IpNet::addr).find(|ip| Family::of(*ip) == family) else {
            continue;
        };
        netlink.add_route(&Route {
            family,
            table: MAIN_TABLE,
            destination: None,
            kind: RouteKind::Device(tun.link.index),
            source: Some(source),
            metric: 1,
        })?;
    }
    Ok(tun)
}
