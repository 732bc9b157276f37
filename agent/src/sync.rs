//! What threads share is made of these. `make loom` puts its own in their place, and tries every order of what they do.

#[cfg(tunproxy_loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
#[cfg(tunproxy_loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard, mpsc};
#[cfg(not(tunproxy_loom))]
pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
#[cfg(not(tunproxy_loom))]
pub(crate) use std::sync::{Mutex, MutexGuard, mpsc};
