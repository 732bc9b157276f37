//! The gate of one pod: a table of family `netdev` on the host's end of its veth pair.
//!
//! Connections are not tracked there, so the gate keeps account itself, in sets whose elements go by time:
//!
//! | set | key | put in by | for |
//! |---|---|---|---|
//! | `new` | remote, its port, the pod's | a TCP packet to the pod | 30 s (SYN), 60 s |
//! | `tcp` | the same | the pod's answer, but for SYN\|ACK: a flood of SYNs leaves nothing | a day |
//! | `closing` | the same | a FIN or RST of the pod: then `tcp` is not renewed | 120 s |
//! | `udp` | remote, the pod's port | a datagram to the pod, or its answer | 120 s |
//! | `pings` | remote, identifier | an echo request to the pod | 30 s |
//! | `fragments` | remote, identification | the first fragment of an answer | 30 s |
//!
//! One whose set is full is not put in: what answers it is dropped. Nothing here opens the way for what the pod begins.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

use super::{DNS, Layer, OWN, REFUSED, TCP, UDP, base, chain, refuse, refused};
use crate::naming::Owner;
use crate::nft::{Chain, Family, Field, HookPoint, KeyType, Rule, Set, SetContent, Table};

/// What a gate is made from.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    pub owner: &'a Owner,
    /// The host's end of the pod's interface.
    pub device: &'a str,
    /// What the pod may send from: the interface's addresses, those of the link too.
    pub addresses: &'a [IpAddr],
    /// Pod and service networks.
    pub cluster: &'a [IpNet],
    /// Nobody else may change it while the agent lives ([`Table::owned`]).
    pub owned: bool,
}

const TO_POD: &str = "to_pod";
const FROM_POD: &str = "from_pod";

/// Before other people's chains: what is dropped here nobody else is to act on.
const INGRESS_PRIORITY: i32 = -500;
const EGRESS_PRIORITY: i32 = 0;

const SYN: Duration = Duration::from_secs(30);
const UNANSWERED: Duration = Duration::from_mins(1);
/// Kubernetes' own for tracked connections (`conntrack.tcpEstablishedTimeout` of kube-proxy).
const ANSWERED: Duration = Duration::from_hours(24);
const CLOSING: Duration = Duration::from_mins(2);
/// After a reset by the remote.
const RESET: Duration = Duration::from_secs(10);
const DATAGRAMS: Duration = Duration::from_mins(2);
const ECHO: Duration = Duration::from_secs(30);
const REASSEMBLY: Duration = Duration::from_secs(30);

/// For which the kernel reserves at once; see [`SetContent::Flows`].
const FEW: u32 = 256;

/// Flags of TCP.
const FIN: u64 = 0x01;
const RST: u64 = 0x04;
const ACK: u64 = 0x10;
const SYN_FLAG: u64 = 0x02;

/// Messages of neighbour discovery (RFC 4861) that a pod sends, and those that only routers do.
const SOLICITATIONS: [u64; 2] = [133, 135];
const ADVERTISEMENT: u64 = 136;
/// Those, redirects, and what groups are joined with (RFC 2710, RFC 3810).
const OF_ROUTERS: [u64; 6] = [130, 131, 132, 134, 137, 143];
/// Redirect and router advertisement.
const OF_ROUTERS_V4: [u64; 2] = [5, 9];

/// What the gate of an interface is called.
pub fn gate_name(owner: &Owner) -> String {
    format!("{GATE_PREFIX}{}-{}", owner.container_id, owner.ifname)
}

const GATE_PREFIX: &str = "tunproxy-";

