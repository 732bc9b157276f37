//! Test support: network namespaces, link emulator, real servers, CNI chains, simulated pod, packet builders.
//!
//! A dev-dependency only. It may call `ip`, `nft` and the like, because a test's result must not depend on the code
//! that it tests; it uses none of the product's crates.

pub mod packet;
pub mod sim;
