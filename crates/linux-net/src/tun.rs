//! TUN devices: layer 3, a virtio-net header before every packet, checksum and segmentation offload, many queues.
//!
//! A queue belongs to the namespace in which `/dev/net/tun` was opened: [`create`] and [`reopen`] act on the calling
//! thread's namespace, so they run inside [`NetNs::run`].

mod queue_program;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::naming::{MAX_IFNAME, Owner};
use crate::netlink::{Link, Netlink, NetlinkError};
use crate::netns::{NetNs, NetNsError};

pub use queue_program::{Mix, QueueProgram};

/// Bytes before every packet: `sizeof(struct virtio_net_hdr)`. The longer forms with `num_buffers` are not used.
pub const VNET_HEADER: usize = 10;

/// Packets a queue holds before it drops. A window of 8 streams in 1500-byte packets fits.
const TX_QUEUE_LENGTH: u32 = 5000;

/// The kernel's own bound on queues, `MAX_TAP_QUEUES`.
pub const MAX_QUEUES: u16 = 256;

/// A TUN that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    #[error("TUN {name}: {step}: {source}")]
    Device { name: String, step: &'static str, source: io::Error },
    #[error(
        "TUN {name}: /dev/net/tun may not be opened: {source}; udev's mode is 0666, set it with `chmod 0666 /dev/net/tun`"
    )]
    Permission { name: String, source: io::Error },
    #[error("TUN {name}: /dev/net/tun is absent: load the tun module with `modprobe tun`")]
    NoDriver { name: String },
    #[error("{name:?} is not an interface name (1 to 15 bytes, no slash, no space)")]
    BadName { name: String },
    #[error("{queues} queues asked, 1 to {MAX_QUEUES} are possible")]
    BadQueues { queues: u16 },
    #[error("interface {name} exists and is not a TUN that tunproxy made for {owner}: remove or rename it")]
    Foreign { name: String, owner: Owner },
    #[error("interface {name} exists already")]
    Exists { name: String },
    #[error("there is no TUN {name} in this namespace")]
    Missing { name: String },
    #[error("the descriptor is not a TUN: {reason}")]
    NotATun { reason: String },
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    NetNs(#[from] NetNsError),
}

/// What to make.
#[derive(Debug, Clone)]
pub struct TunSpec<'a> {
    pub name: &'a str,
    pub queues: u16,
    pub mtu: u32,
    /// Survives its descriptors, belongs to root and is marked with this owner. `None`: gone with the last descriptor.
    pub persistent: Option<&'a Owner>,
}

/// An open TUN.
#[derive(Debug)]
pub struct Tun {
    pub name: String,
    pub link: Link,
    /// Non-blocking, close-on-exec.
    pub queues: Vec<OwnedFd>,
    /// UDP segmentation offload is on (Linux 6.2).
    pub udp_offload: bool,
}

/// Makes a TUN that is down and has no address. An existing device of that name is left alone.
pub fn create(netlink: &mut Netlink, spec: &TunSpec<'_>) -> Result<Tun, TunError> {
    check(spec.name, spec.queues)?;
    if netlink.link(spec.name)?.is_some() {
        return Err(TunError::Exists { name: spec.name.to_owned() });
    }
    let device = open(spec.name, true)?;
    let link = find(netlink, spec.name)?;
    netlink.disable_address_generation(&link)?;
    netlink.set_link_mtu(&link, spec.mtu)?;
    let failed = |step| move |source| TunError::Device { name: spec.name.to_owned(), step, source };
    // By netlink: the ioctl wants rights over the whole machine, which an ordinary user's sandbox does not have.
    netlink.set_link_queue_length(&link, TX_QUEUE_LENGTH)?;
    if let Some(owner) = spec.persistent {
        // Marked before it can outlive this process: a kill in between leaves either nothing or a device that DEL finds.
        netlink.set_link_alias(&link, &owner.alias())?;
        make_persistent(device.as_fd()).map_err(failed("make it persistent"))?;
    }
    let link = find(netlink, spec.name)?;
    with_queues(device, link, spec.queues)
}

/// Opens `queues` more queues of an existing TUN: by the agent after a restart, by an ADD that is repeated. A device
/// that was made without `multi_queue` has one.
pub fn reopen(netlink: &mut Netlink, name: &str, queues: u16) -> Result<Tun, TunError> {
    check(name, queues)?;
    let link = netlink.link(name)?.ok_or_else(|| TunError::Missing { name: name.to_owned() })?;
    let Some(info) = link.tun.filter(|info| info.is_tun) else {
        return Err(TunError::NotATun { reason: format!("{name} is another kind of interface") });
    };
    let queues = if info.multi_queue { queues } else { 1 };
    let device = open(name, info.multi_queue)?;
    // A device that had no queue has no carrier, and gets it back by deferred work a moment later; until then it drops
    // what is sent. Asking for the link does that work at once (rtnl_getlink, Linux 6.9).
    let link = find(netlink, name)?;
    with_queues(device, link, queues)
}

/// [`reopen`] in another namespace.
pub fn reopen_in(namespace: &NetNs, name: &str, queues: u16) -> Result<Tun, TunError> {
    namespace.run(|| reopen(&mut Netlink::open()?, name, queues))?
}

