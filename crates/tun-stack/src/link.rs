//! The device that smoltcp sees: one packet in, a bounded row of packets out. No IO happens here.

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// Packets that are collected before they have to be written.
const OUTBOX_PACKETS: usize = 256;

/// Packets to be written, back to back in one buffer that is used again and again.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Outbox {
    pub fn is_full(&self) -> bool {
        self.ends.len() >= OUTBOX_PACKETS
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

/// A view for one poll of smoltcp.
#[derive(Debug)]
pub struct Link<'a> {
    pub arrived: Option<&'a [u8]>,
    pub outbox: &'a mut Outbox,
    pub mtu: usize,
}

impl Device for Link<'_> {
    type RxToken<'b>
        = Arrived<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Slot<'b>
    where
        Self: 'b;

    /// The reply always has a place: whoever hands in packets empties the outbox before it is full.
    fn receive(&mut self, _now: Instant) -> Option<(Arrived<'_>, Slot<'_>)> {
        Some((Arrived(self.arrived.take()?), Slot(self.outbox)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Slot<'_>> {
        (!self.outbox.is_full()).then_some(Slot(self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

#[derive(Debug)]
pub struct Arrived<'a>(&'a [u8]);

impl RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

#[derive(Debug)]
pub struct Slot<'a>(&'a mut Outbox);

impl TxToken for Slot<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let start = self.0.bytes.len();
        self.0.bytes.resize(start + length, 0);
        let result = write(&mut self.0.bytes[start..]);
        self.0.ends.push(start + length);
        result
    }
}
