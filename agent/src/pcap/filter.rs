//! Which packets a capture keeps: a small part of what tcpdump understands, with the same words.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::packet::Ends;

/// All terms must hold; none: everything is kept. An ICMP error is kept with the flow that it is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter(Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    negated: bool,
    primitive: Primitive,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Primitive {
    Tcp,
    Udp,
    Icmp,
    Host(IpAddr),
    Net(IpNet),
    Port(u16),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    #[error(
        "{0:?} is no term of a filter; there are tcp, udp, icmp, host ADDRESS, net NETWORK and port NUMBER, each with or without not, joined by and"
    )]
    Word(String),
    #[error("{0} wants a value behind it")]
    NoValue(&'static str),
    #[error("{value:?} is no {kind}")]
    Value { kind: &'static str, value: String },
    #[error("{0:?} stands where a term is expected to be joined by and")]
    Joint(String),
    #[error("a term is missing at the end")]
    Missing,
}

impl Filter {
    pub fn accepts(&self, ends: &Ends) -> bool {
        let matches = |ends: &Ends| self.0.iter().all(|term| term.primitive.matches(ends) != term.negated);
        matches(ends) || ends.about.as_deref().is_some_and(matches)
    }

    /// Whether everything is kept, what has no ends that could be read included.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }
}

impl Primitive {
    fn matches(&self, ends: &Ends) -> bool {
        match self {
            Self::Tcp => ends.protocol == 6,
            Self::Udp => ends.protocol == 17,
            Self::Icmp => matches!(ends.protocol, 1 | 58),
            Self::Host(address) => [ends.source, ends.destination].contains(address),
            Self::Net(network) => [ends.source, ends.destination].iter().any(|end| network.contains(end)),
            Self::Port(port) => ends.ports.is_some_and(|(from, to)| from == *port || to == *port),
        }
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let mut words = text.split_whitespace();
        let mut terms = Vec::new();
        while let Some(word) = words.next() {
            let word = if terms.is_empty() {
                word
            } else if word.eq_ignore_ascii_case("and") {
                words.next().ok_or(FilterError::Missing)?
            } else {
                return Err(FilterError::Joint(word.to_owned()));
            };
            let negated = word.eq_ignore_ascii_case("not");
            let word = if negated { words.next().ok_or(FilterError::Missing)? } else { word };
            terms.push(Term { negated, primitive: primitive(word, &mut words)? });
        }
        Ok(Self(terms))
    }
}

fn primitive<'a>(word: &str, rest: &mut impl Iterator<Item = &'a str>) -> Result<Primitive, FilterError> {
    Ok(match word.to_ascii_lowercase().as_str() {
        "tcp" => Primitive::Tcp,
        "udp" => Primitive::Udp,
        "icmp" => Primitive::Icmp,
        "host" => Primitive::Host(value("host", "address", rest)?),
        "net" => Primitive::Net(value("net", "network", rest)?),
        "port" => Primitive::Port(value("port", "port", rest)?),
        _ => return Err(FilterError::Word(word.to_owned())),
    })
}

fn value<'a, T: FromStr>(
    word: &'static str,
    kind: &'static str,
    rest: &mut impl Iterator<Item = &'a str>,
) -> Result<T, FilterError> {
    let text = rest.next().ok_or(FilterError::NoValue(word))?;
    text.parse().map_err(|_| FilterError::Value { kind, value: text.to_owned() })
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Term { negated, primitive }) in self.0.iter().enumerate() {
            let and = if index > 0 { " and " } else { "" };
            let not = if *negated { "not " } else { "" };
            write!(f, "{and}{not}")?;
            match primitive {
                Primitive::Tcp => f.write_str("tcp")?,
                Primitive::Udp => f.write_str("udp")?,
                Primitive::Icmp => f.write_str("icmp")?,
                Primitive::Host(address) => write!(f, "host {address}")?,
                Primitive::Net(network) => write!(f, "net {network}")?,
                Primitive::Port(port) => write!(f, "port {port}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: u8, ports: [u8; 4]) -> Ends {
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1];
        ip.extend(ports);
        ip.extend([0; 12]);
        Ends::parse(&ip).unwrap()
    }

    #[test]
    fn terms_are_about_either_end() {
        let packet = packet(6, [3, 232, 1, 187]);
        for (filter, expected) in [
            ("", true),
            ("tcp", true),
            ("udp", false),
            ("not udp", true),
            ("icmp", false),
            ("host 10.0.0.1", true),
            ("host 192.0.2.1 and port 443", true),
            ("port 1000 AND tcp", true),
            ("port 444", false),
            ("not port 443", false),
            ("net 192.0.2.0/24", true),
            ("net 10.1.0.0/16", false),
            ("tcp and not host 10.0.0.1", false),
        ] {
            let parsed: Filter = filter.parse().unwrap();
            assert_eq!(parsed.accepts(&packet), expected, "{filter}");
            assert_eq!(parsed.to_string(), filter.to_ascii_lowercase());
        }
    }

    #[test]
    fn an_error_is_kept_with_its_flow() {
        let mut ip =
            vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 192, 0, 2, 1, 10, 0, 0, 1, 3, 3, 0, 0, 0, 0, 0, 0];
        ip.extend([
            0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1, 3, 232, 0, 53, 0, 8, 0, 0,
        ]);
        let error = Ends::parse(&ip).unwrap();
        for (filter, expected) in [("udp and port 53", true), ("icmp", true), ("udp and port 54", false)] {
            assert_eq!(filter.parse::<Filter>().unwrap().accepts(&error), expected, "{filter}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (filter, expected) in [
            ("tpc", "\"tpc\" is no term of a filter"),
            ("tcp port 443", "\"port\" stands where a term is expected to be joined by and"),
            ("tcp or udp", "\"or\" stands where"),
            ("tcp and", "a term is missing at the end"),
            ("not", "a term is missing at the end"),
            ("port", "port wants a value behind it"),
            ("port 99999", "\"99999\" is no port"),
            ("host example.com", "\"example.com\" is no address"),
            ("net 10.0.0.0/33", "\"10.0.0.0/33\" is no network"),
        ] {
            let error = filter.parse::<Filter>().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{filter}: {error}");
        }
    }
}
