//! The trusted resolvers: addresses, and files in the form of resolv.conf(5).

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::config::Resolver;

/// A resolver file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}; set resolvers to the addresses that pods' DNS answers may be believed from", path.display())]
pub struct ResolverError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// The addresses behind `resolvers`, in order, each once.
pub fn addresses(resolvers: &[Resolver]) -> Result<Vec<IpAddr>, ResolverError> {
    let mut addresses = Vec::new();
    for resolver in resolvers {
        let found = match resolver {
            Resolver::Address(address) => vec![*address],
            Resolver::File(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ResolverError { path: path.clone(), source })?;
                name_servers(&text)
            }
        };
        for address in found {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    Ok(addresses)
}

/// The `nameserver` lines of a resolv.conf. Addresses with a zone (`fe80::1%eth0`) are left out: the zone means
/// nothing in another namespace.
fn name_servers(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse().ok()).flatten()
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nameserver_lines_count() {
        let text = "# nameserver 9.9.9.9\nsearch a.test\nnameserver 10.0.0.1\n nameserver\tfd00::53 # why not\n\
                    nameserver fe80::1%eth0\nnameserver\nnameserver x\noptions ndots:5\n";
        let expected: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fd00::53".parse().unwrap()];
        assert_eq!(name_servers(text), expected);
    }

    #[test]
    fn an_address_is_trusted_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "nameserver 10.0.0.1\nnameserver 10.0.0.2\n").unwrap();
        let resolvers = [Resolver::Address("10.0.0.1".parse().unwrap()), Resolver::File(file.path().into())];
        assert_eq!(addresses(&resolvers).unwrap().len(), 2);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = addresses(&[Resolver::File("/nonexistent/resolv.conf".into())]).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/resolv.conf: "), "{error}");
    }
}
