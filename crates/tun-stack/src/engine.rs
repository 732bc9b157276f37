//! The stack without IO and clock: packets and calls in, packets and wake-ups out, `now` is an argument.

mod listen;
mod tcp;
mod udp;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::{AnySocket, tcp as tcp_socket, udp as udp_socket};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint};

use crate::config::StackConfig;
use crate::error::{Ended, SocketError, StackError};
use crate::inspect::{Inspected, inspect};
use crate::link::{Link, Outbox};
use crate::ports::EphemeralPorts;

use listen::Listening;
use tcp::{Cause, Connection};

/// smoltcp's bound, by its feature `iface-max-addr-count-8`.
const MAX_ADDRESSES: usize = smoltcp::config::IFACE_MAX_ADDR_COUNT;

/// Everything a stack has. Behind one lock: the driver and the handles take turns.
pub struct Engine {
    device: String,
    config: StackConfig,
    mtu: usize,
    interface: Interface,
    sockets: SocketSet<'static>,
    /// Sockets in `sockets`, which does not count them itself.
    open: usize,
    outbox: Outbox,
    ports: EphemeralPorts,
    connections: HashMap<SocketHandle, Connection>,
    /// TCP sockets whose stream was dropped, until this time at the latest.
    orphans: HashMap<SocketHandle, Instant>,
    listeners: HashMap<SocketAddr, Listening>,
    datagrams: HashMap<SocketHandle, SocketAddr>,
    /// UDP sockets that were dropped with datagrams still to be sent.
    unsent: Vec<SocketHandle>,
    ended: Option<Ended>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Engine")
            .field("device", &self.device)
            .field("open", &self.open)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Engine {
    pub fn new(device: &str, mtu: u16, config: StackConfig, seed: u64) -> Result<Self, StackError> {
        config.check(mtu)?;
        if config.addresses.len() > MAX_ADDRESSES {
            return Err(StackError::TooManyAddresses { count: config.addresses.len(), most: MAX_ADDRESSES });
        }
        let mut outbox = Outbox::default();
        let mut settings = Config::new(HardwareAddress::Ip);
        settings.random_seed = seed;
        let mut link = Link { arrived: None, outbox: &mut outbox, mtu: usize::from(mtu) };
        let mut interface = Interface::new(settings, &mut link, Instant::ZERO);
        interface.update_ip_addrs(|list| {
            for address in &config.addresses {
                list.push(to_cidr(*address)).expect("their number was checked");
            }
        });
        Ok(Self {
            device: device.to_owned(),
            mtu: usize::from(mtu),
            interface,
            sockets: SocketSet::new(Vec::new()),
            open: 0,
            outbox,
            ports: EphemeralPorts::new(seed),
            connections: HashMap::new(),
            orphans: HashMap::new(),
            listeners: HashMap::new(),
            datagrams: HashMap::new(),
            unsent: Vec::new(),
            ended: None,
            config,
        })
    }

    pub fn device(&self) -> &str {
        &self.device
    }

    pub fn open(&self) -> usize {
        self.open
    }

    /// A packet from the TUN. Afterwards, at least once for a batch, [`Self::poll`].
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        let admitted = match inspect(packet) {
            Inspected::Unfit => return,
            Inspected::Syn { source, destination } => match self.admit(now, source, destination) {
                Ok(admitted) => admitted,
                Err(listen::Full) => return,
            },
            Inspected::Other => None,
        };
        let mut link = Link { arrived: Some(packet), outbox: &mut self.outbox, mtu: self.mtu };
        self.interface.poll_ingress_single(now, &mut link, &mut self.sockets);
        if let Some(admitted) = admitted {
            self.confirm(admitted);
        }
    }

    /// Lets time pass and collects what is to be sent, as far as the outbox takes it.
    pub fn poll(&mut self, now: Instant) {
        self.settle(Cause::Peer);
        self.expire(now);
        while !self.outbox.is_full() {
            let mut link = Link { arrived: None, outbox: &mut self.outbox, mtu: self.mtu };
            match self.interface.poll_egress(now, &mut link, &mut self.sockets) {
                smoltcp::iface::PollResult::None => break,
                smoltcp::iface::PollResult::SocketStateChanged => {}
            }
        }
        // Nobody but a timer ends a connection while sending.
        self.settle(Cause::Timer);
        self.reap();
    }

