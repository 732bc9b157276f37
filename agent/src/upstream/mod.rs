//! How an allowed flow reaches its destination: the upstreams by name, and the protocols they speak.

pub mod socks5;
