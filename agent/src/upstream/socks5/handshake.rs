//! The client's half of RFC 1928 and RFC 1929, without IO: what to send next, how many bytes to read next, and what
//! the bytes that came mean.
//!
//! The shell reads exactly [`Handshake::wanted`] bytes and never more: the server may send the destination's data
//! right behind its reply, and those bytes belong to the flow.

use std::fmt;
use std::net::SocketAddr;

use tunproxy_policy::DomainName;

const VERSION: u8 = 5;
/// RFC 1929, section 2: the version of the subnegotiation, not of SOCKS.
const PASSWORD_VERSION: u8 = 1;
const NO_AUTHENTICATION: u8 = 0x00;
const USERNAME_PASSWORD: u8 = 0x02;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const ADDRESS_V4: u8 = 1;
const ADDRESS_NAME: u8 = 3;
const ADDRESS_V6: u8 = 4;

/// What the proxy is asked to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The proxy resolves the name.
    Name(DomainName, u16),
    Address(SocketAddr),
}

/// Username and password, each 1-255 octets (RFC 1929).
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    username: Vec<u8>,
    password: Vec<u8>,
}

/// Why a username or password cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {field} has {length} octets; SOCKS5 carries 1-255 (RFC 1929)")]
pub struct BadCredentials {
    field: &'static str,
    length: usize,
}

/// What the proxy answered to CONNECT (RFC 1928, section 6), other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    GeneralFailure,
    NotAllowed,
    NetworkUnreachable,
    HostUnreachable,
    ConnectionRefused,
    TtlExpired,
    CommandNotSupported,
    AddressTypeNotSupported,
    /// A code that RFC 1928 does not assign.
    Unassigned(u8),
}

/// Why there is no connection through the proxy, as far as the conversation with it tells.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("it answers with version {0}, not 5: is it a SOCKS5 server?")]
    NotSocks5(u8),
    #[error("it accepts none of the authentication methods that are configured ({offered})")]
    NoAcceptableMethod { offered: &'static str },
    #[error("it chose authentication method {0:#04x}, which was not offered")]
    UnofferedMethod(u8),
    #[error("it answers the password with version {0}, not 1 (RFC 1929)")]
    BadPasswordVersion(u8),
    #[error("it refused the username and password (status {0})")]
    AuthenticationFailed(u8),
    #[error("its reply has address type {0}, which RFC 1928 does not know")]
    BadAddressType(u8),
    #[error("it answered CONNECT with: {0}")]
    Refused(Reply),
}

/// One CONNECT, from the greeting to the reply.
#[derive(Debug)]
pub struct Handshake {
    step: Step,
    credentials: Option<Credentials>,
    target: Target,
    output: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Method,
    PasswordStatus,
    ReplyHead,
    /// The length octet of a bound address that is a name.
    BoundNameLength,
    /// Bound address and port, which nobody needs.
    Bound(usize),
    Connected,
}

impl Handshake {
    pub fn new(target: Target, credentials: Option<Credentials>) -> Self {
        let greeting = match credentials {
            // Servers that want no password may still take it; offering both lets the server choose.
            Some(_) => vec![VERSION, 2, NO_AUTHENTICATION, USERNAME_PASSWORD],
            None => vec![VERSION, 1, NO_AUTHENTICATION],
        };
        Self { step: Step::Method, credentials, target, output: Some(greeting) }
    }

