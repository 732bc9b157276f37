//! UDP sockets.

use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp::{PacketBuffer, PacketMetadata, Socket, UdpMetadata};

use super::listen::overlap;
use super::{Engine, to_endpoint, to_listen_endpoint, to_socket_addr};
use crate::error::SocketError;

const HEADER: usize = 8;

impl Engine {
    /// Port 0: one that is free.
    pub fn bind(&mut self, address: SocketAddr) -> Result<(SocketHandle, SocketAddr), SocketError> {
        self.check_alive()?;
        self.check_ours(address)?;
        let bound = &self.datagrams;
        let in_use = |wanted: SocketAddr| bound.values().any(|other| overlap(*other, wanted));
        let address = if address.port() == 0 {
            let free = self.ports.take(|port| !in_use(SocketAddr::new(address.ip(), port)));
            let port = free.ok_or_else(|| SocketError::NoFreePort { device: self.device.clone() })?;
            SocketAddr::new(address.ip(), port)
        } else if in_use(address) {
            return Err(SocketError::InUse { device: self.device.clone(), address });
        } else {
            address
        };
        let mut socket = Socket::new(self.new_buffer(), self.new_buffer());
        socket
            .bind(to_listen_endpoint(address))
            .map_err(|_| SocketError::InUse { device: self.device.clone(), address })?;
        let handle = self.add(socket)?;
        self.datagrams.insert(handle, address);
        Ok((handle, address))
    }

    /// Takes a whole datagram or none; ready when there is room.
    pub fn poll_send(
        &mut self,
        handle: SocketHandle,
        bytes: &[u8],
        peer: SocketAddr,
        context: &Context<'_>,
    ) -> Poll<Result<usize, SocketError>> {
        self.check_alive()?;
        if peer.port() == 0 || peer.ip().is_unspecified() {
            return Poll::Ready(Err(SocketError::NoDestination { address: peer }));
        }
        let local = self.datagrams[&handle];
        if local.is_ipv4() != peer.is_ipv4() {
            return Poll::Ready(Err(SocketError::NoFamily { device: self.device.clone(), address: peer }));
        }
        let most = self.largest(peer);
        if bytes.len() > most {
            return Poll::Ready(Err(SocketError::DatagramTooLong { peer, length: bytes.len(), most }));
        }
        let source = if local.ip().is_unspecified() { self.source_for(peer)? } else { local.ip() };
        let mut metadata = UdpMetadata::from(to_endpoint(peer));
        metadata.local_address = Some(source.into());
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        if socket.send_slice(bytes, metadata).is_ok() {
            return Poll::Ready(Ok(bytes.len()));
        }
        socket.register_send_waker(context.waker());
        Poll::Pending
    }

    /// A datagram longer than `buffer` is cut, as the kernel does.
    pub fn poll_recv(
        &mut self,
        handle: SocketHandle,
        buffer: &mut [u8],
        context: &Context<'_>,
    ) -> Poll<Result<(usize, SocketAddr), SocketError>> {
        self.check_alive()?;
        let v4 = self.datagrams[&handle].is_ipv4();
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        while let Ok((bytes, metadata)) = socket.recv() {
            let peer = to_socket_addr(metadata.endpoint);
            // An unspecified address is of one family, and smoltcp's of both.
            if peer.is_ipv4() == v4 {
                let length = bytes.len().min(buffer.len());
                buffer[..length].copy_from_slice(&bytes[..length]);
                return Poll::Ready(Ok((length, peer)));
            }
        }
        socket.register_recv_waker(context.waker());
        Poll::Pending
    }

    /// What is still to be sent goes out first.
    pub fn unbind(&mut self, handle: SocketHandle) {
        self.datagrams.remove(&handle);
        self.unsent.push(handle);
    }

    /// Bytes of the longest datagram to `peer`.
    fn largest(&self, peer: SocketAddr) -> usize {
        let header = match peer.ip() {
            IpAddr::V4(_) => 20,
            IpAddr::V6(_) => 40,
        };
        self.mtu - header - HEADER
    }

    fn new_buffer(&self) -> PacketBuffer<'static> {
        let count = self.config.datagrams;
        PacketBuffer::new(vec![PacketMetadata::EMPTY; count], vec![0; count * self.mtu])
    }
}
