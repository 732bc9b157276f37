//! Datagrams of one mapping to one destination that came one after another: they leave in one call, and the kernel cuts
//! them (udp(7), UDP_SEGMENT). Through its stack goes one packet instead of dozens.

use std::net::SocketAddr;

use tunproxy_datapath::{IpFields, MappingId};

/// The kernel's bound until 6.9 (`UDP_MAX_SEGMENTS`).
const MOST: usize = 64;

/// With the headers of either family below the largest packet.
const OCTETS: usize = 65_000;

/// What datagrams have in common that leave together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sending {
    pub(super) mapping: MappingId,
    pub(super) to: SocketAddr,
    pub(super) fields: IpFields,
}

/// What waits to be sent; nothing does between two turns.
#[derive(Debug, Default)]
pub(super) struct DatagramRun {
    octets: Vec<u8>,
    /// All are as long as the first, but for a shorter last one.
    segment: usize,
    last: usize,
    sending: Option<Sending>,
}

impl DatagramRun {
    pub(super) fn new() -> Self {
        Self { octets: Vec::with_capacity(OCTETS), ..Self::default() }
    }

    /// Whether a datagram may join those that wait; if not, they have to go first.
    pub(super) fn takes(&self, sending: Sending, length: usize) -> bool {
        let joins = self.sending == Some(sending)
            && self.last == self.segment
            && (1..=self.segment).contains(&length)
            && self.octets.len() + length <= OCTETS
            && self.octets.len() / self.segment < MOST;
        self.sending.is_none() || joins
    }

    /// Only what [`Self::takes`] allows.
    pub(super) fn push(&mut self, sending: Sending, datagram: &[u8]) {
        debug_assert!(self.takes(sending, datagram.len()));
        if self.sending.is_none() {
            self.sending = Some(sending);
            self.segment = datagram.len();
        }
        self.last = datagram.len();
        self.octets.extend_from_slice(datagram);
    }

    /// Ends the run. The octets stay readable until the next one begins.
    pub(super) fn take(&mut self) -> Option<(Sending, usize)> {
        let sending = self.sending.take()?;
        Some((sending, self.segment))
    }

    pub(super) fn octets(&self) -> &[u8] {
        &self.octets
    }

    pub(super) fn clear(&mut self) {
        self.octets.clear();
    }
}

/// Cuts datagrams of `segment` octets each into what one call sends.
pub(super) fn calls(datagrams: &[u8], segment: usize) -> impl Iterator<Item = &[u8]> {
    let most = (OCTETS / segment.max(1)).clamp(1, MOST) * segment.max(1);
    // A datagram of nothing is one too.
    let empty = datagrams.is_empty().then_some(datagrams);
    datagrams.chunks(most).chain(empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sending(slot: u32, port: u16) -> Sending {
        Sending {
            mapping: MappingId { slot, generation: 0 },
            to: SocketAddr::from(([192, 0, 2, 1], port)),
            fields: IpFields { hop_limit: 64, traffic_class: 0, dont_fragment: true },
        }
    }

    /// How many of the datagrams of these lengths go into one run.
    fn joined(lengths: impl IntoIterator<Item = usize>) -> usize {
        let mut run = DatagramRun::new();
        let mut taken = 0;
        for length in lengths {
            if !run.takes(sending(0, 443), length) {
                break;
            }
            run.push(sending(0, 443), &vec![1; length]);
            taken += 1;
        }
        assert!(taken == 1 || run.octets().len() <= OCTETS);
        taken
    }

    #[test]
    fn equal_ones_go_together_and_a_shorter_one_ends_them() {
        assert_eq!(joined([1_200, 1_200, 700, 1_200]), 3);
        assert_eq!(joined([1_200, 1_201]), 1);
        assert_eq!(joined([0, 0]), 1);
        assert_eq!(joined([1_200, 0]), 1);
        assert_eq!(joined([65_507, 1]), 1);
        assert_eq!(joined([1; 100]), MOST);
        assert_eq!(joined([1_472; 100]), 44);
    }

    #[test]
    fn another_mapping_destination_or_header_waits() {
        let mut run = DatagramRun::new();
        run.push(sending(0, 443), b"x");
        assert!(!run.takes(sending(1, 443), 1));
        assert!(!run.takes(sending(0, 444), 1));
        let mut marked = sending(0, 443);
        marked.fields.traffic_class = 1;
        assert!(!run.takes(marked, 1));
        assert_eq!(run.take(), Some((sending(0, 443), 1)));
        run.clear();
        assert!(run.takes(sending(1, 443), 9));
        assert_eq!(run.take(), None);
    }

    #[test]
    fn super_segments_are_cut_at_the_bounds_of_a_call() {
        let lengths = |octets: usize, segment| -> Vec<usize> {
            calls(&vec![0; octets], segment).map(<[u8]>::len).collect()
        };
        assert_eq!(lengths(0, 1), [0]);
        assert_eq!(lengths(65_507, 65_507), [65_507]);
        assert_eq!(lengths(130, 1), [64, 64, 2]);
        assert_eq!(lengths(65_400, 1_472), [44 * 1_472, 65_400 - 44 * 1_472]);
    }
}
