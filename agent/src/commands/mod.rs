//! The subcommands that answer and end.

pub mod explain;
pub mod pcap;
pub mod validate;

mod target;

/// How a command prints what it found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON document.
    Json,
}
