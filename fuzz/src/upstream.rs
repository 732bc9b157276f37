//! The other end of a flow.

use crate::octet;

#[derive(Debug)]
pub(crate) struct Upstream {
    /// Octets received so far.
    received: u64,
    sent: u64,
    pub(crate) to_send: usize,
    pub(crate) closes: bool,
    pub(crate) eof_told: bool,
    pub(crate) stalled: bool,
    pub(crate) shut: bool,
}

impl Upstream {
    pub(crate) fn new() -> Self {
        Self { received: 0, sent: 0, to_send: 0, closes: false, eof_told: false, stalled: false, shut: false }
    }

    /// The pod's stream is the pattern from its beginning, whatever segments it came in.
    pub(crate) fn check(&mut self, octets: &[u8]) {
        assert!(!self.shut || octets.is_empty(), "octets behind the pod's FIN");
        for &found in octets {
            assert_eq!(found, octet(self.received), "octet {} from the pod", self.received);
            self.received += 1;
        }
    }

    pub(crate) fn give(&mut self, space: &mut [u8]) -> usize {
        let len = space.len().min(self.to_send);
        for place in &mut space[..len] {
            *place = octet(self.sent);
            self.sent += 1;
        }
        self.to_send -= len;
        len
    }
}
