//! Which shard of a pod has a packet: TCP is spread by its ends, everything else is the first one's.
//!
//! The kernel spreads packets over a TUN's queues by the same rule where it lets us say so (linux-net's queue program);
//! what it puts elsewhere is handed over. So a flow has one owner whatever the kernel does.

use std::net::IpAddr;

use crate::too_big::TooBig;
use crate::view::{Packet, Transport};

/// A stack's place among those of its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) index: usize,
    pub(crate) count: usize,
}

impl Shard {
    pub(crate) const ONLY: Self = Self { index: 0, count: 1 };

    /// The owner of a whole packet; of a TCP segment too short to show its ports the first shard, which drops it. An error
    /// about a segment of ours goes to the flow it is about.
    pub(crate) fn owner(self, packet: &Packet, bytes: &[u8]) -> usize {
        match packet.protocol {
            Transport::Tcp => match bytes.get(packet.transport.clone()) {
                Some([s0, s1, d0, d1, ..]) => {
                    self.pick(packet.destination, u32::from_be_bytes([*s0, *s1, *d0, *d1]))
                }
                _ => 0,
            },
            Transport::IcmpV4 | Transport::IcmpV6 => TooBig::parse(packet, bytes).map_or(0, |error| {
                let ports = u32::from(error.pod.port()) << 16 | u32::from(error.remote.port());
                self.pick(error.remote.ip(), ports)
            }),
            Transport::Udp | Transport::Other(_) => 0,
        }
    }

    fn pick(self, destination: IpAddr, ports: u32) -> usize {
        usize::from(spread(destination, ports)) % self.count
    }
}

/// What the flow from a port (the upper half of `ports`) to a port of `destination` is spread by, modulo the number of
/// queues or shards. Not keyed: a pod that aims at one shard slows only itself.
pub fn spread(destination: IpAddr, ports: u32) -> u16 {
    let address = match destination {
        IpAddr::V4(address) => address.to_bits(),
        // Hosts of a network differ in the last bits.
        IpAddr::V6(address) => address.to_bits() as u32,
    };
    // The finaliser of MurmurHash3: ephemeral ports of one kernel are all even, and every bit has to count.
    let mut hash = address ^ ports;
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(FIRST);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(SECOND);
    // The kernel takes 16 bits of what the queue program says.
    (hash ^ hash >> 16) as u16
}

/// MurmurHash3, fmix32.
pub const FIRST: u32 = 0x85eb_ca6b;
/// MurmurHash3, fmix32.
pub const SECOND: u32 = 0xc2b2_ae35;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_ports_use_all_shards() {
        for count in 2..=4 {
            let shard = Shard { index: 0, count };
            for destination in ["192.0.2.7", "2001:db8::7"] {
                let destination: IpAddr = destination.parse().unwrap();
                let mut flows = vec![0; count];
                for port in (32_768..60_000).step_by(2) {
                    flows[shard.pick(destination, port << 16 | 0x1bb)] += 1;
                }
                let fair = 13_616 / count;
                assert!(flows.iter().all(|&n| n > fair * 9 / 10 && n < fair * 11 / 10), "{flows:?}");
            }
        }
    }
}
