//! dnsmasq as the resolver outside: fixed records, UDP and TCP, a query log.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::Background;
use crate::servers::{START, program};

#[derive(Debug)]
pub struct DnsServer {
    _process: Background,
    directory: TempDir,
}

impl DnsServer {
    /// Listens on port 53 of `addresses`; answers `records` and NXDOMAIN to everything else. A name may be given
    /// several times.
    pub fn start(namespace: &Namespace, addresses: &[IpAddr], records: &[(&str, IpAddr)]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("tpt-dns-").tempdir()?;
        let hosts: String = records
            .iter()
            .flat_map(|(name, ip)| [ip.to_string(), " ".to_owned(), (*name).to_owned(), "\n".to_owned()])
            .collect();
        fs::write(directory.path().join("hosts"), hosts)?;
        let mut command = namespace.command(program("dnsmasq")?);
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root"]);
        command.args(["--no-resolv", "--no-hosts", "--bind-interfaces", "--local-ttl=60", "--local=/#/"]);
        command.args(["--log-queries=extra", "--log-facility=-", "--dns-forward-max=1000"]);
        command.arg(format!("--addn-hosts={}", directory.path().join("hosts").display()));
        command.args(addresses.iter().map(|ip| format!("--listen-address={ip}")));
        // A record larger than a UDP answer without EDNS: what makes clients come again over TCP.
        command.args((0..20).map(|index| format!("--txt-record=large.test,{index:02}-{}", "x".repeat(80))));
        let mut process = Background::spawn(&mut command, "dnsmasq", &directory.path().join("dnsmasq.log"))?;
        process.wait_ready(START, || {
            addresses.iter().all(|&ip| namespace.accepts(SocketAddr::new(ip, 53), START))
        })?;
        Ok(Self { directory, _process: process })
    }

    /// dnsmasq's own lines: `query[A] name from address` and so on.
    pub fn query_log(&self) -> String {
        fs::read_to_string(self.directory.path().join("dnsmasq.log")).unwrap_or_default()
    }
}
