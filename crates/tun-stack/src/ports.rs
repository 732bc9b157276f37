//! Ephemeral ports.

/// The dynamic ports of RFC 6335 section 6.
const FIRST: u16 = 49_152;
const COUNT: u16 = u16::MAX - FIRST + 1;

/// Hands out ports one after the other from a random start (RFC 6056 section 3.3.1): a port that was just closed is
/// the last to be used again.
#[derive(Debug)]
pub struct EphemeralPorts {
    next: u16,
}

impl EphemeralPorts {
    pub fn new(seed: u64) -> Self {
        Self { next: (seed % u64::from(COUNT)) as u16 }
    }

    /// The next port that `is_free`; `None` when none is.
    pub fn take(&mut self, is_free: impl Fn(u16) -> bool) -> Option<u16> {
        for _ in 0..COUNT {
            let port = FIRST + self.next;
            self.next = (self.next + 1) % COUNT;
            if is_free(port) {
                return Some(port);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_ports_come_once_and_then_none() {
        let mut ports = EphemeralPorts::new(16_383);
        let mut taken = HashSet::new();
        while let Some(port) = ports.take(|port| !taken.contains(&port)) {
            assert!(port >= FIRST && taken.insert(port));
        }
        assert_eq!(taken.len(), usize::from(COUNT));
    }

    proptest! {
        #[test]
        fn a_port_in_use_is_never_given(seed: u64, used in prop::collection::hash_set(FIRST.., 0..200)) {
            let mut ports = EphemeralPorts::new(seed);
            for _ in 0..500 {
                let port = ports.take(|port| !used.contains(&port)).expect("most are free");
                prop_assert!(port >= FIRST && !used.contains(&port));
            }
        }
    }
}