impl Gate<'_> {
    pub fn table(&self) -> Table {
        let mut sets = Vec::new();
        let mut chains = vec![
            base(TO_POD, HookPoint::Egress(self.device.to_owned()), EGRESS_PRIORITY, false),
            base(FROM_POD, HookPoint::Ingress(self.device.to_owned()), INGRESS_PRIORITY, true),
        ];
        for layer in Layer::ALL {
            let own: Vec<_> =
                self.own(layer).into_iter().filter(|address| !is_link_local(*address)).collect();
            // Without an address of the family nothing of it passes.
            if own.is_empty() {
                continue;
            }
            sets.extend(layer_sets(layer));
            sets.push(layer.address_set(OWN, &own));
            if layer == Layer::V6 {
                sets.push(layer.address_set("neighbour", &self.own(layer)));
            }
            chains[0].rules.push(of_layer(layer).goto(&layer.named(TO_POD)));
            chains[1].rules.push(of_layer(layer).goto(&layer.named(FROM_POD)));
            chains.push(chain(layer.named(TO_POD), self.arriving(layer, &own)));
            chains.extend(self.leaving(layer, &own));
        }
        chains[1].rules.extend(self.arp());
        chains[1].rules.push(refuse());
        chains.push(refused());
        Table { family: Family::Netdev, name: gate_name(self.owner), owned: self.owned, sets, chains }
    }

    fn own(&self, layer: Layer) -> Vec<IpAddr> {
        layer.addresses(self.addresses)
    }

    /// The pod tells and asks with its own address only.
    fn arp(&self) -> Vec<Rule> {
        const ETHERNET_AND_IPV4: u64 = 0x0001_0800_0604;
        let arp = || {
            Rule::new().is(Field::PROTOCOL, libc::ETH_P_ARP as u64).is(Field::ARP_START, ETHERNET_AND_IPV4)
        };
        self.own(Layer::V4).into_iter().map(|own| arp().is_address(Field::ARP_SENDER, own).accept()).collect()
    }

    /// Keeps account of who outside speaks to the pod. Everything passes.
    fn arriving(&self, layer: Layer, own: &[IpAddr]) -> Vec<Rule> {
        let flow = [layer.source(), Field::SOURCE_PORT, Field::DESTINATION_PORT];
        let (new, tcp, udp, pings) =
            (layer.named("new"), layer.named("tcp"), layer.named("udp"), layer.named("pings"));
        let mut rules: Vec<_> = layer
            .networks(self.cluster)
            .map(|network| Rule::new().in_network(layer.source(), network).accept())
            .collect();
        // A bridge sends frames for others too where it does not know who has their address.
        rules.push(layer.is_not_own(layer.destination(), own).accept());
        let is_tcp = || Rule::new().is(Field::TRANSPORT_PROTOCOL, TCP);
        rules.extend([
            is_tcp().any_of(Field::TCP_FLAGS, RST).in_set(&flow, &tcp).update(&flow, &tcp, RESET).accept(),
            is_tcp().any_of(Field::TCP_FLAGS, RST).accept(),
            is_tcp().in_set(&flow, &tcp).accept(),
            is_tcp().masked(Field::TCP_FLAGS, SYN_FLAG | ACK, SYN_FLAG).update(&flow, &new, SYN).accept(),
            is_tcp().update(&flow, &new, UNANSWERED).accept(),
            Rule::new()
                .is(Field::TRANSPORT_PROTOCOL, UDP)
                .update(&[layer.source(), Field::DESTINATION_PORT], &udp, DATAGRAMS)
                .accept(),
            Rule::new()
                .is(Field::TRANSPORT_PROTOCOL, layer.icmp())
                .is(Field::ICMP_TYPE, layer.echo_request())
                .update(&[layer.source(), Field::ICMP_IDENTIFIER], &pings, ECHO)
                .accept(),
        ]);
        rules
    }

    fn leaving(&self, layer: Layer, own: &[IpAddr]) -> Vec<Chain> {
        let spoofed = layer.is_not_own(layer.source(), own);
        let mut first = Vec::new();
        let mut chains = Vec::new();
        match layer {
            Layer::V4 => {
                // Options could name another way, and no socket that means well sets any.
                first.extend([
                    spoofed.goto(REFUSED),
                    Rule::new().is_not(Field::IPV4_START, 0x45).goto(REFUSED),
                    layer.later_fragment().goto(&layer.named("later")),
                ]);
                first.extend(OF_ROUTERS_V4.map(|kind| icmp(layer, kind).goto(REFUSED)));
                first.extend(self.whole(layer));
            }
            Layer::V6 => {
                let of_neighbours = [&SOLICITATIONS[..], &[ADVERTISEMENT]].concat();
                first.extend(of_neighbours.iter().map(|kind| icmp(layer, *kind).goto("neighbours")));
                first.extend(OF_ROUTERS.map(|kind| icmp(layer, kind).goto(REFUSED)));
                first.push(spoofed.goto(REFUSED));
                // Headers before the transport's could name another way; one of a fragment may stand there.
                let next = |protocol| Rule::new().is(Field::IPV6_NEXT_HEADER, protocol);
                first.extend(layer.protocols().map(|protocol| next(protocol).goto("whole6")));
                first.push(next(libc::IPPROTO_FRAGMENT as u64).goto("pieces6"));
                first.push(refuse());
                let pieces = vec![layer.later_fragment().goto("later6"), Rule::new().goto("whole6")];
                chains.push(chain("pieces6".to_owned(), pieces));
                chains.push(chain("whole6".to_owned(), self.whole(layer)));
                chains.extend(self.neighbours());
            }
        }
        chains.insert(0, chain(layer.named(FROM_POD), first));
        chains.push(chain(layer.named("later"), self.later(layer)));
        chains.push(chain(layer.named("inside"), inside(layer)));
        chains.push(chain(layer.named("outside"), outside(layer)));
        chains.push(chain(layer.named("errors"), errors(layer)));
        chains
    }

    /// A packet, or the first fragment of one.
    fn whole(&self, layer: Layer) -> Vec<Rule> {
        let to = |network| Rule::new().in_network(layer.destination(), network).goto(&layer.named("inside"));
        let mut rules: Vec<_> = layer.networks(self.cluster).map(to).collect();
        rules.push(Rule::new().goto(&layer.named("outside")));
        rules
    }

    /// Fragments but the first go where the first went.
    fn later(&self, layer: Layer) -> Vec<Rule> {
        let answer = Rule::new().in_set(&layer.fragment_key(), &layer.named("fragments")).accept();
        let mut rules = vec![answer];
        for network in layer.networks(self.cluster) {
            let to = |protocol| {
                Rule::new()
                    .in_network(layer.destination(), network)
                    .is(layer.fragment_protocol(), protocol)
                    .accept()
            };
            rules.extend(layer.protocols().map(to));
        }
        rules.push(refuse());
        rules
    }

    /// Neighbour discovery on the link: of its own addresses, to everybody there.
    fn neighbours(&self) -> Vec<Chain> {
        let from = [
            Rule::new().is_not(Field::IPV6_HOP_LIMIT, 255).goto(REFUSED),
            Rule::new().is_address(Field::IPV6_SOURCE, Ipv6Addr::UNSPECIFIED.into()).goto("told"),
            Rule::new().in_set(&[Field::IPV6_SOURCE], "neighbour6").goto("told"),
            refuse(),
        ];
        let mut told = vec![
            icmp(Layer::V6, ADVERTISEMENT).not_in_set(&[Field::ND_TARGET], "neighbour6").goto(REFUSED),
            Rule::new().in_network(Field::IPV6_DESTINATION, link_scope()).accept(),
            Rule::new().in_network(Field::IPV6_DESTINATION, link_groups()).accept(),
        ];
        let inside = Layer::V6.networks(self.cluster);
        told.extend(inside.map(|network| Rule::new().in_network(Field::IPV6_DESTINATION, network).accept()));
        told.push(refuse());
        vec![chain("neighbours".to_owned(), from.to_vec()), chain("told".to_owned(), told)]
    }
}

