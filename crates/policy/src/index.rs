//! Finds the first rule of a tier for a flow without looking at the others.
//!
//! Each way to match a destination (any, a name, a name's parent, a network) leads to a [`PortMap`], which knows the first of
//! its rules for every port. A lookup asks the few maps a flow can match and takes the minimum.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::decision::Protocol;
use crate::model::Destination;
use crate::names::{DomainName, DomainPattern};
use crate::networks::{self, NetworkMap};
use crate::ports::{Ordinal, PortMap, PortSet};
use crate::rule::{CompiledRule, Scope};

#[derive(Debug)]
pub(crate) struct DestinationIndex {
    any: PortMap,
    any_name: PortMap,
    exact: HashMap<DomainName, PortMap>,
    below: HashMap<DomainName, PortMap>,
    /// Labels of the longest name in `below`: longer suffixes need no lookup.
    below_labels: usize,
    networks: NetworkMap<PortMap>,
}

type Entries<'a> = Vec<(Ordinal, &'a PortSet)>;

#[derive(Default)]
struct Builder<'a> {
    any: Entries<'a>,
    any_name: Entries<'a>,
    exact: BTreeMap<DomainName, Entries<'a>>,
    below: BTreeMap<DomainName, Entries<'a>>,
    networks: BTreeMap<IpNet, Entries<'a>>,
}

impl DestinationIndex {
    /// `rules` in order: a rule's place is its ordinal.
    pub fn build(rules: &[Arc<CompiledRule>], scope: Scope) -> Self {
        let mut builder = Builder::default();
        for (ordinal, rule) in rules.iter().enumerate() {
            builder.add(ordinal as Ordinal, rule, scope);
        }
        builder.finish()
    }

    /// The first rule that matches whatever the flow's name.
    pub fn by_address(&self, protocol: Protocol, address: IpAddr, port: u16) -> Option<Ordinal> {
        let networks = self.networks.around(address).filter_map(|ports| ports.first(protocol, port));
        networks.chain(self.any.first(protocol, port)).min()
    }

    /// The first rule that matches because of the name.
    pub fn by_name(&self, protocol: Protocol, name: &DomainName, port: u16) -> Option<Ordinal> {
        let exact = self.exact.get(name);
        let maps = self.parents(name.as_str()).filter_map(|parent| self.below.get(parent)).chain(exact);
        maps.chain([&self.any_name]).filter_map(|ports| ports.first(protocol, port)).min()
    }

    fn parents<'n>(&self, name: &'n str) -> impl Iterator<Item = &'n str> {
        name.rmatch_indices('.').take(self.below_labels).map(|(dot, _)| &name[dot + 1..])
    }
}

impl<'a> Builder<'a> {
    fn add(&mut self, ordinal: Ordinal, rule: &'a CompiledRule, scope: Scope) {
        let entry = (ordinal, &rule.ports);
        let matches_all = rule.effect.matches_all(scope);
        if rule.to.is_empty() && matches_all {
            self.any.push(entry);
        }
        for destination in &rule.to {
            match destination {
                Destination::Domains(patterns) if matches_all => {
                    for pattern in patterns {
                        self.add_pattern(pattern, entry);
                    }
                }
                Destination::Domains(_) => {}
                Destination::Networks { networks, except } => {
                    let networks =
                        networks.iter().filter(|network| rule.effect.matches_through(network, scope));
                    for piece in networks.flat_map(|network| networks::subtract(*network, except)) {
                        self.networks.entry(piece).or_default().push(entry);
                    }
                }
            }
        }
    }

    fn add_pattern(&mut self, pattern: &DomainPattern, entry: (Ordinal, &'a PortSet)) {
        let entries = match pattern {
            DomainPattern::Any => &mut self.any_name,
            DomainPattern::Exact(name) => self.exact.entry(name.clone()).or_default(),
            DomainPattern::Below(parent) => self.below.entry(parent.clone()).or_default(),
        };
        entries.push(entry);
    }

    fn finish(self) -> DestinationIndex {
        let labels = |name: &DomainName| name.as_str().split('.').count();
        DestinationIndex {
            any: PortMap::build(&self.any),
            any_name: PortMap::build(&self.any_name),
            below_labels: self.below.keys().map(labels).max().unwrap_or(0),
            exact: port_maps(self.exact).collect(),
            below: port_maps(self.below).collect(),
            networks: NetworkMap::build(port_maps(self.networks)),
        }
    }
}

fn port_maps<K>(entries: BTreeMap<K, Entries<'_>>) -> impl Iterator<Item = (K, PortMap)> {
    entries.into_iter().map(|(key, entries)| (key, PortMap::build(&entries)))
}
