//! What parent and child say to each other before the command runs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anyhow::Context;
use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tunproxy_ipc::{Connection, Packet};

/// How the child is to set itself up. With it travels the command's standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub tun_name: String,
    pub queues: u16,
    pub mtu: u32,
    pub addresses: Vec<IpNet>,
    pub resolv_conf: PathBuf,
}

/// The child's answer. With `Ready` travel the TUN's queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Ready,
    Failed { message: String },
}

/// The queues are served: become the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Go;

/// The parent's end.
#[derive(Debug)]
pub struct Parent(Connection);

/// The child's end.
#[derive(Debug)]
pub struct Init(Connection);

impl Parent {
    /// Our end, and the one that becomes the child's standard input.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = Connection::pair()?;
        Ok((Self(ours), theirs.into()))
    }

    /// Has the child set itself up; gives the TUN's queues.
    pub fn prepare(&self, plan: &Plan) -> anyhow::Result<Vec<OwnedFd>> {
        let stdin = io::stdin();
        self.0.send(&encode(plan), &[stdin.as_fd()]).context("the child takes no orders")?;
        let packet = self.0.recv().context("the child does not answer")?;
        match decode(&packet).context("the child ended before it was ready")? {
            Answer::Ready => Ok(packet.fds),
            Answer::Failed { message } => super::refused(&message),
        }
    }

    pub fn go(self) -> io::Result<()> {
        self.0.send(&encode(&Go), &[])
    }
}

impl Init {
    pub fn new(channel: OwnedFd) -> Self {
        Self(channel.into())
    }

    /// The plan, and the command's standard input.
    pub fn plan(&self) -> io::Result<(Plan, OwnedFd)> {
        let mut packet = self.0.recv()?;
        let plan = decode(&packet)?;
        let stdin =
            packet.fds.pop().ok_or_else(|| io::Error::other("no standard input came with the plan"))?;
        Ok((plan, stdin))
    }

    pub fn ready(&self, queues: &[OwnedFd]) -> io::Result<()> {
        let queues: Vec<_> = queues.iter().map(AsFd::as_fd).collect();
        self.0.send(&encode(&Answer::Ready), &queues)
    }

    pub fn failed(&self, message: String) -> io::Result<()> {
        self.0.send(&encode(&Answer::Failed { message }), &[])
    }

    /// Waits until the queues are served; an error if the parent ends before.
    pub fn wait(&self) -> io::Result<()> {
        let Go = decode(&self.0.recv()?)?;
        Ok(())
    }
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("plain data")
}

fn decode<T: DeserializeOwned>(packet: &Packet) -> io::Result<T> {
    if packet.is_end() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&packet.bytes)?)
}
