//! OpenSSH's server with keys of its own.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::{Background, run};
use crate::servers::{START, program};

/// sshd's privilege separation insists on /run/sshd, which only the service's start script makes: it gets a /run of its own,
/// which goes with its mount namespace. `unshare` makes the mounts private.
const OWN_RUN: &str =
    "mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/sshd && exec \"$0\" -D -e -f \"$1\"";

#[derive(Debug)]
pub struct Sshd {
    process: Background,
    directory: TempDir,
}

impl Sshd {
    /// On port 22 of `addresses`.
    pub fn start(namespace: &Namespace, addresses: &[IpAddr]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("tpt-sshd-").tempdir()?;
        let path = directory.path();
        for key in ["host", "client"] {
            run(Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(path.join(key)))?;
        }
        let here = path.display();
        let listen: String = addresses
            .iter()
            .map(|&ip| SocketAddr::new(ip, 22))
            .fold(String::new(), |text, on| text + "ListenAddress " + &on.to_string() + "\n");
        let text = format!(
            "{listen}HostKey {here}/host\nAuthorizedKeysFile {here}/client.pub\nPidFile none\nUsePAM no\n\
             StrictModes no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nPrintMotd no\n\
             UseDNS no\nMaxStartups 100\nSubsystem sftp internal-sftp\n"
        );
        fs::write(path.join("sshd_config"), text)?;
        let mut command = namespace.command("unshare");
        command.args(["--mount", "sh", "-c", OWN_RUN, &program("sshd")?]).arg(path.join("sshd_config"));
        let mut process = Background::spawn(&mut command, "sshd", &path.join("sshd.log"))?;
        process.wait_ready(START, || {
            addresses.iter().all(|&ip| namespace.accepts(SocketAddr::new(ip, 22), START))
        })?;
        Ok(Self { process, directory })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Options for ssh and scp: the client's key, and no known hosts to ask about.
    pub fn client_options(&self) -> Vec<String> {
        let key = self.directory.path().join("client");
        ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=ERROR"]
            .iter()
            .flat_map(|option| ["-o".to_owned(), (*option).to_owned()])
            .chain(["-i".to_owned(), key.display().to_string()])
            .collect()
    }

    /// A directory that both ends may use for files.
    pub fn scratch(&self) -> PathBuf {
        self.directory.path().to_owned()
    }
}
