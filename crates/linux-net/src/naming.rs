//! What an attachment is called inside the pod, as a function of the interface name alone: DEL finds everything
//! without asking anybody, and several interfaces of one pod do not disturb each other.
//!
//! | interface | TUN | table | rules |
//! |---|---|---|---|
//! | `eth0` | `tun0` | 74000 | 100, 105, 110, 150, 200 |
//! | any other | `tun-NAME`, shortened to 15 bytes | 74001 to 76000 | ten numbers from 10010 to 30009 |
//!
//! `eth0` carries what is not bound to an interface's address. Traffic from the address of another interface jumps to
//! that interface's own rules by a `goto` at priority 50; where `eth0` is not steered, they catch unbound traffic too.

use std::fmt;

/// Longest interface name in bytes: `IFNAMSIZ` less the final zero.
pub const MAX_IFNAME: usize = 15;

const TABLE_BASE: u32 = 74_000;
const BLOCK_BASE: u32 = 10_000;
/// Below the kernel's own rules 32766 and 32767.
const SLOTS: u32 = 2000;

/// Whose device: written into the link's alias, so that DEL and CHECK tell ours from others'.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    pub container_id: String,
    pub ifname: String,
}

/// Longest container id that fits into a link alias (`IFALIASZ` is 256) beside the rest.
pub const MAX_CONTAINER_ID: usize = 200;

const ALIAS_PREFIX: &str = "tunproxy:";

impl Owner {
    pub fn alias(&self) -> String {
        format!("{ALIAS_PREFIX}{}:{}", self.ifname, self.container_id)
    }

    /// The owner that an alias names; `None` when the device is not ours.
    pub fn from_alias(alias: &str) -> Option<Self> {
        let (ifname, container_id) = alias.strip_prefix(ALIAS_PREFIX)?.split_once(':')?;
        Some(Self { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// Name of the TUN beside the interface `ifname`.
pub fn tun_name(ifname: &str) -> String {
    if ifname == PRIMARY {
        return "tun0".into();
    }
    let long = format!("tun-{ifname}");
    if long.len() <= MAX_IFNAME { long } else { format!("tun-{:08x}", stable_hash(ifname)) }
}

/// Where the rules and the table of an interface are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u32);

/// The interface that gets slot 0.
const PRIMARY: &str = "eth0";

impl Slot {
    pub const PRIMARY: Self = Self(0);

    pub fn of(ifname: &str) -> Self {
        if ifname == PRIMARY { Self::PRIMARY } else { Self(1 + stable_hash(ifname) % (SLOTS - 1)) }
    }

    pub fn is_primary(self) -> bool {
        self == Self::PRIMARY
    }

    pub fn table(self) -> u32 {
        TABLE_BASE + self.0
    }

    pub fn priorities(self) -> Priorities {
        if self.is_primary() {
            return Priorities { mark: 100, dns: 105, cluster: 110, local: 150, steer: 200 };
        }
        let start = BLOCK_BASE + self.0 * 10;
        Priorities { mark: start, dns: start + 1, cluster: start + 2, local: start + 3, steer: start + 4 }
    }
}

/// Priorities of the rules of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Priorities {
    /// Marked packets (replies to inbound connections) go to the main table.
    pub mark: u32,
    /// Port 53 goes into the TUN, also towards cluster addresses.
    pub dns: u32,
    /// Pod and service networks go to the main table.
    pub cluster: u32,
    /// What the main table knows without its default route, the steered interfaces excepted.
    pub local: u32,
    /// Everything else goes into the TUN.
    pub steer: u32,
}

impl Priorities {
    /// Where traffic from a secondary interface's own address jumps to its rules.
    pub const JUMP: u32 = 50;

    pub fn contains(&self, priority: u32) -> bool {
        [self.mark, self.dns, self.cluster, self.local, self.steer].contains(&priority)
    }
}

/// FNV-1a, 32 bit: stable across releases, which the standard library's hasher is not.
pub(crate) fn stable_hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primary_interface_has_the_documented_numbers() {
        let slot = Slot::of("eth0");
        assert_eq!((tun_name("eth0").as_str(), slot.table(), slot.priorities().steer), ("tun0", 74_000, 200));
    }

    #[test]
    fn names_fit_and_numbers_stay_below_the_kernels() {
        for ifname in ["net1", "net2", "a", "123456789012345", "ens1f0np0.4094"] {
            assert!(tun_name(ifname).len() <= MAX_IFNAME, "{ifname}");
            assert!(Slot::of(ifname).priorities().steer < 32_766, "{ifname}");
            assert!(Slot::of(ifname).priorities().mark > 200, "{ifname}");
        }
    }

    /// Written down: a change would make a new plugin miss what an old one left.
    #[test]
    fn names_and_numbers_are_stable() {
        assert_eq!(tun_name("net1"), "tun-net1");
        assert_eq!(tun_name("123456789012345"), "tun-12d80a17");
        assert_eq!(Slot::of("net1").table(), 74_001 + stable_hash("net1") % 1999);
    }

    #[test]
    fn the_usual_secondary_interfaces_do_not_collide() {
        let mut tables: Vec<u32> = (1..=16).map(|n| Slot::of(&format!("net{n}")).table()).collect();
        tables.extend((0..=16).map(|n| Slot::of(&format!("eth{n}")).table()));
        let all = tables.len();
        tables.sort_unstable();
        tables.dedup();
        assert_eq!(tables.len(), all);
    }

    #[test]
    fn an_alias_names_its_owner() {
        let owner = Owner { container_id: "c".repeat(MAX_CONTAINER_ID), ifname: "123456789012345".into() };
        assert!(owner.alias().len() < 256);
        assert_eq!(Owner::from_alias(&owner.alias()), Some(owner));
        assert_eq!(Owner::from_alias("uplink of rack 7"), None);
    }
}
