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

pub use node::{NODE_TABLE, node_table};
pub use peer::{Peer, PeerError, find_peer};
pub use pod::{Gate, gate_name};

use crate::netlink::Family as Layer;
use crate::nft::{Chain, Hook, HookPoint, Rule};

/// The chain that counts and drops what a pod may not send.
pub const REFUSED: &str = "refused";

/// Sets of a pod's own addresses.
const OWN: &str = "own";

const DNS: u64 = crate::steering::DNS as u64;
const TCP: u64 = libc::IPPROTO_TCP as u64;
const UDP: u64 = libc::IPPROTO_UDP as u64;
const SCTP: u64 = libc::IPPROTO_SCTP as u64;

/// One that gets its packets from the kernel.
fn base(name: &str, point: HookPoint, priority: i32, drop: bool) -> Chain {
    Chain { name: name.to_owned(), hook: Some(Hook { point, priority, drop }), rules: Vec::new() }
}

/// One that gets them from other chains.
fn chain(name: String, rules: Vec<Rule>) -> Chain {
    Chain { name, hook: None, rules }
}

fn refused() -> Chain {
    chain(REFUSED.to_owned(), vec![Rule::new().counter().drop()])
}

fn refuse() -> Rule {
    Rule::new().goto(REFUSED)
}

#[cfg(test)]
mod tests;
