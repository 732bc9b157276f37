//! Packets written straight to an interface, as a pod with CAP_NET_RAW can: no stack of the kernel looks at them first.

use std::time::Duration;

use anyhow::{Context, Result};
use smoltcp::phy::{Device, Medium, RawSocket, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::netns::Namespace;
use crate::wait;

/// What became of packets that were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub offered: u64,
    /// By the interface's own counter; its queue, or the socket's buffer when that is full, swallowed the others.
    pub carried: u64,
}

/// How fast packets are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as it goes; what finds no room is lost.
    Flood,
    /// No more than fit the socket's buffer at once, so that all of them arrive.
    AsTaken,
}

/// Of the smallest default buffer (212,992 octets) each small packet takes less than 1,024.
const BURST: u64 = 64;
const PATIENCE: Duration = Duration::from_mins(1);

/// Sends `packets` on `interface` and tells how many of them the interface took. A packet socket never blocks and says
/// nothing of a full queue: without this figure, a flood of which nothing arrived would look like one that was withstood.
pub fn send_all(
    namespace: &Namespace,
    interface: &str,
    pace: Pace,
    packets: impl IntoIterator<Item = Vec<u8>> + Send,
) -> Result<Sent> {
    let before = transmitted(namespace, interface)?;
    let offered = RawLink::with(namespace, interface, |link| -> Result<u64> {
        let mut offered = 0;
        // A TUN counts a packet when its owner reads it, which is later than its sending.
        let all_taken = |offered: u64| {
            let taken = || transmitted(namespace, interface).is_ok_and(|now| now >= before + offered);
            wait::until_true(format!("{interface} to take {offered} packets"), PATIENCE, taken)
        };
        for packet in packets.into_iter().filter(|packet| !packet.is_empty()) {
            link.send(&packet);
            offered += 1;
            if pace == Pace::AsTaken && offered % BURST == 0 {
                all_taken(offered)?;
            }
        }
        all_taken(match pace {
            Pace::AsTaken => offered,
            Pace::Flood => offered.min(1),
        })?;
        Ok(offered)
    })??;
    Ok(Sent { offered, carried: transmitted(namespace, interface)? - before })
}

/// How many packets the interface had no room for so far.
pub fn dropped(namespace: &Namespace, interface: &str) -> Result<u64> {
    let links = namespace.ip_json(&format!("-s link show {interface}"))?;
    links[0]["stats64"]["tx"]["dropped"].as_u64().context("no counter of dropped packets")
}

fn transmitted(namespace: &Namespace, interface: &str) -> Result<u64> {
    let links = namespace.ip_json(&format!("-s link show {interface}"))?;
    links[0]["stats64"]["tx"]["packets"].as_u64().context("no counter of sent packets")
}

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

    /// Sends one IP packet, right or wrong; empty ones are not sent. Nothing tells whether it went: see [`send_all`].
    pub fn send(&mut self, packet: &[u8]) {
        if packet.is_empty() {
            return;
        }
        if let Some(token) = self.socket.transmit(Instant::ZERO) {
            token.consume(packet.len(), |buffer| buffer.copy_from_slice(packet));
        }
    }

    /// The next packet of either direction that `wanted` accepts.
    pub fn recv(&mut self, limit: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        wait::until("a packet on the interface", limit, || {
            while let Some((token, _)) = self.socket.receive(Instant::ZERO) {
                let packet = token.consume(<[u8]>::to_vec);
                if wanted(&packet) {
                    return Some(packet);
                }
            }
            None
        })
    }
}
