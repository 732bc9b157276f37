//! The outside sockets of UDP mappings.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use mio::Interest;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};
use tunproxy_datapath::{Instant, MappingId, PacketBuf};
use tunproxy_linux_net::error_queue;

use super::descriptors::Lease;
use super::pod::{Env, Pod, register, store};
use super::socket::{failure_of, open_udp};
use super::token::{Generation, Source, pack};
use super::turn::Turn;

/// Datagrams of one mapping before the others have their turn.
const BATCH: usize = 32;

#[derive(Debug)]
pub(super) struct UdpSocket {
    id: MappingId,
    fd: OwnedFd,
    _lease: Lease,
}

impl UdpSocket {
    /// Sends one datagram; `false`: a full buffer has lost it, as any link may.
    fn send(&self, datagram: &[u8], to: SocketAddr) -> Result<bool, Errno> {
        match sendto(&self.fd, datagram, SendFlags::empty(), &to) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

impl Pod {
    pub(super) fn open_mapping(&mut self, env: &mut Env<'_>, mapping: MappingId, v6: bool) {
        let Some(lease) = self.descriptors.lease() else {
            self.stack.mapping_failed(env.now, mapping);
            return;
        };
        let token = pack(self.index, Source::Udp(mapping.slot), Generation::NONE);
        let socket = open_udp(v6, env.mark)
            .and_then(|fd| register(env.registry, &fd, token, Interest::READABLE).map(|()| fd));
        match socket {
            Ok(fd) => store(&mut self.mappings, mapping.slot, UdpSocket { id: mapping, fd, _lease: lease }),
            Err(error) => {
                if let Some(silenced) = self.complaints.utter(env.now) {
                    tracing::warn!(pod = self.id.0, %error, silenced, "cannot open a UDP socket for a pod");
                }
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
        let size = if segment == 0 { payload.len().max(1) } else { usize::from(segment) };
        let mut rest = payload;
        loop {
            let (datagram, after) = rest.split_at(size.min(rest.len()));
            match self.send_datagram(now, mapping, to, datagram) {
                Ok(true) => {}
                Ok(false) => self.stack.send_failed(),
                Err(errno) => {
                    self.stack.udp_failed(now, mapping, to, failure_of(&errno.into()));
                    return;
                }
            }
            rest = after;
            if rest.is_empty() {
                return;
            }
        }
    }

    fn send_datagram(
        &mut self,
        now: Instant,
        mapping: MappingId,
        to: SocketAddr,
        datagram: &[u8],
    ) -> Result<bool, Errno> {
        let send = |pod: &Self| match pod.mappings.get(mapping.slot as usize) {
            Some(Some(socket)) if socket.id == mapping => socket.send(datagram, to),
            // The outside has just ended it; that was told.
            _ => Ok(true),
        };
        send(self).or_else(|_| {
            // The error may be an earlier datagram's, told now; then it is on the queue, and this one can go.
            self.take_errors(now, mapping.slot);
            send(self)
        })
    }

    /// Tells the stack which datagrams the outside answered with an error.
    fn take_errors(&mut self, now: Instant, slot: u32) {
        while let Some(Some(socket)) = self.mappings.get(slot as usize) {
            let id = socket.id;
            let Some(queued) = error_queue::take(&socket.fd) else { return };
            // The path takes smaller packets: the kernel has noted it and cuts the next datagrams accordingly.
            if queued.error.raw_os_error() == Some(Errno::MSGSIZE.raw_os_error()) {
                continue;
            }
            self.stack.udp_failed(now, id, queued.destination, failure_of(&queued.error));
        }
    }

    /// Hands datagrams from outside to the pod. Returns whether there is more for another turn.
    pub(super) fn read_mapping(
        &mut self,
        env: &mut Env<'_>,
        buffer: &mut PacketBuf,
        slot: u32,
        turn: &mut Turn,
    ) -> bool {
        for _ in 0..BATCH {
            if turn.is_over() {
                break;
            }
            let Some(Some(socket)) = self.mappings.get(slot as usize) else { return false };
            let id = socket.id;
            match recvfrom(&socket.fd, buffer.space(), RecvFlags::empty()) {
                Ok((len, _, from)) => {
                    turn.spend(len);
                    if let Some(from) = from.and_then(|from| SocketAddr::try_from(from).ok()) {
                        self.deliver(env.now, id, from, &buffer.space()[..len]);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                // An error of a datagram that was sent: it is on the queue, and more may wait behind it.
                Err(_) => self.take_errors(env.now, slot),
            }
        }
        true
    }
}
