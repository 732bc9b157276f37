//! Messages between the CNI plugin and the node agent, and the `SOCK_SEQPACKET` socket that carries them.
//!
//! One request gets one response; file descriptors (the pod's network namespace and the queues of its TUN) travel
//! beside [`Request::Attach`] as `SCM_RIGHTS`. Every frame is one datagram: JSON with a `protocol` number, at most
//! [`MAX_FRAME`] bytes and [`MAX_FDS`] descriptors.
//!
//! - [`Client`]: blocking, every call has a deadline; used by the plugin.
//! - [`Listener`] and [`Connection`]: non-blocking, with `AsFd` and `AsRawFd`, so that an event loop or tokio's
//!   `AsyncFd` drives them; used by the agent.
//! - [`Tombstones`]: what the plugin could not tell an agent that was down.
//!
//! Architecture invariant: this crate knows no network, no policy and no runtime; it moves messages.

mod client;
mod frame;
mod message;
mod socket;
mod tombstone;

pub use client::{Client, ClientError};
pub use frame::{
    FrameError, MAX_FRAME, PROTOCOL, decode_request, decode_response, encode_request, encode_response,
};
pub use message::{
    AttachRequest, Attachment, AttachmentKey, Checked, ErrorCode, Failure, GcRequest, InterfaceAddress, Mode,
    NamespaceId, PodIdentity, PrepareRequest, Request, Response, Settings, Status,
};
pub use socket::{Connection, Listener, MAX_FDS, Packet, Peer, SocketError};
pub use tombstone::{MAX_TOMBSTONES, TombstoneError, Tombstones};