/// A TUN whose descriptor somebody else opened.
#[derive(Debug)]
pub struct AdoptedTun {
    pub name: String,
    pub queue: OwnedFd,
    /// Packets carry a virtio-net header; only then is offload on.
    pub vnet_header: bool,
    pub multi_queue: bool,
}

/// Takes over an open TUN descriptor; makes it non-blocking and switches offload on when it has a header for it.
///
/// The kernel does not tell whether the device was opened with `IFF_NO_PI`: the opener has to.
pub fn adopt(queue: OwnedFd) -> Result<AdoptedTun, TunError> {
    let (name, flags) = interface_of(queue.as_fd())
        .map_err(|source| TunError::NotATun { reason: format!("TUNGETIFF: {source}") })?;
    if flags & libc::IFF_TUN == 0 {
        return Err(TunError::NotATun { reason: format!("{name} is a TAP; open it with IFF_TUN") });
    }
    let vnet_header = flags & libc::IFF_VNET_HDR != 0;
    let failed = |step| {
        let name = name.clone();
        move |source| TunError::Device { name, step, source }
    };
    if vnet_header {
        ensure_header_size(queue.as_fd()).map_err(failed("set the header size"))?;
        enable_offload(queue.as_fd()).map_err(failed("enable offload"))?;
    }
    rustix::io::ioctl_fionbio(&queue, true).map_err(|errno| failed("make it non-blocking")(errno.into()))?;
    Ok(AdoptedTun { name, queue, vnet_header, multi_queue: flags & libc::IFF_MULTI_QUEUE != 0 })
}

fn check(name: &str, queues: u16) -> Result<(), TunError> {
    let bad = name.is_empty()
        || name.len() > MAX_IFNAME
        || name == "."
        || name == ".."
        || name.bytes().any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace() || b == 0);
    if bad {
        return Err(TunError::BadName { name: name.to_owned() });
    }
    if queues == 0 || queues > MAX_QUEUES {
        return Err(TunError::BadQueues { queues });
    }
    Ok(())
}

fn open(name: &str, multi_queue: bool) -> Result<SyncDevice, TunError> {
    let opened = DeviceBuilder::new()
        .name(name)
        .layer(Layer::L3)
        .offload(true)
        .multi_queue(multi_queue)
        .inherit_enable_state()
        .build_sync();
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EACCES) => TunError::Permission { name: name.to_owned(), source },
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDriver { name: name.to_owned() },
        _ => TunError::Device { name: name.to_owned(), step: "open it", source },
    })
}

fn find(netlink: &mut Netlink, name: &str) -> Result<Link, TunError> {
    netlink.link(name)?.ok_or_else(|| TunError::Missing { name: name.to_owned() })
}

fn with_queues(first: SyncDevice, link: Link, queues: u16) -> Result<Tun, TunError> {
    let name = link.name.clone();
    let failed = |step| {
        let name = name.clone();
        move |source| TunError::Device { name, step, source }
    };
    let udp_offload = first.udp_gso();
    let mut devices = Vec::with_capacity(usize::from(queues));
    for _ in 1..queues {
        devices.push(first.try_clone().map_err(failed("open another queue"))?);
    }
    devices.insert(0, first);
    let mut fds = Vec::with_capacity(devices.len());
    for device in devices {
        device.set_nonblocking(true).map_err(failed("make it non-blocking"))?;
        ensure_header_size(device.as_fd()).map_err(failed("set the header size"))?;
        // SAFETY: into_raw_fd gives up ownership of an open descriptor; nothing else holds it.
        fds.push(unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) });
    }
    Ok(Tun { name, link, queues: fds, udp_offload })
}

/// Belongs to root, then persists. Not by tun-rs: its `user` hands the kernel a pointer where TUNSETOWNER takes a value.
fn make_persistent(queue: BorrowedFd<'_>) -> io::Result<()> {
    let root: libc::c_ulong = 0;
    let persist: libc::c_ulong = 1;
    // SAFETY: TUNSETOWNER takes the uid by value.
    check_result(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOWNER, root) })?;
    // SAFETY: TUNSETPERSIST takes the flag by value.
    check_result(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETPERSIST, persist) })
}

/// The size is 10 unless somebody changed it on a device that outlived them.
fn ensure_header_size(queue: BorrowedFd<'_>) -> io::Result<()> {
    let mut size: libc::c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one int to the pointer, which is valid for the call.
    check_result(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut size) })?;
    if usize::try_from(size) == Ok(VNET_HEADER) {
        return Ok(());
    }
    let wanted = VNET_HEADER as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int from the pointer, which is valid for the call.
    check_result(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const wanted) })
}

/// Checksum and segmentation offload; without those for UDP where the kernel is older than 6.2.
fn enable_offload(queue: BorrowedFd<'_>) -> io::Result<()> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    set_offload(queue, tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6).or_else(|_| set_offload(queue, tcp))
}

fn set_offload(queue: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes the flags by value.
    check_result(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

/// `TUNGETIFF`: name and flags of the device behind a descriptor.
fn interface_of(queue: BorrowedFd<'_>) -> io::Result<(String, i32)> {
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq to the pointer, which is valid for the call.
    check_result(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    let bytes = request.ifr_name.map(|c| c as u8);
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    // SAFETY: TUNGETIFF fills in the flags, and every bit pattern is a valid short.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((String::from_utf8_lossy(&bytes[..end]).into_owned(), i32::from(flags)))
}

fn check_result(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
