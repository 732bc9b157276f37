//! What bulk streams carry: octets that tell their place, so that what is lost, repeated or exchanged on the way is seen.

/// A prime, so that no buffer, segment or page is a multiple of it.
const PERIOD: usize = 65_521;
/// Looked at on either side of what one call moved: the whole would cost as much as moving it.
const SAMPLE: usize = 64;

/// The octets of a stream from any place of it on, `longest` at once.
#[derive(Debug)]
pub struct Pattern(Vec<u8>);

impl Pattern {
    pub fn new(longest: usize) -> Self {
        // xorshift32 (Marsaglia, 2003): no octet follows from those beside it.
        let mut state = 0x9e37_79b9_u32;
        let period: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .take(PERIOD)
        .collect();
        Self(period.iter().copied().cycle().take(PERIOD + longest).collect())
    }

    pub fn from(&self, place: u64, length: usize) -> &[u8] {
        let start = (place % PERIOD as u64) as usize;
        &self.0[start..start + length]
    }

    /// Whether `octets` may stand at `place`, by both ends of them.
    pub fn fits(&self, place: u64, octets: &[u8]) -> bool {
        let sample = octets.len().min(SAMPLE);
        let last = octets.len() - sample;
        octets[..sample] == *self.from(place, sample)
            && octets[last..] == *self.from(place + last as u64, sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_fit_their_place_alone() {
        let pattern = Pattern::new(10_000);
        for place in [0, 1, 65_520, 65_521, 1 << 40] {
            let octets = pattern.from(place, 10_000).to_vec();
            assert!(pattern.fits(place, &octets));
            for other in [place + 1, place + 1_460, place + 65_536, place + 10_000] {
                assert!(!pattern.fits(other, &octets), "{place} and {other}");
            }
            assert!(!pattern.fits(place, &[&octets[..5_000], &octets[5_001..]].concat()));
        }
        assert!(pattern.fits(7, &[]));
    }
}
