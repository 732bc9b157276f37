//! The node agent of tunproxy, as a library: the binary and the end-to-end tests use it.

pub mod admin;
pub mod causes;
pub mod cli;
pub mod commands;
pub mod config;
pub mod documents;
pub mod exec;
pub mod flowlog;
pub mod logging;
pub mod paint;
pub mod pcap;
pub mod policies;
pub mod resolvers;
pub mod self_test;
pub mod serve;
pub mod session;
mod sync;
pub mod tun;
pub mod upstream;
pub mod worker;
pub mod yaml;
