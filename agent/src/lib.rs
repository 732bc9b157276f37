//! The node agent of tunproxy, as a library: the binary and the end-to-end tests use it.

pub mod config;
pub mod flowlog;
pub mod logging;
pub mod resolvers;
pub mod serve;
pub mod upstream;
pub mod yaml;
