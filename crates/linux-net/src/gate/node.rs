//! The node's table, of family `inet`: what the gates cannot see. Here connections are tracked, services have been
//! translated to where they lead, and a packet that something led past a gate (tc, at ingress) still comes by.
//!
//! It decides about packets with a gated pod's source address only: what is forwarded, and what the node itself takes.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Layer, TCP, base, chain, refuse, refused};
use crate::nft::{Family, Field, HookPoint, Rule, Table, ct_status};

pub const NODE_TABLE: &str = "tunproxy";

/// Sets of the addresses of gated pods.
const PODS: &str = "pods";

/// Before the filters that others put at priority 0.
const PRIORITY: i32 = -5;

const REPLY: u64 = 1;

/// The table for these pods.
///
/// `nodes` are addresses of nodes to which a service may lead, such as that of the API server; nobody reaches them
/// through it directly.
pub fn node_table(
    pods: &[IpAddr],
    cluster: &[IpNet],
    services: &[IpNet],
    nodes: &[IpNet],
    owned: bool,
) -> Table {
    let sets = Layer::ALL.map(|layer| layer.address_set(PODS, pods)).to_vec();
    let mut chains = vec![
        base("forward", HookPoint::Forward, PRIORITY, false),
        base("input", HookPoint::Input, PRIORITY, false),
    ];
    for layer in Layer::ALL {
        let of_pod = || {
            Rule::new()
                .is(Field::NETWORK_PROTOCOL, layer.protocol())
                .in_set(&[layer.source()], &layer.named(PODS))
        };
        chains[0].rules.push(of_pod().goto(&layer.named("forwarded")));
        chains[1].rules.push(of_pod().goto(&layer.named("taken")));
        chains.push(chain(layer.named("forwarded"), forwarded(layer, cluster, services, nodes)));
        chains.push(chain(layer.named("taken"), taken(layer, cluster, services)));
    }
    chains.push(refused());
    Table { family: Family::Inet, name: NODE_TABLE.to_owned(), owned, sets, chains }
}

/// To other pods, to where a service leads inside the cluster, and answers.
fn forwarded(layer: Layer, cluster: &[IpNet], services: &[IpNet], nodes: &[IpNet]) -> Vec<Rule> {
    let to = |network| Rule::new().in_network(layer.destination(), network);
    let mut rules: Vec<_> = layer.networks(cluster).map(|network| to(network).accept()).collect();
    rules.push(Rule::new().is(Field::CT_DIRECTION, REPLY).accept());
    for node in layer.networks(nodes) {
        rules.extend(
            layer.networks(services).map(|service| through_service(to(node), layer, service).accept()),
        );
    }
    rules.push(refuse());
    rules
}

/// To the node itself: answers, services that lead there, its own addresses in the cluster's networks (a bridge's) by
/// TCP, ICMP. Not UDP: a tunnel may end there (VXLAN, Geneve, WireGuard) that lets out what is in it.
fn taken(layer: Layer, cluster: &[IpNet], services: &[IpNet]) -> Vec<Rule> {
    let mut rules = vec![
        Rule::new().is(Field::CT_DIRECTION, REPLY).accept(),
        Rule::new().is(Field::TRANSPORT_PROTOCOL, layer.icmp()).accept(),
    ];
    rules.extend(
        layer.networks(services).map(|service| through_service(Rule::new(), layer, service).accept()),
    );
    rules.extend(layer.networks(cluster).map(|network| {
        Rule::new().is(Field::TRANSPORT_PROTOCOL, TCP).in_network(layer.destination(), network).accept()
    }));
    rules.push(refuse());
    rules
}

/// The pod sent it to a service's address, which was translated.
fn through_service(rule: Rule, layer: Layer, service: IpNet) -> Rule {
    let original = match layer {
        Layer::V4 => Field::CT_ORIGINAL_IPV4_DESTINATION,
        Layer::V6 => Field::CT_ORIGINAL_IPV6_DESTINATION,
    };
    rule.any_of(Field::CT_STATUS, ct_status::DESTINATION_NAT.into()).in_network(original, service)
}
