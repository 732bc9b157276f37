//! Packets written straight to an interface, as a pod with CAP_NET_RAW can: no stack of the kernel looks at them first.

use anyhow::{Context, Result};
use smoltcp::phy::{Device, Medium, RawSocket, TxToken};
use smoltcp::time::Instant;

use crate::netns::Namespace;

/// A packet socket (AF_PACKET) on one interface; lives on the thread that made it.
#[derive(Debug)]
pub struct RawLink {
    socket: RawSocket,
}

impl RawLink {
    /// Runs `work` with a packet socket on `interface` of `namespace`.
    pub fn with<T: Send>(
        namespace: &Namespace,
        interface: &str,
        work: impl FnOnce(&mut Self) -> T + Send,
    ) -> Result<T> {
        namespace.enter(|| {
            let socket = RawSocket::new(interface, Medium::Ip)
                .with_context(|| format!("no packet socket on {interface}"))?;
            Ok(work(&mut Self { socket }))
        })
    }

    /// Sends one IP packet, right or wrong; empty ones are not sent.
    pub fn send(&mut self, packet: &[u8]) {
        if packet.is_empty() {
            return;
        }
        if let Some(token) = self.socket.transmit(Instant::ZERO) {
            token.consume(packet.len(), |buffer| buffer.copy_from_slice(packet));
        }
    }
}
