//! Network namespaces, rtnetlink, TUN devices, sysctls: every unsafe block of the workspace.
//!
//! Every call is synchronous: it is a few system calls, after which the kernel has done its work. rtnetlink, which is
//! asynchronous, runs on a runtime inside [`Netlink`] that has no thread. A netlink socket stays in the namespace in
//! which it was opened, so [`Netlink::open_in`] gives a handle to any namespace that is usable from any thread.
//!
//! - [`netns`]: open and identify namespaces, run a closure inside one.
//! - [`netlink`]: links, addresses, routes, rules; one method per operation, errors with the kernel's own words.
//! - [`nft`]: nftables, whole tables as values.
//! - [`tun`]: make, reopen and adopt TUN devices with segmentation offload.
//! - [`steering`]: the pod side: into the TUN and not around it.
//! - [`gate`]: the host side: what may come from a pod.
//! - [`host_tun`]: a TUN for this namespace, with routes and rules and their complete removal.
//! - [`sandbox`]: a fresh namespace for one command.
//! - [`memory`]: what the process holds, and giving back what it no longer uses.

pub mod error_queue;
pub mod gate;
pub mod host_tun;
mod lock;
pub mod memory;
pub mod naming;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod sandbox;
pub mod steering;
pub mod sysctl;
pub mod tun;

#[cfg(test)]
mod testing;

pub use lock::NameLock;
pub use netlink::{Netlink, NetlinkError};
pub use netns::{NetNs, NetNsError, NetNsId};
pub use tun::{Tun, TunError};
