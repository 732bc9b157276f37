//! Test support: network namespaces, link emulator, real servers, CNI chains, simulated pod, packet builders.
//!
//! A dev-dependency only. It may call `ip`, `nft` and the like, because a test's result must not depend on the code
//! that it tests; it uses none of the product's crates.

pub mod agent;
pub mod behind;
pub mod binaries;
pub mod cni;
pub mod interrupt;
pub mod link;
pub mod netns;
pub mod packet;
pub mod privilege;
pub mod process;
pub mod raw;
pub mod servers;
pub mod sim;
pub mod topology;
pub mod wait;

pub use agent::{AgentOptions, AgentProcess};
pub use behind::Behind;
pub use binaries::Program;
pub use cni::{Attachment, CniNetwork, MainPlugin, PodIdentity};
pub use interrupt::Interrupt;
pub use netns::Namespace;
pub use privilege::{may_skip, root_or_skip};
pub use topology::{Host, Topology, Wire};
