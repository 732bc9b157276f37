//! TCP towards the pod: a passive opener per flow, RFC 9293 with window scaling and timestamps (RFC 7323), SACK
//! (RFC 2018), RFC 6298 timers, RACK-TLP (RFC 8985) with RFC 5681 windows, and RFC 5961 checks.
//!
//! [`flow::Flow`] is one connection's state machine; [`send`] and [`recv`] are its two directions. The peer is the
//! pod's own stack behind a TUN, where queues drop but do not delay: the congestion window starts at the pod's
//! window and only shrinks after a loss.

pub(crate) mod flow;
pub(crate) mod recv;
pub(crate) mod rtt;
pub(crate) mod segment;
pub(crate) mod send;
pub(crate) mod seq;
mod slot;
pub(crate) mod table;
pub(crate) mod time_wait;

/// Segments smaller than this are not asked of us, whatever the pod offers (Linux: TCP_MIN_SND_MSS).
const MIN_MSS: u16 = 48;

/// The shift of every window we advertise: 64 KiB << 7 = 8 MiB.
pub(crate) const WINDOW_SCALE: u8 = 7;
