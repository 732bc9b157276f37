//! rtnetlink, synchronously.

mod address;
mod link;
mod removal;
mod route;
mod rule;

use std::io;

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub use address::Address;
pub use link::{Link, TunInfo};
pub use removal::delete_promptly;
pub use route::{Route, RouteAnswer, RouteKind, RouteProbe};
pub use rule::{Rule, RuleTarget, Transport};

use crate::netns::{NetNs, NetNsError};

/// Marks our routes and rules (`rtm_protocol`, `FRA_PROTOCOL`), so that removal finds ours and only ours. Numbers
/// from 5 on are free for user space; iproute2's rt_protos does not list this one.
pub const PROTOCOL: u8 = 116;

/// The routing table every packet without a better rule uses.
pub const MAIN_TABLE: u32 = 254;

/// Attribute of an extended acknowledgement that carries its text, include/uapi/linux/netlink.h.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn to_netlink(self) -> netlink_packet_route::AddressFamily {
        match self {
            Self::V4 => netlink_packet_route::AddressFamily::Inet,
            Self::V6 => netlink_packet_route::AddressFamily::Inet6,
        }
    }
}

/// A refused operation: what was asked, what the kernel answered, in its own words where it has some.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {source}{}", .kernel.as_deref().map(|text| format!(" (kernel: {text})")).unwrap_or_default())]
pub struct NetlinkError {
    operation: String,
    source: io::Error,
    kernel: Option<String>,
}

impl NetlinkError {
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    fn is(&self, errnos: &[i32]) -> bool {
        self.errno().is_some_and(|errno| errnos.contains(&errno))
    }
}

/// A handle to one namespace's network configuration.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a handle to the calling thread's namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let failed =
            |source| NetlinkError { operation: "open a netlink socket".into(), source, kernel: None };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        // Without the request echoed, the text of an error stands at a fixed place.
        socket.set_cap_ack(true).map_err(failed)?;
        socket.set_ext_ack(true).map_err(failed)?;
        // Dumps are filtered by the kernel.
        socket.set_netlink_get_strict_chk(true).map_err(failed)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Opens a handle to another namespace; usable from any thread.
    pub fn open_in(namespace: &NetNs) -> Result<Result<Self, NetlinkError>, NetNsError> {
        namespace.run(Self::open)
    }

    /// A request that changes something: ends with the kernel's acknowledgement.
    fn change(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        operation: impl Fn() -> String,
    ) -> Result<(), NetlinkError> {
        self.exchange(message, NLM_F_ACK | flags, &operation).map(drop)
    }

    /// A request for one object.
    fn get(
        &mut self,
        message: RouteNetlinkMessage,
        operation: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.exchange(message, NLM_F_ACK, &operation)
    }

    /// A request for all objects. A dump that a change interrupted is taken again.
    fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        operation: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        const ATTEMPTS: usize = 5;
        for _ in 1..ATTEMPTS {
            match self.exchange(message.clone(), NLM_F_DUMP, &operation) {
                Err(error) if error.source.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
        self.exchange(message, NLM_F_DUMP, &operation)
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        operation: &dyn Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let failed = |source, kernel| NetlinkError { operation: operation(), source, kernel };
        let bytes = self.encode(message, flags);
        self.socket.send(&bytes, 0).map_err(|source| failed(source, None))?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(|source| failed(source, None))?;
            match read_datagram(&datagram, Some(self.sequence), &mut answers) {
                Ok(Progress::More) => {}
                Ok(Progress::Complete) => return Ok(answers),
                Err(Refusal { source, kernel }) => return Err(failed(source, kernel)),
            }
        }
    }

    fn encode(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        self.sequence += 1;
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        bytes
    }
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

enum Progress {
    More,
    Complete,
}

struct Refusal {
    source: io::Error,
    kernel: Option<String>,
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        Self { source, kernel: None }
    }
}

/// Takes apart one datagram, which holds one or more messages; those of another sequence number, if one is given, are
/// left out.
fn read_datagram(
    mut bytes: &[u8],
    sequence: Option<u32>,
    answers: &mut Vec<RouteNetlinkMessage>,
) -> Result<Progress, Refusal> {
    /// The dump was taken while something changed (`NLM_F_DUMP_INTR`).
    const DUMP_INTERRUPTED: u16 = 0x10;
    while bytes.len() >= HEADER {
        let length = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if length < HEADER || length > bytes.len() {
            return Err(malformed("message longer than its datagram").into());
        }
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes[..length])
            .map_err(|error| malformed(&error.to_string()))?;
        let aligned = length.next_multiple_of(4).min(bytes.len());
        bytes = &bytes[aligned..];
        // An answer to an earlier request that was given up.
        if sequence.is_some_and(|wanted| message.header.sequence_number != wanted) {
            continue;
        }
        if message.header.flags & DUMP_INTERRUPTED != 0 {
            return Err(io::Error::from(io::ErrorKind::Interrupted).into());
        }
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(Progress::Complete),
            NetlinkPayload::Error(ErrorMessage { code: None, .. }) => return Ok(Progress::Complete),
            NetlinkPayload::Error(error) => {
                return Err(Refusal { source: error.to_io(), kernel: extended_text(&error.header) });
            }
            NetlinkPayload::InnerMessage(answer) => answers.push(answer),
            NetlinkPayload::Noop => {}
            _ => return Err(malformed("a message of unknown kind").into()),
        }
    }
    Ok(Progress::More)
}

/// The messages of a datagram that answers no request. What cannot be read is not for us.
fn notices(datagram: &[u8]) -> Vec<RouteNetlinkMessage> {
    let mut found = Vec::new();
    let _ = read_datagram(datagram, None, &mut found);
    found
}

/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("netlink: {what}"))
}

/// Finds the text of an extended acknowledgement: attributes that follow the header of the refused request.
fn extended_text(payload: &[u8]) -> Option<String> {
    let mut rest = payload.get(HEADER..)?;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let kind = u16::from_ne_bytes([rest[2], rest[3]]);
        let value = rest.get(4..length)?;
        if kind == NLMSGERR_ATTR_MSG {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests;
