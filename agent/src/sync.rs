//! The atomics that threads share. `make loom` puts its own in their place, and tries every order of what they do.

#[cfg(tunproxy_loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
#[cfg(not(tunproxy_loom))]
pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
