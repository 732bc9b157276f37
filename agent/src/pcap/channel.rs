//! The way of captured packets from the workers to the file. It is bounded, and nobody waits at its near end: what finds no
//! room is counted as lost.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;

use super::format::Direction;
use crate::sync::{AtomicU64, AtomicUsize, Ordering};

/// Packets that may wait, and their octets: some milliseconds of a busy pod.
const PACKETS: usize = 4_096;
const OCTETS: usize = if cfg!(tunproxy_loom) { 1 } else { 16 << 20 };

/// A captured packet.
#[derive(Debug)]
pub struct Packet {
    pub time: SystemTime,
    pub direction: Direction,
    /// What is kept of it; shared among the captures that keep it.
    pub octets: Arc<[u8]>,
    /// Octets that it had.
    pub length: u32,
    pub comment: Option<String>,
}

/// A packet on its way.
#[derive(Debug)]
pub struct Record {
    pub interface: u32,
    /// Packets of the interface lost since the one before.
    pub lost: u64,
    pub packet: Packet,
}

/// What became of one interface's packets.
#[derive(Debug, Default)]
pub struct Counts {
    /// Packets that passed the filter.
    pub accepted: AtomicU64,
    /// Those of them that found no room.
    pub lost: AtomicU64,
    /// Lost since the last one that found room.
    gap: AtomicU64,
}

/// The near end, for one interface. Its clones belong to the workers that serve it.
#[derive(Clone, Debug)]
pub struct Inlet {
    sender: mpsc::Sender<Record>,
    queued: Arc<AtomicUsize>,
    interface: u32,
    pub counts: Arc<Counts>,
}

/// The far end.
#[derive(Debug)]
pub struct Outlet {
    receiver: mpsc::Receiver<Record>,
    queued: Arc<AtomicUsize>,
}

/// One inlet for each of `interfaces`. The outlet ends when all inlets are gone.
pub fn channel(interfaces: u32) -> (Vec<Inlet>, Outlet) {
    let (sender, receiver) = mpsc::channel(PACKETS);
    let queued = Arc::new(AtomicUsize::new(0));
    let inlet = |interface| Inlet {
        sender: sender.clone(),
        queued: queued.clone(),
        interface,
        counts: Arc::default(),
    };
    ((0..interfaces).map(inlet).collect(), Outlet { receiver, queued })
}

impl Inlet {
    /// Gives a packet away, or counts it as lost. `false`: nobody reads any more.
    pub fn offer(&self, packet: Packet) -> bool {
        let counts = &self.counts;
        counts.accepted.fetch_add(1, Ordering::Relaxed);
        let octets = packet.octets.len();
        let gap = counts.gap.swap(0, Ordering::Relaxed);
        let outcome = if self.queued.fetch_add(octets, Ordering::Relaxed) + octets > OCTETS {
            Err(!self.sender.is_closed())
        } else {
            let sent = self.sender.try_send(Record { interface: self.interface, lost: gap, packet });
            sent.map_err(|error| matches!(error, mpsc::error::TrySendError::Full(_)))
        };
        match outcome {
            Ok(()) => true,
            Err(wanted) => {
                self.queued.fetch_sub(octets, Ordering::Relaxed);
                counts.lost.fetch_add(1, Ordering::Relaxed);
                counts.gap.fetch_add(gap + 1, Ordering::Relaxed);
                wanted
            }
        }
    }
}

impl Outlet {
    /// Waits for packets and appends at most `limit` of them; 0: there will be no more.
    pub async fn receive(&mut self, records: &mut Vec<Record>, limit: usize) -> usize {
        let received = self.receiver.recv_many(records, limit).await;
        self.took(&records[records.len() - received..]);
        received
    }

    /// From now on nothing is taken in; what has been is still there to be received.
    pub fn close(&mut self) {
        self.receiver.close();
    }

    fn took(&self, records: &[Record]) {
        let octets = records.iter().map(|record| record.packet.octets.len()).sum();
        self.queued.fetch_sub(octets, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(octets: usize) -> Packet {
        Packet {
            time: SystemTime::UNIX_EPOCH,
            direction: Direction::Inbound,
            octets: vec![0; octets].into(),
            length: octets as u32,
            comment: None,
        }
    }

    fn received(outlet: &mut Outlet) -> Vec<Record> {
        let mut records = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(outlet.receive(&mut records, usize::MAX));
        records
    }

    #[test]
    fn what_finds_no_room_is_lost_and_the_next_packet_tells() {
        for (octets, room) in [(1, PACKETS), (65_536, OCTETS / 65_536)] {
            let (inlets, mut outlet) = channel(2);
            assert!((0..room + 3).all(|_| inlets[1].offer(packet(octets))));
            let counts = &inlets[1].counts;
            assert_eq!(counts.lost.load(Ordering::Relaxed), 3);
            assert_eq!(counts.accepted.load(Ordering::Relaxed), room as u64 + 3);
            assert_eq!(received(&mut outlet).len(), room);
            // The gap is told once, by a packet of the same interface.
            for (inlet, lost) in [(0, 0), (1, 3), (1, 0)] {
                assert!(inlets[inlet].offer(packet(octets)));
                let records = received(&mut outlet);
                assert_eq!((records[0].interface, records[0].lost), (inlet as u32, lost));
            }
            assert_eq!(outlet.queued.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn nobody_gives_to_one_who_has_gone() {
        let (inlets, mut outlet) = channel(1);
        assert!(inlets[0].offer(packet(1)));
        outlet.close();
        assert!(!inlets[0].offer(packet(1)));
        assert_eq!(received(&mut outlet).len(), 1, "what was there before");
    }
}

#[cfg(all(test, tunproxy_loom))]
mod loom_tests {
    use super::*;

    fn packet() -> Packet {
        let octets = vec![0; OCTETS].into();
        Packet {
            time: SystemTime::UNIX_EPOCH,
            direction: Direction::Inbound,
            octets,
            length: 1,
            comment: None,
        }
    }

    #[test]
    fn every_packet_arrives_or_is_counted_and_told_of() {
        loom::model(|| {
            let (inlets, mut outlet) = channel(1);
            let inlet = inlets[0].clone();
            let other = {
                let inlet = inlet.clone();
                loom::thread::spawn(move || assert!(inlet.offer(packet())))
            };
            assert!(inlet.offer(packet()));
            // The reader makes room while the other may still be at it.
            let mut records: Vec<Record> = outlet.receiver.try_recv().into_iter().collect();
            outlet.took(&records);
            other.join().unwrap();
            let late: Vec<Record> = std::iter::from_fn(|| outlet.receiver.try_recv().ok()).collect();
            outlet.took(&late);
            records.extend(late);
            let counts = &inlet.counts;
            let (lost, gap) = (counts.lost.load(Ordering::Relaxed), counts.gap.load(Ordering::Relaxed));
            assert!(!records.is_empty());
            assert_eq!(records.len() as u64 + lost, counts.accepted.load(Ordering::Relaxed));
            assert_eq!(records.iter().map(|record| record.lost).sum::<u64>() + gap, lost);
            assert_eq!(outlet.queued.load(Ordering::Relaxed), 0);
        });
    }
}