    /// When [`Self::poll`] is to be called next if nothing happens; a time that has passed means at once.
    pub fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let protocol = self.interface.poll_at(now, &self.sockets);
        let linger = self.orphans.values().min().copied();
        protocol.into_iter().chain(linger).min()
    }

    /// What is to be written. The caller clears it.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Nothing is left to be delivered. In FIN-WAIT-2 and TIME-WAIT the peer has acknowledged everything.
    pub fn is_drained(&self) -> bool {
        use tcp_socket::State::{FinWait2, TimeWait};
        self.unsent.is_empty()
            && (self.connections.is_empty() || self.ended.is_some())
            && self.orphans.keys().all(|handle| matches!(self.tcp(*handle).state(), FinWait2 | TimeWait))
    }

    /// Ends every socket that somebody holds: who waits for one is woken and gets the reason, the peers get a reset. What
    /// was dropped before may still be delivered.
    pub fn end(&mut self, now: Instant, ended: Ended) {
        if self.ended.is_some() {
            return;
        }
        self.poll(now);
        self.ended = Some(ended);
        for handle in self.connections.keys() {
            self.sockets.get_mut::<tcp_socket::Socket<'_>>(*handle).abort();
        }
        for handle in self.datagrams.keys() {
            self.sockets.get_mut::<udp_socket::Socket<'_>>(*handle).close();
        }
        let listeners: Vec<_> = self.listeners.keys().copied().collect();
        for address in listeners {
            self.unlisten(now, address);
        }
    }

    pub fn check_alive(&self) -> Result<(), SocketError> {
        self.ended.map_or(Ok(()), |ended| Err(SocketError::ended(&self.device, ended)))
    }

    fn add<T: AnySocket<'static>>(&mut self, socket: T) -> Result<SocketHandle, SocketError> {
        self.check_alive()?;
        if self.open >= self.config.sockets && !self.drop_a_time_wait() {
            return Err(SocketError::TooManySockets {
                device: self.device.clone(),
                most: self.config.sockets,
            });
        }
        self.open += 1;
        Ok(self.sockets.add(socket))
    }

    fn remove(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
        self.open -= 1;
    }

    /// The address a socket is bound to must be one of ours, or unspecified: all of its family.
    fn check_ours(&self, address: SocketAddr) -> Result<(), SocketError> {
        let ip = address.ip();
        let ours = self.config.addresses.iter().map(IpNet::addr);
        if ip.is_unspecified() {
            self.source_for(address)?;
        } else if !ours.into_iter().any(|our| our == ip) {
            return Err(SocketError::NotOurs { device: self.device.clone(), address });
        }
        Ok(())
    }

    /// Our address towards `peer`: of the same network, else the first of the family.
    fn source_for(&self, peer: SocketAddr) -> Result<IpAddr, SocketError> {
        let ours = &self.config.addresses;
        let near = ours.iter().find(|network| network.contains(&peer.ip()));
        near.or_else(|| ours.iter().find(|network| network.addr().is_ipv4() == peer.is_ipv4()))
            .map(IpNet::addr)
            .ok_or_else(|| SocketError::NoFamily { device: self.device.clone(), address: peer })
    }

    fn tcp(&self, handle: SocketHandle) -> &tcp_socket::Socket<'static> {
        self.sockets.get(handle)
    }

    fn tcp_mut(&mut self, handle: SocketHandle) -> &mut tcp_socket::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn settle(&mut self, cause: Cause) {
        self.settle_connections(cause);
        self.settle_listeners();
    }

    /// Resets orphans that are overdue, and those that get data which nobody will read (RFC 9293 section 3.6.1, as Linux
    /// does): the peer learns that it talks to nobody.
    fn expire(&mut self, now: Instant) {
        for (handle, deadline) in &self.orphans {
            let socket = self.sockets.get_mut::<tcp_socket::Socket<'_>>(*handle);
            let waiting = socket.state() == tcp_socket::State::TimeWait;
            if *deadline <= now || (socket.recv_queue() > 0 && !waiting) {
                socket.abort();
            }
        }
    }

    /// Takes away what is closed and has nothing to send.
    fn reap(&mut self) {
        let is_gone = |handle: &SocketHandle| {
            let socket = self.sockets.get::<tcp_socket::Socket<'_>>(*handle);
            // A closed socket that still knows its peer has a RST to send.
            socket.state() == tcp_socket::State::Closed && socket.local_endpoint().is_none()
        };
        let gone: Vec<_> = self.orphans.keys().copied().filter(is_gone).collect();
        for handle in gone {
            self.orphans.remove(&handle);
            self.remove(handle);
        }
        let is_sent =
            |handle: &SocketHandle| self.sockets.get::<udp_socket::Socket<'_>>(*handle).send_queue() == 0;
        let (sent, unsent): (Vec<_>, _) = std::mem::take(&mut self.unsent).into_iter().partition(is_sent);
        self.unsent = unsent;
        for handle in sent {
            self.remove(handle);
        }
    }

    /// Makes room: the oldest connection in TIME-WAIT is the least loss.
    fn drop_a_time_wait(&mut self) -> bool {
        let waiting = |handle: &SocketHandle| self.tcp(*handle).state() == tcp_socket::State::TimeWait;
        let oldest =
            self.orphans.iter().filter(|(handle, _)| waiting(handle)).min_by_key(|(_, deadline)| **deadline);
        let Some(handle) = oldest.map(|(handle, _)| *handle) else { return false };
        self.orphans.remove(&handle);
        self.remove(handle);
        true
    }
}

fn to_cidr(network: IpNet) -> IpCidr {
    IpCidr::new(network.addr().into(), network.prefix_len())
}

fn to_endpoint(address: SocketAddr) -> IpEndpoint {
    IpEndpoint::new(address.ip().into(), address.port())
}

fn to_listen_endpoint(address: SocketAddr) -> IpListenEndpoint {
    let ip: IpAddress = address.ip().into();
    IpListenEndpoint { addr: (!ip.is_unspecified()).then_some(ip), port: address.port() }
}

fn to_socket_addr(endpoint: IpEndpoint) -> SocketAddr {
    SocketAddr::new(endpoint.addr.into(), endpoint.port)
}

fn to_stack_time(time: Duration) -> smoltcp::time::Duration {
    smoltcp::time::Duration::from_micros(time.as_micros() as u64)
}

#[cfg(test)]
mod tests;
