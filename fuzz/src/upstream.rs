//! The other end of a flow.

use crate::octets;

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
    pub(crate) fn check(&mut self, found: &[u8]) {
        assert!(!self.shut || found.is_empty(), "octets behind the pod's FIN");
        let expected = octets(self.received, found.len());
        assert!(found == expected, "wrong octets from the pod from {} on", self.received);
        self.received += found.len() as u64;
    }

    pub(crate) fn give(&mut self, space: &mut [u8]) -> usize {
        let len = space.len().min(self.to_send);
        space[..len].copy_from_slice(octets(self.sent, len));
        self.sent += len as u64;
        self.to_send -= len;
        len
    }
}
