//! Packet scripts in the spirit of packetdrill: what a pod's hand-made segments get for an answer, under virtual time.
//! The measure is RFC 9293 with 2018, 2883, 5681, 5961, 6191, 6298, 7323, and where they leave a choice, Linux.

#[path = "../common/mod.rs"]
mod common;
mod script;
mod segment;

mod acknowledging;
mod blind;
mod close;
mod congestion;
mod document;
mod handshake;
mod limits;
mod loss;
mod mtu;
mod names;
mod options;
mod paws;
mod probe;
mod rack;
mod receive;
mod refusal;
mod rto;
mod sending;
mod silence;
mod stray;
mod time_wait;
mod v6;
mod window;
mod wrap;
