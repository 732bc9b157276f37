//! Keys of the flow tables and the identities handed across the IO boundary.

use std::hash::{BuildHasher, Hash};
use std::net::SocketAddr;

use siphasher::sip::SipHasher13;

/// A TCP flow of one stack: a slot and the generation that tells a reused slot from the one meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    pub slot: u32,
    pub generation: u32,
}

/// Both ends of a flow as the pod names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    pub pod: SocketAddr,
    pub remote: SocketAddr,
}

impl Ends {
    pub fn is_v6(&self) -> bool {
        self.pod.is_ipv6()
    }
}

/// A keyed hasher: pods choose their ports and may know the code, but not the key.
#[derive(Clone, Debug)]
pub struct KeyedState {
    key: [u8; 16],
}

impl KeyedState {
    pub fn new(key: [u8; 16]) -> Self {
        Self { key }
    }

    /// A keyed 64-bit value of anything hashable; the initial sequence numbers are made from it.
    pub fn hash(&self, value: impl Hash) -> u64 {
        self.hash_one(value)
    }
}

impl BuildHasher for KeyedState {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.key)
    }
}
