//! The real binary in real namespaces, behind Debian's ptp, bridge and host-local, with an agent that speaks the real
//! protocol and holds the real descriptors. What is in the pod is asked of `ip`.

mod agent;
mod bounds;
mod chained;
mod contract;
mod node;
mod removal;
mod standalone;
mod traffic;
mod upkeep;