/// To the cluster's networks, but DNS, which is the TUN's wherever it goes.
fn inside(layer: Layer) -> Vec<Rule> {
    let is = |protocol| Rule::new().is(Field::TRANSPORT_PROTOCOL, protocol);
    let mut rules = Vec::new();
    for protocol in layer.protocols() {
        if [TCP, UDP].contains(&protocol) {
            rules.push(is(protocol).is(Field::DESTINATION_PORT, DNS).goto(REFUSED));
        }
        rules.push(is(protocol).accept());
    }
    rules.push(refuse());
    rules
}

/// To anybody else: answers.
fn outside(layer: Layer) -> Vec<Rule> {
    let flow = [layer.destination(), Field::DESTINATION_PORT, Field::SOURCE_PORT];
    let datagram = [layer.destination(), Field::SOURCE_PORT];
    let echo = [layer.destination(), Field::ICMP_IDENTIFIER];
    let (new, tcp, closing) = (layer.named("new"), layer.named("tcp"), layer.named("closing"));
    let (udp, pings, fragments) = (layer.named("udp"), layer.named("pings"), layer.named("fragments"));
    let is_tcp = || Rule::new().is(Field::TRANSPORT_PROTOCOL, TCP);
    let is_udp = || Rule::new().is(Field::TRANSPORT_PROTOCOL, UDP);
    let is_reply = || icmp(layer, layer.echo_reply());
    let first_of_several = |rule: Rule, fields: &[Field], set: &str| {
        rule.in_set(fields, set).add(&layer.fragment_key(), &fragments, REASSEMBLY)
    };
    let mut rules = vec![
        is_tcp().masked(Field::TCP_FLAGS, SYN_FLAG | ACK, SYN_FLAG).goto(REFUSED),
        // The packet goes on to the rules that let it through.
        first_of_several(layer.more_follow().is(Field::TRANSPORT_PROTOCOL, TCP), &flow, &tcp),
        first_of_several(layer.more_follow().is(Field::TRANSPORT_PROTOCOL, UDP), &datagram, &udp),
        first_of_several(
            layer
                .more_follow()
                .is(Field::TRANSPORT_PROTOCOL, layer.icmp())
                .is(Field::ICMP_TYPE, layer.echo_reply()),
            &echo,
            &pings,
        ),
        is_tcp()
            .any_of(Field::TCP_FLAGS, FIN | RST)
            .in_set(&flow, &tcp)
            .update(&flow, &closing, CLOSING)
            .update(&flow, &tcp, CLOSING)
            .accept(),
        is_tcp().in_set(&flow, &closing).in_set(&flow, &tcp).accept(),
        is_tcp().in_set(&flow, &tcp).update(&flow, &tcp, ANSWERED).accept(),
        is_tcp().any_of(Field::TCP_FLAGS, SYN_FLAG | FIN | RST).in_set(&flow, &new).accept(),
        is_tcp().in_set(&flow, &new).update(&flow, &tcp, ANSWERED).accept(),
        is_udp().in_set(&datagram, &udp).update(&datagram, &udp, DATAGRAMS).accept(),
        is_reply().in_set(&echo, &pings).accept(),
    ];
    rules.extend(layer.errors().iter().map(|kind| icmp(layer, *kind).goto(&layer.named("errors"))));
    rules.push(refuse());
    rules
}

