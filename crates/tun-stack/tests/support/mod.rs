//! What the tests of the library and of the samples have in common.

use std::time::Duration;

/// Far beyond what a busy machine needs; nothing waits this long when all is well.
pub const LIMIT: Duration = Duration::from_mins(2);

/// Bytes that differ in every place where a mistake would show.
pub fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index * 7 + index / 251 + index / 65_521) as u8).collect()
}
