//! Address ranges: subtraction, the reserved ranges, and the index that finds every network around an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Ranges that mean the pod itself, its link or a group. No upstream can reach them for the pod, and 169.254.169.254 hands
/// out node credentials in every large cloud: a rule has to name them.
const RESERVED: [IpNet; 9] = [
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([224, 0, 0, 0], 4),
    v4([255, 255, 255, 255], 32),
    v6(0, 0, 128),
    v6(0, 1, 128),
    v6(0xfe80, 0, 10),
    v6(0xff00, 0, 8),
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn v6(head: u16, tail: u16, prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(head, 0, 0, 0, 0, 0, 0, tail), prefix))
}

pub(crate) fn is_reserved(address: IpAddr) -> bool {
    RESERVED.iter().any(|reserved| reserved.contains(&address))
}

/// Whether `network` is one that names a reserved destination: it lies inside a reserved range.
pub(crate) fn is_within_reserved(network: &IpNet) -> bool {
    RESERVED.iter().any(|reserved| reserved.contains(network))
}

/// Flows are decided on canonical addresses, so a v4-mapped IPv6 network is kept as the IPv4 network it means.
pub(crate) fn canonical(network: IpNet) -> IpNet {
    const MAPPED_PREFIX: u8 = 96;
    let IpNet::V6(v6) = network else { return network.trunc() };
    let mapped = v6.network().to_ipv4_mapped();
    match (mapped, v6.prefix_len().checked_sub(MAPPED_PREFIX)) {
        (Some(address), Some(prefix)) => Ipv4Net::new(address, prefix).map_or(network.trunc(), IpNet::V4),
        (None, _) | (_, None) => network.trunc(),
    }
}

/// `network` without `holes`, as the fewest networks. At most one piece per bit of each hole.
pub(crate) fn subtract(network: IpNet, holes: &[IpNet]) -> Vec<IpNet> {
    let mut pieces = vec![network];
    for hole in holes {
        pieces = pieces.into_iter().flat_map(|piece| split_around(piece, *hole)).collect();
    }
    pieces
}

fn split_around(network: IpNet, hole: IpNet) -> Vec<IpNet> {
    if hole.contains(&network) {
        return Vec::new();
    }
    if !network.contains(&hole) {
        return vec![network];
    }
    // On the way down from the network to the hole, the half without the hole is a piece.
    let mut pieces = Vec::new();
    let mut around = network;
    while around != hole {
        let Ok(halves) = around.subnets(around.prefix_len() + 1) else { break };
        for half in halves {
            if half.contains(&hole) {
                around = half;
            } else {
                pieces.push(half);
            }
        }
    }
    pieces
}

/// A value for each of a set of networks; a lookup visits all networks around an address, longest prefix first.
///
/// Networks nest or are disjoint. Sorted by (first address, prefix length), the last entry that starts at or before an
/// address is around it or is a descendant of what is, so the parent links from there lead through every match.
#[derive(Debug)]
pub(crate) struct NetworkMap<V> {
    v4: Forest<V>,
    v6: Forest<V>,
}

#[derive(Debug)]
struct Forest<V> {
    /// The first addresses alone: what the binary search touches stays dense.
    starts: Vec<u128>,
    nodes: Vec<Node<V>>,
}

#[derive(Debug)]
struct Node<V> {
    last: u128,
    parent: Option<u32>,
    value: V,
}

impl<V> NetworkMap<V> {
    /// Each network may occur once.
    pub fn build(networks: impl IntoIterator<Item = (IpNet, V)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (network, value) in networks {
            let family = if matches!(network, IpNet::V4(_)) { &mut v4 } else { &mut v6 };
            family.push((bits(network.network()), bits(network.broadcast()), value));
        }
        Self { v4: Forest::build(v4), v6: Forest::build(v6) }
    }

    pub fn around(&self, address: IpAddr) -> impl Iterator<Item = &V> {
        let forest = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        forest.around(bits(address))
    }
}

impl<V> Forest<V> {
    fn build(mut networks: Vec<(u128, u128, V)>) -> Self {
        networks.sort_unstable_by_key(|&(first, last, _)| (first, std::cmp::Reverse(last)));
        let mut forest = Self { starts: Vec::new(), nodes: Vec::with_capacity(networks.len()) };
        for (first, last, value) in networks {
            let mut parent = forest.nodes.len().checked_sub(1);
            while let Some(index) = parent
                && forest.nodes[index].last < first
            {
                parent = forest.nodes[index].parent.map(|index| index as usize);
            }
            forest.starts.push(first);
            forest.nodes.push(Node { last, parent: parent.map(|index| index as u32), value });
        }
        forest
    }

