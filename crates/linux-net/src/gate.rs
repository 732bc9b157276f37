//! The host side: what may come from a pod, whatever happens inside it.
//!
//! A pod with `CAP_NET_RAW` gets around everything in its own namespace. What it sends by its main interface comes out at
//! the host's end of a veth pair, which it cannot touch. There a table of nftables for each pod, its gate, lets through
//! what goes to the cluster's own networks, but for DNS, and what answers somebody outside who spoke to the pod first.
//! Everything else is to take the TUN, and is dropped here. What the gate cannot see, because connections are only
//! tracked behind it, a table of the node decides: where a service's address leads, and whose answer a packet is.
//!
//! [`find_peer`] finds the device, [`Gate`] and [`node_table`] say what is to be there, and [`crate::nft`] puts it in
//! place.

mod layer;
mod node;
mod peer;
mod pod;

pub use node::{NODE_TABLE, PODS_V4, PODS_V6, node_table};
pub use peer::{Peer, PeerError, find_peer};
pub use pod::{Gate, REFUSED, gate_name};

/// Port of DNS over TCP and UDP, RFC 1035.
const DNS: u64 = 53;

const TCP: u64 = libc::IPPROTO_TCP as u64;
const UDP: u64 = libc::IPPROTO_UDP as u64;
const SCTP: u64 = libc::IPPROTO_SCTP as u64;

#[cfg(test)]
mod tests;
