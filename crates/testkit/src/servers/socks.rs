//! Two SOCKS5 servers: dante, which logs each session, and microsocks, which knows user and password.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::Background;
use crate::servers::{START, program};
use crate::topology::OUTSIDE;

/// dante without authentication.
#[derive(Debug)]
pub struct Danted {
    _process: Background,
    address: SocketAddr,
    directory: TempDir,
}

impl Danted {
    /// In the outside namespace; connects from the addresses of its interface.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        Self::start_towards(OUTSIDE, namespace, address)
    }

    /// Connects from the addresses of `interface`.
    pub fn start_towards(interface: &str, namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("tpt-danted-").tempdir()?;
        let log = directory.path().join("sockd.log");
        let (ip, port) = (address.ip(), address.port());
        let text = format!(
            "logoutput: {log}\ninternal: {ip} port = {port}\nexternal: {interface}\nexternal.rotation: route\n\
             clientmethod: none\nsocksmethod: none\nuser.privileged: root\nuser.unprivileged: root\n\
             timeout.io: 0\n\
             client pass {{\n from: 0/0 to: 0/0\n log: error\n}}\n\
             socks pass {{\n from: 0/0 to: 0/0\n command: bind connect udpassociate\n log: connect disconnect error\n}}\n\
             socks pass {{\n from: 0/0 to: 0/0\n command: bindreply udpreply\n}}\n",
            log = log.display()
        );
        let configuration = directory.path().join("danted.conf");
        fs::write(&configuration, text)?;
        // With the namespace's resolver: it is asked to connect by name.
        let mut command = namespace.command_with_resolver(program("danted")?);
        command.arg("-f").arg(&configuration).arg("-p").arg(directory.path().join("danted.pid"));
        let mut process = Background::spawn(&mut command, "danted", &directory.path().join("danted.out"))?;
        process
            .wait_ready(START, || namespace.accepts(address, START))
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(Self { address, directory, _process: process })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its sessions: `pass(1): tcp/connect [: client.port proxy.port -> address.port server.port`, by address.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("sockd.log")).unwrap_or_default()
    }
}

/// microsocks with user name and password.
#[derive(Debug)]
pub struct Microsocks {
    process: Background,
    address: SocketAddr,
    _directory: TempDir,
}

impl Microsocks {
    pub fn start(namespace: &Namespace, ip: IpAddr, port: u16, user: &str, password: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("tpt-microsocks-").tempdir()?;
        let mut command = namespace.command_with_resolver(program("microsocks")?);
        command.args(["-i", &ip.to_string(), "-p", &port.to_string(), "-u", user, "-P", password]);
        let mut process = Background::spawn(&mut command, "microsocks", &directory.path().join("log"))?;
        let address = SocketAddr::new(ip, port);
        process.wait_ready(START, || namespace.accepts(address, START))?;
        Ok(Self { address, _directory: directory, process })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its sessions: `client[fd] address: connected to name:port`.
    pub fn log(&self) -> String {
        self.process.log()
    }
}
