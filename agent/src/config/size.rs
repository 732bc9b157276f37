//! Byte counts as people write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes; written with the binary suffixes Ki, Mi, Gi (as Kubernetes quantities) or plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSize {
    #[error("is not a size (a whole number of bytes, or with Ki, Mi, Gi: 64Mi)")]
    NotASize,
    #[error("is larger than any machine's memory")]
    TooLarge,
}

const UNITS: [(&str, u32); 3] = [("Gi", 30), ("Mi", 20), ("Ki", 10)];

impl ByteSize {
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }

    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let (digits, shift) = UNITS
            .iter()
            .find_map(|(suffix, shift)| Some((text.strip_suffix(suffix)?, *shift)))
            .unwrap_or((text, 0));
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(BadSize::NotASize);
        }
        let count: u64 = digits.parse().map_err(|_| BadSize::TooLarge)?;
        count.checked_mul(1 << shift).map(Self).ok_or(BadSize::TooLarge)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, shift)| self.0 > 0 && self.0.trailing_zeros() >= *shift);
        match unit {
            Some((suffix, shift)) => write!(f, "{}{suffix}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn suffixes_are_binary() {
        assert_eq!("64Mi".parse(), Ok(ByteSize(64 * 1024 * 1024)));
        assert_eq!("1Gi".parse(), Ok(ByteSize(1 << 30)));
        assert_eq!("10".parse(), Ok(ByteSize(10)));
        for text in ["", "Mi", "1M", "1.5Gi", "-1", "+1", "1 Ki", "0x10"] {
            assert_eq!(text.parse::<ByteSize>(), Err(BadSize::NotASize), "{text:?}");
        }
        assert_eq!("17179869184Gi".parse::<ByteSize>(), Err(BadSize::TooLarge));
        assert_eq!("99999999999999999999".parse::<ByteSize>(), Err(BadSize::TooLarge));
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_the_same(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn no_text_panics(text in ".{0,30}") {
            let _ = text.parse::<ByteSize>();
        }
    }
}
