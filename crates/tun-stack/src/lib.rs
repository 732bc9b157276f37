//! A host on a TUN, in this process: [`Listener`], [`Dialer`] and [`UdpSocket`] as a small tokio API.
//!
//! The TCP is smoltcp's. That is right where *we* are the host: in samples, in a self-test, as an independent peer in
//! tests. Pods are served by the `datapath` crate, because these sockets hold their buffers also while idle, are found
//! by a scan over all of them, and were not made to face a hostile peer.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tunproxy_tun_stack::{Stack, StackConfig, TunDevice};
//!
//! // The kernel has the first address, the stack the second.
//! let device = TunDevice::create("tun0", 1500, &["198.19.77.1/24".parse()?])?;
//! let stack = Stack::new(device, StackConfig::new(["198.19.77.2/24".parse()?]))?;
//! let listener = stack.listen("198.19.77.2:7".parse()?)?;
//! let (mut stream, _peer) = listener.accept().await?;
//! let (mut reader, mut writer) = tokio::io::split(&mut stream);
//! tokio::io::copy(&mut reader, &mut writer).await?;
//! # Ok(())
//! # }
//! ```
//!
//! One task drives a stack. It lives as long as any handle: a [`Stack`], [`Dialer`], [`Listener`], [`Stream`] or
//! [`UdpSocket`]. After the last one it sends what is still to be sent, for [`StackConfig::linger`] at most, and ends
//! with its TUN. [`Stack::close`] does so at once, and [`Stack::ended`] waits for it; whoever still has a socket then
//! gets an error that says why.
//!
//! Everything is bounded, by [`StackConfig`]. What this stack does not do: IP fragments (a datagram is at most one
//! packet of the device's MTU), ICMP beyond echo replies and port-unreachable, path-MTU discovery, and routing.

mod config;
mod device;
mod driver;
mod engine;
mod error;
mod inspect;
mod link;
mod listener;
mod offload;
mod ports;
mod stack;
mod stream;
mod udp;

pub use config::StackConfig;
pub use device::TunDevice;
pub use error::{SocketError, StackError};
pub use listener::Listener;
pub use stack::{Dialer, Stack};
pub use stream::Stream;
pub use udp::UdpSocket;