/// Errors about packets of those who spoke to the pod.
fn errors(layer: Layer) -> Vec<Rule> {
    let [remote, local] = layer.quoted_ports();
    let flow = [layer.destination(), remote, local];
    let about =
        |protocol, fields: &[Field], set| layer.quoted(protocol).in_set(fields, &layer.named(set)).accept();
    vec![
        about(TCP, &flow, "tcp"),
        about(TCP, &flow, "new"),
        about(UDP, &[layer.destination(), local], "udp"),
        refuse(),
    ]
}

fn layer_sets(layer: Layer) -> [Set; 6] {
    const OPEN: u32 = SetContent::OPEN_SIZE;
    let flow = [layer.address(), KeyType::Port, KeyType::Port];
    let pair = [layer.address(), KeyType::Port];
    let fragment = match layer {
        Layer::V4 => &pair[..],
        Layer::V6 => &flow[..],
    };
    let set = |name, key: &[KeyType], size, timeout| Set::flows(&layer.named(name), key, size, timeout);
    [
        set("new", &flow, OPEN, UNANSWERED),
        set("tcp", &flow, OPEN, ANSWERED),
        set("closing", &flow, OPEN, CLOSING),
        set("udp", &pair, OPEN, DATAGRAMS),
        set("pings", &pair, FEW, ECHO),
        set("fragments", fragment, FEW, REASSEMBLY),
    ]
}

fn of_layer(layer: Layer) -> Rule {
    Rule::new().is(Field::PROTOCOL, layer.ether_type())
}

fn icmp(layer: Layer, kind: u64) -> Rule {
    Rule::new().is(Field::TRANSPORT_PROTOCOL, layer.icmp()).is(Field::ICMP_TYPE, kind)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn link_scope() -> IpNet {
    IpNet::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10)
}

/// Multicast groups of the link (RFC 4291, section 2.7).
fn link_groups() -> IpNet {
    IpNet::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0).into(), 16)
}
