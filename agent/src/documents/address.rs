//! Where an upstream listens.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use tunproxy_policy::DomainName;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A name or an address literal (without brackets).
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl Endpoint {
    /// `host:port`, `[v6]:port` or `unix:/path`; the error ends a sentence that begins with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Self::unix(path);
        }
        let (host, port) = split_port(text)?;
        let port = match port.parse() {
            Ok(port) if port > 0 && port_is_plain(port, text) => port,
            Ok(_) | Err(_) => return Err("has no port from 1 to 65535 at its end".to_owned()),
        };
        Ok(Self::Tcp { host: parse_host(host)?, port })
    }

    fn unix(path: &str) -> Result<Self, String> {
        /// Of `sun_path`, less the terminating zero (unix(7)).
        const LONGEST: usize = 107;
        if !path.starts_with('/') {
            return Err("has no absolute path after unix: (as in unix:/run/proxy.sock)".to_owned());
        }
        if path.len() > LONGEST || path.contains('\0') {
            return Err(format!("has a path longer than the {LONGEST} bytes of a socket's name"));
        }
        Ok(Self::Unix(path.into()))
    }
}

/// `+80` and the like parse as numbers, and nobody writes them on purpose.
fn port_is_plain(port: u16, text: &str) -> bool {
    text.ends_with(&format!(":{port}"))
}

fn split_port(text: &str) -> Result<(&str, &str), String> {
    const SHAPE: &str = "is not an address (host:port, [v6]:port or unix:/path)";
    let (host, port) = text.rsplit_once(':').ok_or(SHAPE)?;
    if host.parse::<Ipv6Addr>().is_ok() || text.parse::<Ipv6Addr>().is_ok() {
        return Err("is ambiguous; put the IPv6 address in brackets ([v6]:port)".to_owned());
    }
    Ok((host, port))
}

fn parse_host(host: &str) -> Result<String, String> {
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address = inner.parse::<Ipv6Addr>();
        return address
            .map(|address| address.to_string())
            .map_err(|_| "has no IPv6 address in its brackets".to_owned());
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    DomainName::parse(host).map(|name| name.to_string()).map_err(|error| format!("has no host name: {error}"))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_three_forms() {
        for (text, printed) in [
            ("Proxy.Example.com:1080", "proxy.example.com:1080"),
            ("192.0.2.1:1", "192.0.2.1:1"),
            ("[2001:DB8::1]:65535", "[2001:db8::1]:65535"),
            ("unix:/run/proxy.sock", "unix:/run/proxy.sock"),
        ] {
            assert_eq!(Endpoint::parse(text).map(|endpoint| endpoint.to_string()), Ok(printed.to_owned()));
        }
    }

    #[test]
    fn what_is_no_endpoint() {
        for text in [
            "",
            ":",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:+80",
            "host:080",
            ":80",
            "2001:db8::1:80",
            "::1",
            "[::1]",
            "[::1:80",
            "[host]:80",
            "a b:80",
            "unix:",
            "unix:relative",
        ] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_and_parses_again(text in "(\\PC{0,12}|\\[[0-9a-f:]{0,12}\\]|unix:/?[a-z]{0,9})(:[0-9]{0,6})?") {
            if let Ok(endpoint) = Endpoint::parse(&text) {
                prop_assert_eq!(Endpoint::parse(&endpoint.to_string()), Ok(endpoint));
            }
        }
    }
}