    /// The bytes to send before anything more is read.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.output.take()
    }

    /// Exactly how many bytes `handle_input` takes next; 0 once the connection is through.
    pub fn wanted(&self) -> usize {
        match self.step {
            Step::Method | Step::PasswordStatus => 2,
            Step::ReplyHead => 4,
            Step::BoundNameLength => 1,
            Step::Bound(length) => length,
            Step::Connected => 0,
        }
    }

    pub fn is_connected(&self) -> bool {
        self.step == Step::Connected
    }

    /// Takes the next [`wanted`](Self::wanted) bytes.
    pub fn handle_input(&mut self, input: &[u8]) -> Result<(), HandshakeError> {
        assert_eq!(input.len(), self.wanted(), "the shell reads exactly what is wanted");
        self.step = match self.step {
            Step::Method => self.handle_method(input[0], input[1])?,
            Step::PasswordStatus => self.handle_password_status(input[0], input[1])?,
            Step::ReplyHead => handle_reply_head(input[0], input[1], input[3])?,
            Step::BoundNameLength => Step::Bound(usize::from(input[0]) + 2),
            Step::Bound(_) | Step::Connected => Step::Connected,
        };
        Ok(())
    }

    fn handle_method(&mut self, version: u8, method: u8) -> Result<Step, HandshakeError> {
        if version != VERSION {
            return Err(HandshakeError::NotSocks5(version));
        }
        match (method, &self.credentials) {
            (NO_AUTHENTICATION, _) => Ok(self.send_request()),
            (USERNAME_PASSWORD, Some(credentials)) => {
                self.output = Some(credentials.encode());
                Ok(Step::PasswordStatus)
            }
            (NO_ACCEPTABLE_METHOD, credentials) => Err(HandshakeError::NoAcceptableMethod {
                offered: if credentials.is_some() { "none, username and password" } else { "none" },
            }),
            (other, _) => Err(HandshakeError::UnofferedMethod(other)),
        }
    }

    fn handle_password_status(&mut self, version: u8, status: u8) -> Result<Step, HandshakeError> {
        if status != 0 {
            return Err(HandshakeError::AuthenticationFailed(status));
        }
        if version != PASSWORD_VERSION {
            return Err(HandshakeError::BadPasswordVersion(version));
        }
        Ok(self.send_request())
    }

    fn send_request(&mut self) -> Step {
        self.output = Some(self.target.encode_connect());
        Step::ReplyHead
    }
}

impl Target {
    fn encode_connect(&self) -> Vec<u8> {
        let mut request = vec![VERSION, CONNECT, 0];
        let port = match self {
            Self::Name(name, port) => {
                let octets = name.as_str().as_bytes();
                let length = u8::try_from(octets.len()).expect("a DomainName has at most 253 octets");
                request.extend_from_slice(&[ADDRESS_NAME, length]);
                request.extend_from_slice(octets);
                *port
            }
            Self::Address(SocketAddr::V4(address)) => {
                request.push(ADDRESS_V4);
                request.extend_from_slice(&address.ip().octets());
                address.port()
            }
            Self::Address(SocketAddr::V6(address)) => {
                request.push(ADDRESS_V6);
                request.extend_from_slice(&address.ip().octets());
                address.port()
            }
        };
        request.extend_from_slice(&port.to_be_bytes());
        request
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl Credentials {
    pub fn new(username: &str, password: &str) -> Result<Self, BadCredentials> {
        for (field, value) in [("username", username), ("password", password)] {
            if !(1..=255).contains(&value.len()) {
                return Err(BadCredentials { field, length: value.len() });
            }
        }
        Ok(Self { username: username.into(), password: password.into() })
    }

    fn encode(&self) -> Vec<u8> {
        let mut message = vec![PASSWORD_VERSION];
        for field in [&self.username, &self.password] {
            message.push(u8::try_from(field.len()).expect("checked when the credentials were made"));
            message.extend_from_slice(field);
        }
        message
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Reply {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Self::GeneralFailure,
            2 => Self::NotAllowed,
            3 => Self::NetworkUnreachable,
            4 => Self::HostUnreachable,
            5 => Self::ConnectionRefused,
            6 => Self::TtlExpired,
            7 => Self::CommandNotSupported,
            8 => Self::AddressTypeNotSupported,
            9.. => Self::Unassigned(code),
        })
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::GeneralFailure => "general failure",
            Self::NotAllowed => "not allowed by its rules",
            Self::NetworkUnreachable => "network unreachable",
            Self::HostUnreachable => "host unreachable",
            Self::ConnectionRefused => "connection refused",
            Self::TtlExpired => "TTL expired",
            Self::CommandNotSupported => "command not supported",
            Self::AddressTypeNotSupported => "address type not supported",
            Self::Unassigned(code) => return write!(f, "unassigned code {code}"),
        };
        f.write_str(text)
    }
}

fn handle_reply_head(version: u8, code: u8, address_type: u8) -> Result<Step, HandshakeError> {
    if version != VERSION {
        return Err(HandshakeError::NotSocks5(version));
    }
    // A refusal is final whatever address follows it, and servers are careless with that address.
    if let Some(reply) = Reply::from_code(code) {
        return Err(HandshakeError::Refused(reply));
    }
    match address_type {
        ADDRESS_V4 => Ok(Step::Bound(4 + 2)),
        ADDRESS_V6 => Ok(Step::Bound(16 + 2)),
        ADDRESS_NAME => Ok(Step::BoundNameLength),
        other => Err(HandshakeError::BadAddressType(other)),
    }
}

#[cfg(test)]
mod tests;
