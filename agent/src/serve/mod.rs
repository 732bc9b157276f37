//! The node agent's service.

pub mod readiness;
pub mod store;
pub mod watch;
