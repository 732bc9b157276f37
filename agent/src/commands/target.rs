//! `--to`: where a flow would go.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use tunproxy_policy::{DomainName, NameError, Protocol};

/// `HOST_OR_IP[:PORT][/PROTOCOL]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub host: Host,
    /// 0 for ICMP.
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Name(DomainName),
    Address(IpAddr),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("{0:?} is no protocol; write /tcp, /udp or /icmp, or nothing for tcp")]
    Protocol(String),
    #[error("a port is missing; write HOST:PORT, as in api.example.com:443")]
    NoPort,
    #[error("{0:?} is no port from 1 to 65535")]
    Port(String),
    #[error("ICMP has no ports; write HOST/icmp")]
    IcmpPort,
    #[error("an IPv6 address with a port needs brackets, as in [2001:db8::1]:443")]
    Brackets,
    #[error("{0:?} is no IPv6 address")]
    Ipv6(String),
    #[error("{host:?} is neither an address nor a name: {source}")]
    Name { host: String, source: NameError },
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (place, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((place, protocol)) => (place, parse_protocol(protocol)?),
        };
        let (host, port) = split(place)?;
        let port = match (protocol, port) {
            (Protocol::Icmp, None) => 0,
            (Protocol::Icmp, Some(_)) => return Err(TargetError::IcmpPort),
            (Protocol::Tcp | Protocol::Udp, None) => return Err(TargetError::NoPort),
            (Protocol::Tcp | Protocol::Udp, Some(port)) => parse_port(port)?,
        };
        Ok(Self { host, port, protocol })
    }
}

fn parse_protocol(text: &str) -> Result<Protocol, TargetError> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "icmp" => Ok(Protocol::Icmp),
        _ => Err(TargetError::Protocol(text.to_owned())),
    }
}

fn parse_port(text: &str) -> Result<u16, TargetError> {
    let port = text.parse().ok().filter(|port| *port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()));
    port.ok_or_else(|| TargetError::Port(text.to_owned()))
}

fn split(place: &str) -> Result<(Host, Option<&str>), TargetError> {
    if let Some((inner, rest)) = place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let address: Ipv6Addr = inner.parse().map_err(|_| TargetError::Ipv6(inner.to_owned()))?;
        let port =
            if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or(TargetError::NoPort)?) };
        return Ok((Host::Address(address.into()), port));
    }
    if let Ok(address) = place.parse::<IpAddr>() {
        return Ok((Host::Address(address), None));
    }
    match place.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(TargetError::Brackets),
        Some((host, port)) => Ok((parse_host(host)?, Some(port))),
        None => Ok((parse_host(place)?, None)),
    }
}

fn parse_host(host: &str) -> Result<Host, TargetError> {
    if let Ok(address) = host.parse() {
        return Ok(Host::Address(address));
    }
    DomainName::parse(host)
        .map(Host::Name)
        .map_err(|source| TargetError::Name { host: host.to_owned(), source })
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, protocol } = self;
        match (protocol, host) {
            (Protocol::Icmp, _) => write!(f, "{protocol} {host}"),
            (Protocol::Tcp | Protocol::Udp, Host::Address(IpAddr::V6(address))) => {
                write!(f, "{protocol} [{address}]:{port}")
            }
            (Protocol::Tcp | Protocol::Udp, _) => write!(f, "{protocol} {host}:{port}"),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_and_each_mistake() {
        for (text, expected) in [
            ("api.github.com:443", "tcp api.github.com:443"),
            ("API.github.com.:443/TCP", "tcp api.github.com:443"),
            ("10.0.0.1:53/udp", "udp 10.0.0.1:53"),
            ("[2001:db8::1]:443", "tcp [2001:db8::1]:443"),
            ("2001:db8::1/icmp", "icmp 2001:db8::1"),
            ("example.com/icmp", "icmp example.com"),
            ("example.com", "a port is missing; write HOST:PORT, as in api.example.com:443"),
            ("[::1]", "a port is missing; write HOST:PORT, as in api.example.com:443"),
            ("example.com:0", "\"0\" is no port from 1 to 65535"),
            ("example.com:+1", "\"+1\" is no port from 1 to 65535"),
            ("example.com:65536", "\"65536\" is no port from 1 to 65535"),
            ("example.com:1/sctp", "\"sctp\" is no protocol; write /tcp, /udp or /icmp, or nothing for tcp"),
            ("example.com:1/icmp", "ICMP has no ports; write HOST/icmp"),
            ("2001:db8::zz:443", "an IPv6 address with a port needs brackets, as in [2001:db8::1]:443"),
            ("[zz]:1", "\"zz\" is no IPv6 address"),
            (":443", "\"\" is neither an address nor a name: the name is empty"),
        ] {
            let told =
                text.parse::<Target>().map_or_else(|error| error.to_string(), |target| target.to_string());
            assert_eq!(told, expected, "{text}");
        }
    }
}