    fn around(&self, address: u128) -> impl Iterator<Item = &V> {
        let nearest = self.starts.partition_point(|start| *start <= address).checked_sub(1);
        let chain = std::iter::successors(nearest.map(|index| &self.nodes[index]), |node| {
            node.parent.map(|index| &self.nodes[index as usize])
        });
        chain.filter(move |node| address <= node.last).map(|node| &node.value)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn reserved_addresses_in_both_families() {
        let reserved = [
            "0.0.0.0",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "224.0.0.251",
            "239.255.255.250",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
        ];
        for address in reserved {
            assert!(is_reserved(address.parse().expect("an address")), "{address}");
        }
        for address in
            ["1.0.0.0", "126.255.255.255", "169.253.0.1", "223.255.255.255", "::2", "fec0::1", "fd00::1"]
        {
            assert!(!is_reserved(address.parse().expect("an address")), "{address}");
        }
    }

    #[test]
    fn mapped_networks_mean_ipv4() {
        assert_eq!(canonical(net("::ffff:10.0.0.0/104")), net("10.0.0.0/8"));
        assert_eq!(canonical(net("::ffff:0:0/96")), net("0.0.0.0/0"));
        assert_eq!(canonical(net("::/0")), net("::/0"));
        assert_eq!(canonical(net("10.1.2.3/8")), net("10.0.0.0/8"));
    }

    #[test]
    fn a_hole_leaves_one_piece_per_bit() {
        let pieces = subtract(net("10.0.0.0/8"), &[net("10.128.0.0/10")]);
        assert_eq!(pieces, [net("10.0.0.0/9"), net("10.192.0.0/10")]);
        assert_eq!(subtract(net("10.0.0.0/8"), &[net("10.0.0.0/8")]), []);
        assert_eq!(subtract(net("10.0.0.0/8"), &[net("0.0.0.0/0")]), []);
        assert_eq!(subtract(net("10.0.0.0/8"), &[net("11.0.0.0/8"), net("::/0")]), [net("10.0.0.0/8")]);
    }

    /// Few distinct leading and trailing bits, so that networks nest, touch and repeat.
    fn any_network() -> impl Strategy<Value = IpNet> {
        let v4 = (0u32..16, 0u8..=6).prop_map(|(head, prefix)| {
            IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from_bits(head << 28), prefix)).trunc()
        });
        let v6 = (0u128..16, 0u8..=6).prop_map(|(head, prefix)| {
            IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(head << 124), prefix)).trunc()
        });
        prop_oneof![v4, v6]
    }

    fn any_address() -> impl Strategy<Value = IpAddr> {
        let v4 = (0u32..64).prop_map(|head| IpAddr::V4(Ipv4Addr::from_bits(head << 26)));
        let v6 = (0u128..64).prop_map(|head| IpAddr::V6(Ipv6Addr::from_bits(head << 122)));
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn the_map_visits_exactly_the_networks_around(
            networks in btree_set(any_network(), 0..24),
            address in any_address(),
        ) {
            let map = NetworkMap::build(networks.iter().map(|network| (*network, *network)));
            let visited: Vec<_> = map.around(address).copied().collect();
            let scanned: BTreeSet<_> = networks.iter().copied().filter(|one| one.contains(&address)).collect();
            prop_assert_eq!(visited.iter().copied().collect::<BTreeSet<_>>(), scanned);
            prop_assert!(visited.is_sorted_by(|one, next| one.prefix_len() > next.prefix_len()));
        }

        #[test]
        fn subtraction_agrees_with_membership(
            network in any_network(),
            holes in vec(any_network(), 0..4),
            address in any_address(),
        ) {
            let pieces = subtract(network, &holes);
            let expected = network.contains(&address) && !holes.iter().any(|hole| hole.contains(&address));
            let holding = pieces.iter().filter(|piece| piece.contains(&address)).count();
            prop_assert_eq!(holding, usize::from(expected), "pieces are disjoint and exact: {:?}", pieces);
        }
    }
}
