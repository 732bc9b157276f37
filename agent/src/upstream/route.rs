//! One upstream: how it connects, and what its failures mean for the pod.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tunproxy_datapath::{DialFailure, Target, UpstreamFailure};

use super::socks5::{
    self, BadCredentials, ConnectError, Credentials, HandshakeError, Lookups, Proxy, Reply, open_socket,
};
use crate::documents::{Login, UpstreamKind, UpstreamSpec};
use crate::worker::set_traffic_class;

/// Longer than Linux's own first four SYNs (1 + 2 + 4 s): a pod's connect gives up after that, not before.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How an upstream connects.
#[derive(Clone, Debug)]
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
            Self::Direct { timeout } => connect_directly(target, *timeout, mark)
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
                let lookups = Lookups::default();
                Self::Socks5(Proxy { address: address.clone(), credentials, timeout, lookups })
            }
        })
    }
}

impl DialError {
    /// What the pod is told, and for the record what the upstream said.
    pub fn into_failure(self) -> UpstreamFailure {
        let detail = match &self {
            // The kind says as much.
            Self::Direct { .. } => None,
            Self::Unknown { .. } | Self::Rejected | Self::Socks5(_) => Some(self.to_string().into()),
        };
        UpstreamFailure { kind: self.failure(), detail }
    }

    fn failure(&self) -> DialFailure {
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

async fn connect_directly(target: &Target, timeout: Duration, mark: Option<u32>) -> io::Result<OwnedFd> {
    let socket = open_socket(target.dial, mark)?;
    if target.dscp != 0 {
        set_traffic_class(&socket, target.dial.is_ipv6(), target.dscp)?;
    }
    match tokio::time::timeout(timeout, socket.connect(target.dial)).await {
        Ok(connected) => Ok(connected?.into_std()?.into()),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::runtime::Builder;
    use tunproxy_policy::{DomainName, UpstreamRef};

    use super::*;
    use crate::documents::{Endpoint, Secret};

    fn run<T>(future: impl Future<Output = T>) -> T {
        Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn target(dial: SocketAddr) -> Target {
        Target { destination: dial, dial, name: Some(DomainName::parse("a.test").unwrap()), dscp: 0 }
    }

    fn handshake(source: HandshakeError) -> DialError {
        DialError::Socks5(ConnectError::Handshake { address: "proxy:1080".into(), source })
    }

    #[test]
    fn what_a_proxy_says_of_the_destination_reaches_the_pod() {
        let expected = [
            (Reply::ConnectionRefused, DialFailure::Refused),
            (Reply::NetworkUnreachable, DialFailure::NetworkUnreachable),
            (Reply::HostUnreachable, DialFailure::HostUnreachable),
            (Reply::TtlExpired, DialFailure::HostUnreachable),
            (Reply::GeneralFailure, DialFailure::Failed),
            (Reply::NotAllowed, DialFailure::Failed),
            (Reply::CommandNotSupported, DialFailure::Failed),
            (Reply::AddressTypeNotSupported, DialFailure::Failed),
            (Reply::Unassigned(77), DialFailure::Failed),
        ];
        for (reply, failure) in expected {
            assert_eq!(handshake(HandshakeError::Refused(reply)).failure(), failure, "{reply}");
        }
    }

    #[test]
    fn a_proxy_that_fails_itself_is_told_apart_from_the_destination() {
        let address = || "proxy:1080".to_owned();
        let io = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let expected = [
            (ConnectError::Unreachable { address: address(), source: io() }, DialFailure::HostUnreachable),
            (ConnectError::Resolve { host: address(), source: io() }, DialFailure::HostUnreachable),
            (ConnectError::TimedOut { address: address(), after: DIRECT_TIMEOUT }, DialFailure::TimedOut),
            (ConnectError::Broken { address: address(), source: io() }, DialFailure::Failed),
            (ConnectError::Local { address: address(), source: io() }, DialFailure::Failed),
        ];
        for (error, failure) in expected {
            assert_eq!(DialError::from(error).failure(), failure);
        }
        assert_eq!(handshake(HandshakeError::AuthenticationFailed(1)).failure(), DialFailure::Failed);
    }

    #[test]
    fn a_direct_document_connects_from_the_node() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        run(Route::direct().connect(&target(address), None)).unwrap();
        drop(listener);
        let error = run(Route::direct().connect(&target(address), None)).unwrap_err();
        assert_eq!(error.failure(), DialFailure::Refused, "{error}");
    }

    #[test]
    fn reject_connects_nothing() {
        let error = run(Route::Reject.connect(&target("192.0.2.1:80".parse().unwrap()), None)).unwrap_err();
        assert_eq!(error.failure(), DialFailure::Refused);
    }

    #[test]
    fn credentials_of_a_document_are_those_of_the_handshake() {
        let spec = |username: &str| UpstreamSpec {
            reference: UpstreamRef("corp".into()),
            kind: UpstreamKind::Socks5 {
                address: Endpoint::Tcp { host: "proxy".into(), port: 1080 },
                login: Some(Login { username: username.into(), password: Secret::new("secret") }),
            },
            connect_timeout: Duration::from_secs(3),
        };
        let Ok(Route::Socks5(proxy)) = Route::try_from(&spec("me")) else { panic!() };
        assert_eq!(proxy.credentials, Some(Credentials::new("me", "secret").unwrap()));
        assert_eq!(proxy.timeout, Duration::from_secs(3));
        assert!(Route::try_from(&spec(&"x".repeat(256))).is_err());
    }
}
