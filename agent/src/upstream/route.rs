//! One upstream: how it connects, and what its failures mean for the pod.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tunproxy_datapath::{DialFailure, Target};

use super::socks5::{
    self, BadCredentials, ConnectError, Credentials, HandshakeError, Proxy, Reply, open_socket,
};
use crate::documents::{Login, UpstreamKind, UpstreamSpec};

/// Longer than Linux's own first four SYNs (1 + 2 + 4 s): a pod's connect gives up after that, not before.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How an upstream connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// From the node itself.
    Direct {
        timeout: Duration,
    },
    /// Never.
    Reject,
    Socks5(Proxy),
}

/// Why an upstream gave no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("there is no upstream {upstream}")]
    Unknown { upstream: String },
    #[error("the upstream rejects every flow")]
    Rejected,
    #[error("connect to {address}: {source}")]
    Direct { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Socks5(#[from] ConnectError),
}

impl Route {
    pub fn direct() -> Self {
        Self::Direct { timeout: DIRECT_TIMEOUT }
    }

    /// Connects to `target`. A target with a name is asked for by that name, wherever the upstream takes names: what
    /// the pod resolved does not count.
    pub async fn connect(&self, target: &Target, mark: Option<u32>) -> Result<OwnedFd, DialError> {
        match self {
            Self::Direct { timeout } => connect_directly(target.dial, *timeout, mark)
                .await
                .map_err(|source| DialError::Direct { address: target.dial, source }),
            Self::Reject => Err(DialError::Rejected),
            Self::Socks5(proxy) => {
                let asked = match &target.name {
                    Some(name) => socks5::Target::Name(name.clone(), target.destination.port()),
                    None => socks5::Target::Address(target.destination),
                };
                Ok(proxy.connect(asked, mark).await?)
            }
        }
    }
}

impl TryFrom<&UpstreamSpec> for Route {
    type Error = BadCredentials;

    fn try_from(spec: &UpstreamSpec) -> Result<Self, BadCredentials> {
        let timeout = spec.connect_timeout;
        Ok(match &spec.kind {
            UpstreamKind::Direct => Self::Direct { timeout },
            UpstreamKind::Reject => Self::Reject,
            UpstreamKind::Socks5 { address, login } => {
                let credentials = |login: &Login| Credentials::new(&login.username, login.password.expose());
                let credentials = login.as_ref().map(credentials).transpose()?;
                Self::Socks5(Proxy { address: address.clone(), credentials, timeout })
            }
        })
    }
}

impl DialError {
    /// What the pod is told.
    pub fn failure(&self) -> DialFailure {
        match self {
            Self::Unknown { .. } => DialFailure::Failed,
            Self::Rejected => DialFailure::Refused,
            Self::Direct { source, .. } => of_io(source),
            Self::Socks5(error) => of_socks5(error),
        }
    }
}

/// A proxy that cannot be reached makes the destination unreachable; one that is silent makes it silent; and what it
/// says of the destination is passed on.
fn of_socks5(error: &ConnectError) -> DialFailure {
    match error {
        ConnectError::Resolve { .. } | ConnectError::Unreachable { .. } => DialFailure::HostUnreachable,
        ConnectError::TimedOut { .. } => DialFailure::TimedOut,
        ConnectError::Broken { .. } | ConnectError::Local { .. } => DialFailure::Failed,
        ConnectError::Handshake { source, .. } => match source {
            HandshakeError::Refused(reply) => of_reply(*reply),
            HandshakeError::NotSocks5(_)
            | HandshakeError::NoAcceptableMethod { .. }
            | HandshakeError::UnofferedMethod(_)
            | HandshakeError::BadPasswordVersion(_)
            | HandshakeError::AuthenticationFailed(_)
            | HandshakeError::BadAddressType(_) => DialFailure::Failed,
        },
    }
}

fn of_reply(reply: Reply) -> DialFailure {
    match reply {
        Reply::ConnectionRefused => DialFailure::Refused,
        Reply::NetworkUnreachable => DialFailure::NetworkUnreachable,
        Reply::HostUnreachable | Reply::TtlExpired => DialFailure::HostUnreachable,
        Reply::GeneralFailure
        | Reply::NotAllowed
        | Reply::CommandNotSupported
        | Reply::AddressTypeNotSupported
        | Reply::Unassigned(_) => DialFailure::Failed,
    }
}

fn of_io(error: &io::Error) -> DialFailure {
    use io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => DialFailure::Refused,
        ErrorKind::NetworkUnreachable => DialFailure::NetworkUnreachable,
        ErrorKind::HostUnreachable => DialFailure::HostUnreachable,
        ErrorKind::TimedOut => DialFailure::TimedOut,
        _ => DialFailure::Failed,
    }
}

async fn connect_directly(address: SocketAddr, timeout: Duration, mark: Option<u32>) -> io::Result<OwnedFd> {
    let socket = open_socket(address, mark)?;
    match tokio::time::timeout(timeout, socket.connect(address)).await {
        Ok(connected) => Ok(connected?.into_std()?.into()),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
