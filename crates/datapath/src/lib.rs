//! The userspace datapath, sans-IO: one [`Stack`] per pod terminates the pod's TCP, UDP and ICMP.
//!
//! `handle_*` takes what happened (a packet from the TUN, an upstream that connected, bytes that arrived), `poll_*`
//! gives what is to be done ([`Action`]s for sockets, packets for the TUN). Time is an argument, randomness is a seed,
//! and there is no descriptor, clock, environment or file anywhere below this line: the crate runs the same under a
//! worker's event loop, under virtual time in a test, and under a fuzzer.

pub mod buffer;
mod checksum;
pub mod counters;
pub mod dns;
pub mod echo;
mod emit;
mod fragment;
mod icmp;
pub mod key;
pub mod lease;
pub mod limits;
pub mod memory;
mod recency;
pub mod record;
pub mod shard;
pub mod sniff;
pub mod stack;
mod sync;
pub mod tcp;
mod timer;
mod too_big;
pub mod udp;
pub mod view;
pub mod vnet;

pub use buffer::{PacketBuf, Pool};
pub use checksum::internet as internet_checksum;
pub use counters::{Counters, DropReason};
pub use echo::EchoId;
pub use key::FlowId;
pub use limits::{Keepalive, Limits};
pub use memory::{Account, Memory};
pub use record::{CloseReason, FlowBegin, FlowRecord, NameSource};
pub use smoltcp::time::{Duration, Instant};
pub use stack::{
    Action, Cx, DialFailure, DnsAlias, Input, LiveFlow, Report, Stack, StackConfig, Target, Transmit,
    UpstreamFailure,
};
pub use udp::MappingId;
pub use view::IpFields;
