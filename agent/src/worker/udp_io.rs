//! The outside sockets of UDP mappings.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use mio::Interest;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};
use tunproxy_datapath::{Instant, MappingId, PacketBuf};

use super::pod::{Env, Pod, register, store};
use super::socket::{failure_of, open_udp};
use super::token::{Source, pack};

/// Datagrams of one mapping before the others have their turn.
const BATCH: usize = 32;

#[derive(Debug)]
pub(super) struct UdpSocket {
    id: MappingId,
    fd: OwnedFd,
}

impl Pod {
    pub(super) fn open_mapping(&mut self, env: &mut Env<'_>, mapping: MappingId, v6: bool) {
        let token = pack(self.index, Source::Udp(mapping.slot));
        let socket = open_udp(v6, env.mark)
            .and_then(|fd| register(env.registry, &fd, token, Interest::READABLE).map(|()| fd));
        match socket {
            Ok(fd) => store(&mut self.mappings, mapping.slot, UdpSocket { id: mapping, fd }),
            Err(error) => {
                tracing::warn!(%error, "cannot open a UDP socket for a pod");
                self.stack.mapping_failed(env.now, mapping);
            }
        }
    }

    /// Sends a datagram, or a run of them of `segment` octets each.
    pub(super) fn send_datagrams(
        &mut self,
        now: Instant,
        mapping: MappingId,
        to: SocketAddr,
        payload: &[u8],
        segment: u16,
    ) {
        let Some(Some(socket)) = self.mappings.get(mapping.slot as usize) else { return };
        if socket.id != mapping {
            return;
        }
        let size = if segment == 0 { payload.len().max(1) } else { usize::from(segment) };
        let mut failed = None;
        if payload.is_empty() {
            failed = sendto(&socket.fd, payload, SendFlags::empty(), &to).err();
        }
        for datagram in payload.chunks(size) {
            failed = sendto(&socket.fd, datagram, SendFlags::empty(), &to).err().or(failed);
        }
        match failed {
            // The socket's buffer is full: datagrams may be lost.
            None | Some(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => {}
            Some(errno) => self.stack.udp_failed(now, mapping, to, failure_of(&errno.into())),
        }
    }

    /// Hands datagrams from outside to the pod. Returns whether there is more for another turn.
    pub(super) fn read_mapping(&mut self, env: &mut Env<'_>, buffer: &mut PacketBuf, slot: u32) -> bool {
        for _ in 0..BATCH {
            let Some(Some(socket)) = self.mappings.get(slot as usize) else { return false };
            let id = socket.id;
            match recvfrom(&socket.fd, buffer.space(), RecvFlags::empty()) {
                Ok((len, _, from)) => {
                    if let Some(from) = from.and_then(|from| SocketAddr::try_from(from).ok()) {
                        self.deliver(env.now, id, from, &buffer.space()[..len]);
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}
