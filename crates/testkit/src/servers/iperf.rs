//! iperf3's server: one test at a time.

use std::net::IpAddr;

use anyhow::Result;
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::Background;
use crate::servers::{START, program};

#[derive(Debug)]
pub struct Iperf {
    _process: Background,
    _directory: TempDir,
}

impl Iperf {
    pub fn start(namespace: &Namespace, ip: IpAddr, port: u16) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("tpt-iperf-").tempdir()?;
        let mut command = namespace.command(program("iperf3")?);
        command.args(["--server", "--bind", &ip.to_string(), "--port", &port.to_string(), "--forceflush"]);
        let mut process = Background::spawn(&mut command, "iperf3", &directory.path().join("log"))?;
        // It says so itself: a trial connection would be taken for a client that broke off.
        let log = directory.path().join("log");
        process.wait_ready(START, || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains(&format!("listening on {port}")))
        })?;
        Ok(Self { _directory: directory, _process: process })
    }
}
