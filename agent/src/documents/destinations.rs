//! Where a rule's flows go: `to` and `ports`.

use std::net::IpAddr;

use ipnet::IpNet;
use tunproxy_policy::model::{Destination, PortMatch, PortRange};
use tunproxy_policy::{DomainPattern, Protocol};

use crate::yaml::Cursor;

const PROTOCOLS: [(&str, Protocol); 3] =
    [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("ICMP", Protocol::Icmp)];

pub(super) fn to(place: &Cursor<'_>) -> Option<Vec<Destination>> {
    let entries: Vec<_> = place.sequence()?.iter().map(destination).collect();
    entries.into_iter().collect()
}

fn destination(place: &Cursor<'_>) -> Option<Destination> {
    let fields = place.mapping(&["domains", "networks", "except"])?;
    match (fields.has("domains"), fields.has("networks")) {
        (true, false) => {
            if let Some(except) = fields.get("except") {
                except.wrong("goes with `networks` only; for names, add a Deny rule");
                return None;
            }
            Some(Destination::Domains(listed(&fields.get("domains")?, "domain", domain)?))
        }
        (false, true) => {
            let networks = listed(&fields.get("networks")?, "network", network);
            let except = fields.optional("except", |place| excepted(place, networks.as_deref()));
            Some(Destination::Networks { networks: networks?, except: except.ok()?.unwrap_or_default() })
        }
        (true, true) => {
            place.wrong("has both `domains` and `networks`; make it two entries");
            None
        }
        (false, false) => {
            // A misspelt key is told already.
            if fields.each().all(|(key, _)| key == "except") {
                place.wrong("names no destination; give `domains` or `networks`");
            }
            None
        }
    }
}

/// An empty list would match nothing, which nobody means; leaving `to` away matches everything.
fn listed<T>(place: &Cursor<'_>, what: &str, read: fn(&Cursor<'_>) -> Option<T>) -> Option<Vec<T>> {
    let entries = place.sequence()?;
    if entries.is_empty() {
        place.wrong(format!("is empty; list at least one {what}"));
        return None;
    }
    let entries: Vec<_> = entries.iter().map(read).collect();
    entries.into_iter().collect()
}

fn domain(place: &Cursor<'_>) -> Option<DomainPattern> {
    let text = place.text()?;
    if let Ok(address) = text.parse::<IpAddr>() {
        place.wrong(format!("{text:?} is an address; put it under `networks` as {}", IpNet::from(address)));
        return None;
    }
    if text.contains(['/', ':']) {
        place.wrong(format!("{text:?} is not a domain name; write the host name alone, ports go to `ports`"));
        return None;
    }
    match DomainPattern::parse(text) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            place.wrong(format!("{text:?} is not a domain name: {error}"));
            None
        }
    }
}

fn network(place: &Cursor<'_>) -> Option<IpNet> {
    let text = place.text()?;
    match parse_network(text) {
        Ok(network) => Some(network),
        Err(message) => {
            place.wrong(format!("{text:?} {message}"));
            None
        }
    }
}

fn parse_network(text: &str) -> Result<IpNet, String> {
    const SHAPE: &str = "is not a network (an address and a prefix, as in 10.0.0.0/8)";
    let Some((address, prefix)) = text.split_once('/') else {
        return Err(match text.parse::<IpAddr>() {
            Ok(address) => format!("is an address; write {}", IpNet::from(address)),
            Err(_) => SHAPE.to_owned(),
        });
    };
    let address: IpAddr = address.parse().map_err(|_| SHAPE.to_owned())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.parse().ok().filter(|_| prefix.bytes().all(|byte| byte.is_ascii_digit()));
    let network = prefix.and_then(|prefix| IpNet::new(address, prefix).ok());
    let network = network.ok_or_else(|| format!("is not a network (prefix 0-{longest})"))?;
    if network.trunc() == network {
        Ok(network)
    } else {
        Err(format!("has bits beyond its prefix; write {}", network.trunc()))
    }
}

/// `networks` is absent when it has mistakes of its own.
fn excepted(place: &Cursor<'_>, networks: Option<&[IpNet]>) -> Option<Vec<IpNet>> {
    let entries: Vec<_> = place
        .sequence()?
        .iter()
        .map(|place| {
            let except = network(place)?;
            let Some(networks) = networks else { return Some(except) };
            if networks.contains(&except) {
                place.wrong(format!("takes all of {except} out again; remove both"));
                return None;
            }
            if !networks.iter().any(|network| network.contains(&except)) {
                place.wrong(format!("{except} lies in no network of this entry; remove it"));
                return None;
            }
            Some(except)
        })
        .collect();
    entries.into_iter().collect()
}

pub(super) fn ports(place: &Cursor<'_>) -> Option<Vec<PortMatch>> {
    let entries: Vec<_> = place.sequence()?.iter().map(port_match).collect();
    entries.into_iter().collect()
}

fn port_match(place: &Cursor<'_>) -> Option<PortMatch> {
    let fields = place.mapping(&["protocol", "port", "endPort"])?;
    let protocol =
        fields.require("protocol", "write TCP, UDP or ICMP").and_then(|place| place.one_of(&PROTOCOLS));
    let (first, last) = (fields.get("port"), fields.get("endPort"));
    if protocol == Some(Protocol::Icmp) {
        for place in [&first, &last].into_iter().flatten() {
            place.wrong("ICMP has no ports; remove the key");
        }
        return (first.is_none() && last.is_none())
            .then_some(PortMatch { protocol: Protocol::Icmp, range: None });
    }
    let number =
        |place: &Cursor<'_>| place.integer(1..=65535, "a port").and_then(|port| u16::try_from(port).ok());
    let range = match (first, last) {
        (None, None) => None,
        (Some(first), None) => Some(PortRange::single(number(&first)?)),
        (Some(first), Some(end)) => {
            let (first, last) = (number(&first), number(&end));
            let (first, last) = (first?, last?);
            let range = PortRange::new(first, last);
            if range.is_none() {
                end.wrong(format!("{last} is below `port` {first}; exchange them"));
            }
            Some(range?)
        }
        (None, Some(end)) => {
            end.wrong("stands without `port`; give the first port too");
            return None;
        }
    };
    Some(PortMatch { protocol: protocol?, range })
}
