//! Sequence numbers: 32 bits that wrap.

use std::ops::{Add, AddAssign, Sub};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Seq(pub(crate) u32);

impl Seq {
    pub(crate) fn before(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    pub(crate) fn after(self, other: Self) -> bool {
        other.before(self)
    }

    pub(crate) fn at_or_before(self, other: Self) -> bool {
        !other.before(self)
    }

    pub(crate) fn at_or_after(self, other: Self) -> bool {
        !self.before(other)
    }

    pub(crate) fn later_of(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }

    pub(crate) fn earlier_of(self, other: Self) -> Self {
        if self.before(other) { self } else { other }
    }
}

impl Add<u32> for Seq {
    type Output = Self;

    fn add(self, octets: u32) -> Self {
        Self(self.0.wrapping_add(octets))
    }
}

impl AddAssign<u32> for Seq {
    fn add_assign(&mut self, octets: u32) {
        *self = *self + octets;
    }
}

/// The distance from `other` up to `self`; the caller knows that `self` is not before `other`.
impl Sub for Seq {
    type Output = u32;

    fn sub(self, other: Self) -> u32 {
        self.0.wrapping_sub(other.0)
    }
}
