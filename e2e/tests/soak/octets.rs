//! What is sent: octets that follow from a number, so that either end knows what the other must say.

/// A prime: what begins at different places differs everywhere.
const PERIOD: usize = 1_048_573;

#[derive(Debug)]
pub struct Octets(Vec<u8>);

impl Octets {
    /// For texts of up to `longest` octets.
    pub fn new(longest: usize) -> Self {
        let mut ring = vec![0; PERIOD + longest];
        fastrand::Rng::with_seed(0x736f_616b).fill(&mut ring[..PERIOD]);
        ring.copy_within(..longest, PERIOD);
        Self(ring)
    }

    /// The first `length` octets of text `number`.
    pub fn text(&self, number: u64, length: usize) -> &[u8] {
        let start = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % PERIOD as u64) as usize;
        &self.0[start..start + length]
    }
}
