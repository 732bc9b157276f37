//! Listeners: a bounded backlog.
//!
//! smoltcp wants one listening socket, with its buffers, for each connection that may come. Here it gets one when a SYN
//! comes: none waits idle, none is missing however many come at once, and beyond the bound a SYN is dropped instead of
//! refused, so that the peer sends it again.

use std::net::SocketAddr;
use std::sync::Arc;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};
use tokio::sync::Notify;

use super::{Engine, to_listen_endpoint, to_socket_addr, to_stack_time};
use crate::error::SocketError;

/// A half-open connection as old as this gives way to a new one when the backlog is full: whoever answers at all has
/// answered by then, on a local link, and floods of forged SYNs do not.
const PATIENCE: Duration = Duration::from_secs(1);

/// The backlog, or the stack, has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

#[derive(Debug, Default)]
pub struct Listening {
    /// Oldest first.
    pending: Vec<Pending>,
    /// Told once for each connection that can be accepted.
    pub ready: Arc<Notify>,
}

#[derive(Debug)]
struct Pending {
    handle: SocketHandle,
    since: Instant,
    /// The handshake is over and `ready` was told.
    open: bool,
}

/// A socket that was made for a SYN which smoltcp has still to judge.
#[derive(Debug, Clone, Copy)]
pub struct Admitted {
    listener: SocketAddr,
    handle: SocketHandle,
}

impl Engine {
    pub fn listen(&mut self, address: SocketAddr) -> Result<Arc<Notify>, SocketError> {
        self.check_alive()?;
        if address.port() == 0 {
            return Err(SocketError::NoPort { address });
        }
        self.check_ours(address)?;
        if self.listeners.keys().any(|other| overlap(*other, address)) {
            return Err(SocketError::InUse { device: self.device.clone(), address });
        }
        Ok(Arc::clone(&self.listeners.entry(address).or_default().ready))
    }

    /// Resets what nobody accepted.
    pub fn unlisten(&mut self, now: Instant, address: SocketAddr) {
        let Some(listening) = self.listeners.remove(&address) else { return };
        listening.ready.notify_waiters();
        for pending in listening.pending {
            self.tcp_mut(pending.handle).abort();
            self.orphan(now, pending.handle);
        }
    }

    /// The oldest connection that is open; from here on it belongs to the caller.
    pub fn accept(&mut self, address: SocketAddr) -> Result<Option<SocketHandle>, SocketError> {
        self.check_alive()?;
        let Some(listening) = self.listeners.get_mut(&address) else { return Ok(None) };
        let ready = listening.pending.iter().position(|pending| pending.open);
        let Some(handle) = ready.map(|index| listening.pending.remove(index).handle) else { return Ok(None) };
        let socket = self.tcp(handle);
        let (Some(local), Some(peer)) = (socket.local_endpoint(), socket.remote_endpoint()) else {
            // Reset since the last look.
            self.remove(handle);
            return self.accept(address);
        };
        self.adopt(handle, to_socket_addr(local), to_socket_addr(peer));
        Ok(Some(handle))
    }

    /// Before a SYN goes to smoltcp: a socket for it if a listener wants it, an error if that has no room.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Result<Option<Admitted>, Full> {
        let Some(listener) = self.listener_of(local) else { return Ok(None) };
        if self.knows(local, peer) {
            return Ok(None);
        }
        self.make_room(now, listener)?;
        let mut socket = self.new_tcp();
        socket.set_timeout(Some(to_stack_time(self.config.handshake_timeout)));
        socket.listen(to_listen_endpoint(local)).map_err(|_| Full)?;
        let handle = self.add(socket).map_err(|_| Full)?;
        let listening = self.listeners.get_mut(&listener).ok_or(Full)?;
        listening.pending.push(Pending { handle, since: now, open: false });
        Ok(Some(Admitted { listener, handle }))
    }

    /// After it: a SYN that smoltcp did not take leaves no socket behind, which would wait for another.
    pub(super) fn confirm(&mut self, admitted: Admitted) {
        if self.tcp(admitted.handle).state() != State::Listen {
            return;
        }
        if let Some(listening) = self.listeners.get_mut(&admitted.listener) {
            listening.pending.retain(|pending| pending.handle != admitted.handle);
        }
        self.remove(admitted.handle);
    }

    /// Tells of connections that are open, and takes those away that came to nothing.
    pub(super) fn settle_listeners(&mut self) {
        let mut failed = Vec::new();
        for listening in self.listeners.values_mut() {
            listening.pending.retain_mut(|pending| {
                let socket = self.sockets.get::<smoltcp::socket::tcp::Socket<'_>>(pending.handle);
                match socket.state() {
                    State::SynReceived => true,
                    State::Closed | State::Listen => {
                        failed.push(pending.handle);
                        false
                    }
                    State::Established
                    | State::CloseWait
                    | State::SynSent
                    | State::FinWait1
                    | State::FinWait2
                    | State::Closing
                    | State::LastAck
                    | State::TimeWait => {
                        if !std::mem::replace(&mut pending.open, true) {
                            listening.ready.notify_one();
                        }
                        true
                    }
                }
            });
        }
        for handle in failed {
            self.remove(handle);
        }
    }

    fn listener_of(&self, local: SocketAddr) -> Option<SocketAddr> {
        let any = match local {
            SocketAddr::V4(_) => SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), local.port()),
            SocketAddr::V6(_) => SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), local.port()),
        };
        let ours = self.config.addresses.iter().any(|network| network.addr() == local.ip());
        [local, any].into_iter().find(|address| ours && self.listeners.contains_key(address))
    }

    fn make_room(&mut self, now: Instant, listener: SocketAddr) -> Result<(), Full> {
        let listening = self.listeners.get_mut(&listener).ok_or(Full)?;
        if listening.pending.len() < self.config.backlog {
            return Ok(());
        }
        let stale = |pending: &Pending| !pending.open && pending.since + PATIENCE <= now;
        let index = listening.pending.iter().position(stale).ok_or(Full)?;
        let handle = listening.pending.remove(index).handle;
        self.remove(handle);
        Ok(())
    }
}

/// Two bound addresses want the same packets.
pub(super) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}
