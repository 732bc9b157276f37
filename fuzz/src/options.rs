//! A second reading of TCP options, to hold the engine's against.

/// What a SYN's options ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    pub sack: bool,
    /// Value and echo.
    pub timestamp: Option<(u32, u32)>,
}

impl Options {
    /// Reads `octets` as RFC 9293 3.2 has it: what is not understood is skipped by its length, and a length that leaves the
    /// header ends the list. The last of several holds.
    pub fn read(octets: &[u8]) -> Self {
        let mut found = Self::default();
        let mut at = 0;
        while at < octets.len() && octets[at] != 0 {
            if octets[at] == 1 {
                at += 1;
                continue;
            }
            let len = octets.get(at + 1).copied().map_or(0, usize::from);
            if len < 2 || at + len > octets.len() {
                break;
            }
            let word = |from: usize| (0..4).fold(0, |word, next| word << 8 | u32::from(octets[from + next]));
            match (octets[at], len) {
                (2, 4) => found.mss = Some((word(at) & 0xffff) as u16),
                (3, 3) => found.scale = Some(octets[at + 2].min(14)),
                (4, 2) => found.sack = true,
                (8, 10) => found.timestamp = Some((word(at + 2), word(at + 6))),
                _ => {}
            }
            at += len;
        }
        found
    }
}
