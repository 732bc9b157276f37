//! Which ports a rule covers, and the index that finds the first rule covering one.

use std::collections::BTreeSet;

use crate::decision::Protocol;
use crate::model::{PortMatch, PortRange};

/// A rule's place in its tier: lower decides first.
pub(crate) type Ordinal = u32;

/// The ports of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortSet {
    tcp: Vec<PortRange>,
    udp: Vec<PortRange>,
    icmp: bool,
}

/// The lowest ordinal for each port, among rules that share a destination. The port space is cut where the answer
/// changes, so a lookup is one binary search however many rules there are.
#[derive(Debug, Default)]
pub(crate) struct PortMap {
    tcp: Box<[Segment]>,
    udp: Box<[Segment]>,
    icmp: Option<Ordinal>,
}

/// Holds from `first` to the next segment's.
#[derive(Debug)]
struct Segment {
    first: u16,
    rule: Option<Ordinal>,
}

impl PortSet {
    /// An empty list is every port of every protocol.
    pub fn new(ports: &[PortMatch]) -> Self {
        if ports.is_empty() {
            return Self { tcp: vec![PortRange::ALL], udp: vec![PortRange::ALL], icmp: true };
        }
        let mut set = Self { tcp: Vec::new(), udp: Vec::new(), icmp: false };
        for port in ports {
            let range = port.range.unwrap_or(PortRange::ALL);
            match port.protocol {
                Protocol::Tcp => set.tcp.push(range),
                Protocol::Udp => set.udp.push(range),
                Protocol::Icmp => set.icmp = true,
            }
        }
        set
    }

    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        let within = |ranges: &[PortRange]| ranges.iter().any(|range| range.contains(port));
        match protocol {
            Protocol::Tcp => within(&self.tcp),
            Protocol::Udp => within(&self.udp),
            Protocol::Icmp => self.icmp,
        }
    }
}

impl PortMap {
    pub fn build(rules: &[(Ordinal, &PortSet)]) -> Self {
        let ranges = |of: fn(&PortSet) -> &[PortRange]| {
            let ranges = rules.iter().flat_map(|(rule, ports)| of(ports).iter().map(|range| (*rule, *range)));
            segments(ranges)
        };
        Self {
            tcp: ranges(|ports| &ports.tcp),
            udp: ranges(|ports| &ports.udp),
            icmp: rules.iter().filter(|(_, ports)| ports.icmp).map(|(rule, _)| *rule).min(),
        }
    }

    pub fn first(&self, protocol: Protocol, port: u16) -> Option<Ordinal> {
        let segments = match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
            Protocol::Icmp => return self.icmp,
        };
        let after = segments.partition_point(|segment| segment.first <= port);
        segments[..after].last().and_then(|segment| segment.rule)
    }
}

/// Sweeps over the starts and ends of the ranges, keeping the set of rules that hold.
fn segments(ranges: impl Iterator<Item = (Ordinal, PortRange)>) -> Box<[Segment]> {
    let mut edges = Vec::new();
    for (serial, (rule, range)) in ranges.enumerate() {
        edges.push((u32::from(range.first()), true, rule, serial));
        edges.push((u32::from(range.last()) + 1, false, rule, serial));
    }
    edges.sort_unstable();
    let mut segments: Vec<Segment> = Vec::new();
    let mut holding = BTreeSet::new();
    for edges_here in edges.chunk_by(|one, other| one.0 == other.0) {
        for &(_, opens, rule, serial) in edges_here {
            if opens {
                holding.insert((rule, serial));
            } else {
                holding.remove(&(rule, serial));
            }
        }
        let Ok(first) = u16::try_from(edges_here[0].0) else { break };
        let rule = holding.first().map(|(rule, _)| *rule);
        if segments.last().and_then(|segment| segment.rule) != rule {
            segments.push(Segment { first, rule });
        }
    }
    segments.into()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn any_port_match() -> impl Strategy<Value = PortMatch> {
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Icmp)];
        let edge = || prop_oneof![0u16..20, 65520..=65535u16];
        (protocol, proptest::option::of((edge(), edge()))).prop_map(|(protocol, ends)| PortMatch {
            protocol,
            range: ends.and_then(|(one, other)| PortRange::new(one.min(other), one.max(other))),
        })
    }

    proptest! {
        #[test]
        fn the_map_finds_what_a_scan_finds(
            rules in vec(vec(any_port_match(), 0..4), 0..8),
            port in prop_oneof![0u16..22, 65515..=65535u16, any::<u16>()],
        ) {
            let sets: Vec<_> = rules.iter().map(|ports| PortSet::new(ports)).collect();
            let entries: Vec<_> = sets.iter().enumerate().map(|(rule, set)| (rule as Ordinal, set)).collect();
            let map = PortMap::build(&entries);
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
                let scanned = sets.iter().position(|set| set.contains(protocol, port)).map(|rule| rule as Ordinal);
                prop_assert_eq!(map.first(protocol, port), scanned);
            }
        }
    }
}
