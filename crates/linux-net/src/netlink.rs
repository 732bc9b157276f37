//! rtnetlink, synchronously: one method per operation.

mod address;
mod driver;
mod error;
mod link;
mod namespace;
mod removal;
mod route;
mod rule;

use std::io;
use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::AsyncSocket;

pub use address::Address;
pub use error::NetlinkError;
pub use link::{Link, TunInfo};
pub use removal::delete_promptly;
pub use route::{Route, RouteAnswer, RouteKind, RouteProbe};
pub use rule::{Rule, RuleTarget, Transport};

use driver::Driver;
use error::Failure;

use crate::netns::{NetNs, NetNsError};

/// Marks our routes and rules (`rtm_protocol`, `FRA_PROTOCOL`), so that removal finds ours and only ours. Numbers
/// from 5 on are free for user space; iproute2's rt_protos does not list this one.
pub const PROTOCOL: u8 = 116;

/// The routing table every packet without a better rule uses.
pub const MAIN_TABLE: u32 = 254;

/// A request that gets no answer ends. The kernel does its work while it takes the request, so an answer is never late;
/// it can only be lost.
const PATIENCE: Duration = Duration::from_secs(5);

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

/// A handle to one namespace's network configuration.
///
/// rtnetlink carries the requests. Its connection runs on a runtime of the handle's own, so that a caller needs none; one
/// that has a runtime may call all the same.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    driver: Driver,
}

impl Netlink {
    /// Opens a handle to the calling thread's namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let opened = Driver::start(|| {
            // Dumps are filtered by the kernel.
            let (mut connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
            let socket = connection.socket_mut().socket_mut();
            // Without the request echoed, the text of an error stands at a fixed place.
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            // The end of a dump tells whether it is complete.
            connection.set_forward_done(true);
            Ok((connection, handle))
        });
        let (driver, handle) =
            opened.map_err(|error| NetlinkError::new("open a netlink socket".into(), error.into()))?;
        Ok(Self { handle, driver })
    }

    /// Opens a handle to another namespace; usable from any thread.
    pub fn open_in(namespace: &NetNs) -> Result<Result<Self, NetlinkError>, NetNsError> {
        namespace.run(Self::open)
    }

    /// Carries a request to its end.
    fn perform<T: Send, E: Into<Failure> + Send>(
        &self,
        request: impl Future<Output = Result<T, E>> + Send,
        operation: impl Fn() -> String,
    ) -> Result<T, NetlinkError> {
        let failed = |failure| NetlinkError::new(operation(), failure);
        let answer = self.driver.wait(PATIENCE, request).map_err(|error| failed(error.into()))?;
        let answer = answer.map_err(|error| failed(error.into()))?;
        // To rtnetlink, answers that end because the socket failed look like an acknowledgement.
        if self.driver.is_broken() {
            return Err(failed(Failure::broken()));
        }
        Ok(answer)
    }

    /// A request for all objects. A dump that a change interrupted is taken again.
    fn dump(
        &self,
        message: &RouteNetlinkMessage,
        operation: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        const ATTEMPTS: usize = 5;
        let attempt = || self.perform(collect(self.handle.clone(), message.clone()), &operation);
        for _ in 1..ATTEMPTS {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
        attempt()
    }
}

/// Takes a dump. rtnetlink's own requests hand on the objects alone, without the flag of an interruption.
async fn collect(
    mut handle: Handle,
    message: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, Failure> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut answers = handle.request(request)?;
    let (mut found, mut interrupted) = (Vec::new(), false);
    // To the end even when it is of no use any more: the kernel takes no other request before.
    while let Some(answer) = answers.next().await {
        interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(object) => found.push(object),
            NetlinkPayload::Error(error) => return Err(error.into()),
            NetlinkPayload::Overrun(_) => return Err(Failure::overrun()),
            NetlinkPayload::Done(end) => match Failure::of_dump(&end) {
                Some(failure) => return Err(failure),
                None if interrupted => return Err(io::Error::from(io::ErrorKind::Interrupted).into()),
                None => return Ok(found),
            },
            NetlinkPayload::Noop => {}
            _ => return Err(Failure::malformed("a message of unknown kind")),
        }
    }
    Err(Failure::broken())
}

/// The first of a request's answers.
async fn first<T>(
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Option<T>, rtnetlink::Error> {
    pin!(answers).try_next().await
}

#[cfg(test)]
mod tests;
