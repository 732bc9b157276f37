//! Keys of the flow tables and the identities handed across the IO boundary.

use std::hash::{BuildHasher, Hash};
use std::net::{IpAddr, SocketAddr};

use siphasher::sip::SipHasher13;

/// A TCP flow of one stack: a slot and the generation that tells a reused slot from the one meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    pub slot: u32,
    pub generation: u32,
}

/// An address and a port, without the flow label and scope that make `SocketAddr` half as large again: the table of
/// flows holds thousands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct End {
    address: IpAddr,
    port: u16,
}

impl From<SocketAddr> for End {
    fn from(from: SocketAddr) -> Self {
        Self { address: from.ip(), port: from.port() }
    }
}

impl From<End> for SocketAddr {
    fn from(from: End) -> Self {
        Self::new(from.address, from.port)
    }
}

/// Both ends of a flow as the pod names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    pod: End,
    remote: End,
}

impl Ends {
    pub(crate) fn new(pod: SocketAddr, remote: SocketAddr) -> Self {
        Self { pod: pod.into(), remote: remote.into() }
    }

    pub(crate) fn pod(&self) -> SocketAddr {
        self.pod.into()
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        self.remote.into()
    }

    pub(crate) fn is_v6(&self) -> bool {
        self.pod.address.is_ipv6()
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
