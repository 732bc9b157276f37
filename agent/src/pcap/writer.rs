//! From captured packets to a pcapng stream, piece by piece, with its bounds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use super::channel::{Counts, Outlet, Record};
use super::format::{self, Captured, Interface, Statistics};
use super::{Place, Request};

/// Packets of one piece: at most a megabyte.
const BATCH: usize = 16;

/// Octets of the block that ends an interface's part, at most.
const STATISTICS: u64 = 256;

/// Why a capture ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Asked,
    AgentStops,
    Bytes,
    Packets,
    Seconds,
    PodGone,
}

impl End {
    fn label(self) -> &'static str {
        match self {
            Self::Asked => "it was asked to end",
            Self::AgentStops => "the agent stops",
            Self::Bytes => "the file has its size",
            Self::Packets => "the file has its packets",
            Self::Seconds => "its time is over",
            Self::PodGone => "the pod is gone",
        }
    }
}

/// A capture under way. Dropping it ends the capture too.
#[derive(Debug)]
pub struct Writer {
    interfaces: Vec<(Interface, Arc<Counts>)>,
    /// Packets written, of each interface.
    delivered: Vec<u64>,
    outlet: Outlet,
    records: Vec<Record>,
    start: SystemTime,
    written: u64,
    bytes: u64,
    /// Packets that may still be written.
    packets: u64,
    until: Option<Instant>,
    asked: watch::Receiver<Option<End>>,
    state: State,
    _place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Running,
    Ending(End),
    Over,
}

impl Writer {
    pub(super) fn new(
        request: &Request,
        interfaces: Vec<(Interface, Arc<Counts>)>,
        outlet: Outlet,
        asked: watch::Receiver<Option<End>>,
        place: Place,
    ) -> Self {
        Self {
            delivered: vec![0; interfaces.len()],
            interfaces,
            outlet,
            records: Vec::with_capacity(BATCH),
            start: SystemTime::now(),
            written: 0,
            bytes: request.bytes,
            packets: request.packets.unwrap_or(u64::MAX),
            // A time beyond the clock's range never comes.
            until: request
                .seconds
                .and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds))),
            asked,
            state: State::New,
            _place: place,
        }
    }

    /// The next piece of the file; `None`: it is whole. Waits for packets.
    pub async fn next_piece(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        while out.is_empty() {
            match self.state {
                State::New => {
                    self.begin(&mut out);
                    self.state = State::Running;
                }
                State::Running => {
                    if let Some(end) = self.run(&mut out).await {
                        self.state = State::Ending(end);
                        self.outlet.close();
                    }
                }
                // What was captured before the end is still to come, unless the file is full.
                State::Ending(end) => {
                    let full = matches!(end, End::Bytes | End::Packets);
                    let more = !full && self.outlet.receive(&mut self.records, BATCH).await > 0;
                    if !more || self.write(&mut out).is_some() {
                        self.finish(&mut out, end);
                        self.state = State::Over;
                    }
                }
                State::Over => return None,
            }
        }
        self.written += out.len() as u64;
        Some(out)
    }

    fn begin(&self, out: &mut Vec<u8>) {
        format::section_header(out, concat!("tunproxy-agent ", env!("CARGO_PKG_VERSION")));
        for (interface, _) in &self.interfaces {
            format::interface(out, interface);
        }
    }

    async fn run(&mut self, out: &mut Vec<u8>) -> Option<End> {
        let until = self.until;
        let over = async move {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let received = tokio::select! {
            biased;
            // The place, which this writer has, keeps the other side there.
            asked = self.asked.wait_for(Option::is_some) => return asked.map_or(Some(End::Asked), |asked| *asked),
            () = over => return Some(End::Seconds),
            received = self.outlet.receive(&mut self.records, BATCH) => received,
        };
        if received == 0 { Some(End::PodGone) } else { self.write(out) }
    }

    /// Writes the packets at hand, as far as the bounds allow.
    fn write(&mut self, out: &mut Vec<u8>) -> Option<End> {
        let reserve = STATISTICS * self.interfaces.len() as u64;
        for Record { interface, lost, packet } in self.records.drain(..) {
            if self.packets == 0 {
                return Some(End::Packets);
            }
            let before = out.len();
            let snaplen = self.interfaces[interface as usize].0.snaplen as usize;
            format::packet(
                out,
                &Captured {
                    interface,
                    time: packet.time,
                    direction: packet.direction,
                    octets: &packet.octets[..packet.octets.len().min(snaplen)],
                    length: packet.length,
                    comment: packet.comment.as_deref(),
                    lost,
                },
            );
            if self.written + out.len() as u64 + reserve > self.bytes {
                out.truncate(before);
                return Some(End::Bytes);
            }
            self.packets -= 1;
            self.delivered[interface as usize] += 1;
        }
        (self.packets == 0).then_some(End::Packets)
    }

    fn finish(&self, out: &mut Vec<u8>, end: End) {
        for (number, (_, counts)) in self.interfaces.iter().enumerate() {
            let statistics = Statistics {
                start: self.start,
                end: SystemTime::now(),
                accepted: counts.accepted.load(Ordering::Relaxed),
                lost: counts.lost.load(Ordering::Relaxed),
                delivered: self.delivered[number],
            };
            format::statistics(out, number as u32, &statistics, end.label());
        }
    }
}
