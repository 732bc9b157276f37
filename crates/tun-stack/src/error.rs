//! What can go wrong, with the address or device it went wrong with.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tunproxy_linux_net::{NetlinkError, TunError};

/// A stack that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    #[error("the stack has no address: give it at least one")]
    NoAddress,
    #[error("{address} is no unicast address of a host")]
    NotUnicast { address: IpAddr },
    #[error("{count} addresses, but a stack has at most {most}")]
    TooManyAddresses { count: usize, most: usize },
    #[error("MTU {mtu} is too small for {address}: {least} at least")]
    Mtu { mtu: u16, address: IpAddr, least: u16 },
    #[error("{field} is {value}: {least} to {most} are possible")]
    Limit { field: &'static str, value: usize, least: usize, most: usize },
    #[error("{field} is zero: give it a time")]
    ZeroTime { field: &'static str },
    #[error(
        "peer_timeout {peer_timeout:?} must be longer than keep_alive {keep_alive:?}, or idle peers are given up"
    )]
    KeepAlive { keep_alive: Duration, peer_timeout: Duration },
    #[error("TUN {device} has {queues} open queues: a stack serves one")]
    Queues { device: String, queues: usize },
    #[error("TUN {device}: a stack needs a tokio runtime with IO and time: {source}")]
    Runtime { device: String, source: io::Error },
    #[error(transparent)]
    Tun(#[from] TunError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Why a stack is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its owner closed it.
    Closed,
    /// The TUN is gone; the errno.
    Device(rustix::io::Errno),
    /// The task that drives it was cancelled with its runtime, or has panicked.
    Driver,
}

/// A socket of the stack failed. Inside every [`io::Error`] of this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    #[error("connect to {peer}: refused")]
    Refused { peer: SocketAddr },
    #[error("connect to {peer}: no answer within {within:?}")]
    NoAnswer { peer: SocketAddr, within: Duration },
    #[error("connection {local} to {peer}: reset by the peer")]
    Reset { local: SocketAddr, peer: SocketAddr },
    #[error("connection {local} to {peer}: the peer is silent since {silent:?}")]
    Silent { local: SocketAddr, peer: SocketAddr, silent: Duration },
    #[error("connection {local} to {peer}: written to after its shutdown")]
    WriteAfterShutdown { local: SocketAddr, peer: SocketAddr },
    #[error("{address} cannot be connected or sent to: it needs a host's address and a port")]
    NoDestination { address: SocketAddr },
    #[error("{address} is not an address of the stack on TUN {device}")]
    NotOurs { device: String, address: SocketAddr },
    #[error("the stack on TUN {device} has no address of the family of {address}")]
    NoFamily { device: String, address: SocketAddr },
    #[error("{address} is in use on TUN {device}")]
    InUse { device: String, address: SocketAddr },
    #[error("port 0 of {address}: a listener needs a port")]
    NoPort { address: SocketAddr },
    #[error("no free port is left on TUN {device}")]
    NoFreePort { device: String },
    #[error("the stack on TUN {device} has its {most} sockets: close some, or raise StackConfig::sockets")]
    TooManySockets { device: String, most: usize },
    #[error("a datagram of {length} bytes to {peer}: {most} fit the MTU, and this stack does not fragment")]
    DatagramTooLong { peer: SocketAddr, length: usize, most: usize },
    #[error("the stack on TUN {device} has ended: {reason}")]
    StackEnded { device: String, reason: String },
}

impl SocketError {
    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Refused { .. } => io::ErrorKind::ConnectionRefused,
            Self::NoAnswer { .. } | Self::Silent { .. } => io::ErrorKind::TimedOut,
            Self::Reset { .. } => io::ErrorKind::ConnectionReset,
            Self::WriteAfterShutdown { .. } => io::ErrorKind::BrokenPipe,
            Self::NoDestination { .. } | Self::NoPort { .. } | Self::DatagramTooLong { .. } => {
                io::ErrorKind::InvalidInput
            }
            Self::NotOurs { .. } | Self::NoFamily { .. } | Self::NoFreePort { .. } => {
                io::ErrorKind::AddrNotAvailable
            }
            Self::InUse { .. } => io::ErrorKind::AddrInUse,
            Self::TooManySockets { .. } => io::ErrorKind::QuotaExceeded,
            Self::StackEnded { .. } => io::ErrorKind::NetworkDown,
        }
    }

    pub(crate) fn ended(device: &str, ended: Ended) -> Self {
        let reason = match ended {
            Ended::Closed => "it was closed".to_owned(),
            Ended::Device(errno) => format!("the TUN is gone ({errno})"),
            Ended::Driver => "its task was stopped".to_owned(),
        };
        Self::StackEnded { device: device.to_owned(), reason }
    }
}

impl From<SocketError> for io::Error {
    fn from(error: SocketError) -> Self {
        Self::new(error.kind(), error)
    }
}
