//! Deleting a link without waiting for the kernel's last step.
//!
//! `RTM_DELLINK` returns 15 to 25 ms after the device has vanished for everybody: it waits for an RCU barrier
//! (`netdev_run_todo`) inside `sendmsg`, and neither a signal nor the end of the process cuts that wait short; a thread
//! would hold up the end of its process just so. A whole DEL that waits takes 23 to 30 ms, and may take 10. So a
//! process that is about to end lets a child make the request, and itself waits for the kernel's notice that the device
//! is gone: 3 to 6 ms. Moving the device into a namespace that is left to die takes as long as deleting it (Linux 6.18).

use std::os::fd::AsRawFd;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::{LinkUnspec, MulticastGroup, new_multicast_connection};

use super::driver::Driver;
use super::{Link, Netlink, NetlinkError};
use crate::netns::{NetNs, NetNsError};

/// Longer than any deletion takes; then it is done again, and waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Deletes the link and returns as soon as it is gone for everybody. Leaves a child behind that ends when the kernel
/// has finished and is nobody's to wait for: only for a process that ends soon itself.
pub fn delete_promptly(namespace: &NetNs, link: &Link) -> Result<Result<(), NetlinkError>, NetNsError> {
    namespace.run(|| {
        let failed = |error: std::io::Error| {
            NetlinkError::new(format!("delete link {} without delay", link.name), error.into())
        };
        let (driver, notices) = Driver::start(|| {
            let (connection, _, notices) = new_multicast_connection(&[MulticastGroup::Link])?;
            Ok((connection, notices))
        })
        .map_err(failed)?;
        request_from_child(link).map_err(failed)?;
        let gone = until_gone(notices.map(|(message, _)| message.payload), link.index);
        match driver.wait(PATIENCE, gone) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Netlink::open()?.delete_link(link),
        }
    })
}

/// Makes the request, without an acknowledgement, for which nobody would wait. A child that cannot be made is noticed
/// by the silence that follows.
fn request_from_child(link: &Link) -> std::io::Result<()> {
    let mut request =
        NetlinkMessage::from(RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(link.index).build()));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let descriptor = socket.as_raw_fd();
    // SAFETY: the child calls nothing but close, send and _exit, which are async-signal-safe: it is sound whatever
    // other threads were doing. The buffer and the descriptor are copies of this process's.
    unsafe {
        if libc::fork() == 0 {
            // Whoever reads our output waits for its end, which must not be the child's.
            for standard in 0..=2 {
                libc::close(standard);
            }
            libc::send(descriptor, bytes.as_ptr().cast(), bytes.len(), 0);
            libc::_exit(0);
        }
    }
    Ok(())
}

/// Whether the notice came; not, when some were lost.
async fn until_gone(
    mut notices: impl Stream<Item = NetlinkPayload<RouteNetlinkMessage>> + Unpin,
    index: u32,
) -> bool {
    while let Some(notice) = notices.next().await {
        match notice {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(gone))
                if gone.header.index == index =>
            {
                return true;
            }
            NetlinkPayload::Overrun(_) => return false,
            _ => {}
        }
    }
    false
}
