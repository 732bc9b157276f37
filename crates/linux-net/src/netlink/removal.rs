//! Deleting a link without waiting for the kernel's last step.
//!
//! `RTM_DELLINK` returns 15 to 25 ms after the device has vanished for everybody: it waits for an RCU barrier
//! (`netdev_run_todo`), and neither a signal nor the end of the process cuts that wait short. A process that is about
//! to end lets a child wait in its place, and itself waits for the kernel's notice that the device is gone (about 4 ms).

use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::link::set;
use super::{Link, Netlink, NetlinkError, notices};
use crate::netns::{NetNs, NetNsError};

/// `RTNLGRP_LINK`, include/uapi/linux/rtnetlink.h.
const LINK_NOTICES: u32 = 1;

/// Longer than any deletion takes; then it is done again, and waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Deletes the link and returns as soon as it is gone for everybody. Leaves a child behind that ends when the kernel
/// has finished and is nobody's to wait for: only for a process that ends soon itself.
pub fn delete_promptly(namespace: &NetNs, link: &Link) -> Result<Result<(), NetlinkError>, NetNsError> {
    namespace.run(|| {
        let listener = listen(link)?;
        let mut netlink = Netlink::open()?;
        let request = netlink.encode(RouteNetlinkMessage::DelLink(set(link)), 0);
        send_from_child(&netlink, &request);
        if gone_before(&listener, link, Instant::now() + PATIENCE) {
            Ok(())
        } else {
            netlink.delete_link(link)
        }
    })
}

/// A socket that hears of every link that comes or goes.
fn listen(link: &Link) -> Result<Socket, NetlinkError> {
    let failed = |source| NetlinkError {
        operation: format!("listen for the end of link {}", link.name),
        source,
        kernel: None,
    };
    let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
    socket.bind(&SocketAddr::new(0, 0)).map_err(failed)?;
    socket.add_membership(LINK_NOTICES).map_err(failed)?;
    Ok(socket)
}

/// A child that cannot be made is noticed by the silence that follows.
fn send_from_child(netlink: &Netlink, request: &[u8]) {
    use std::os::fd::AsRawFd;
    let descriptor = netlink.socket.as_raw_fd();
    // SAFETY: the child calls nothing but close, send and _exit, which are async-signal-safe: it is sound whatever
    // other threads were doing. The buffer and the descriptor are copies of this process's.
    unsafe {
        if libc::fork() == 0 {
            // Whoever reads our output waits for its end, which must not be the child's.
            for standard in 0..=2 {
                libc::close(standard);
            }
            libc::send(descriptor, request.as_ptr().cast(), request.len(), 0);
            libc::_exit(0);
        }
    }
}

fn gone_before(listener: &Socket, link: &Link, end: Instant) -> bool {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || set_socket_timeout(listener, Timeout::Recv, Some(left)).is_err() {
            return false;
        }
        let Ok((datagram, _)) = listener.recv_from_full() else { return false };
        let gone = |message: &RouteNetlinkMessage| matches!(message, RouteNetlinkMessage::DelLink(found) if found.header.index == link.index);
        if notices(&datagram).iter().any(gone) {
            return true;
        }
    }
}
