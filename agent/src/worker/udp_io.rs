//! The outside sockets of UDP mappings.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::Interest;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};
use tunproxy_datapath::{Instant, MappingId, PacketBuf};
use tunproxy_linux_net::error_queue::{self, Origin};

use super::datagram_run::{self, Sending};
use super::descriptors::Lease;
use super::pod::{Env, Pod, register, store};
use super::socket::{Fields, failure_of, open_udp, report_of};
use super::token::{Generation, Source, pack};
use super::turn::Turn;

/// Datagrams of one mapping before the others have their turn.
const BATCH: usize = 32;

#[derive(Debug)]
pub(super) struct UdpSocket {
    id: MappingId,
    fd: OwnedFd,
    v6: bool,
    fields: Fields,
    _lease: Lease,
}

impl UdpSocket {
    /// Sends one datagram; `false`: a full buffer has lost it, as any link may.
    fn send(&self, datagram: &[u8], to: SocketAddr) -> Result<bool, Errno> {
        taken(sendto(&self.fd, datagram, SendFlags::empty(), &to))
    }

    /// Sends datagrams of `segment` octets each, the last one perhaps shorter, in one call.
    fn send_segments(&self, datagrams: &[u8], segment: u16, to: SocketAddr) -> Result<bool, Errno> {
        let control = [ControlMessage::UdpGsoSegments(&segment)];
        let to = SockaddrStorage::from(to);
        let sent =
            sendmsg(self.fd.as_raw_fd(), &[IoSlice::new(datagrams)], &control, MsgFlags::empty(), Some(&to));
        taken(sent.map_err(|errno| Errno::from_raw_os_error(errno as i32)))
    }
}

fn taken(sent: Result<usize, Errno>) -> Result<bool, Errno> {
    match sent {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The path or its device takes no run of such datagrams; each alone is another matter.
fn is_about_the_run(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::MSGSIZE | Errno::IO | Errno::OPNOTSUPP)
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
            Ok(fd) => {
                let socket = UdpSocket { id: mapping, fd, v6, fields: Fields::default(), _lease: lease };
                store(&mut self.mappings, mapping.slot, socket);
            }
            Err(error) => {
                if let Some(silenced) = self.complaints.utter(env.now) {
                    tracing::warn!(pod = self.id.0, %error, silenced, "cannot open a UDP socket for a pod");
                }
                self.stack.mapping_failed(env.now, mapping);
            }
        }
    }

    /// Sends datagrams of `segment` octets each, the last one perhaps shorter.
    pub(super) fn send_datagrams(
        &mut self,
        now: Instant,
        Sending { mapping, to, fields }: Sending,
        datagrams: &[u8],
        segment: usize,
    ) {
        if let Some(Some(socket)) = self.mappings.get_mut(mapping.slot as usize)
            && socket.id == mapping
            && let Err(errno) = socket.fields.set(&socket.fd, socket.v6, fields)
            && let Some(silenced) = self.complaints.utter(now)
        {
            tracing::warn!(pod = self.id.0, %errno, silenced, "a datagram's IP header cannot be kept");
        }
        for call in datagram_run::calls(datagrams, segment) {
            if let Err(errno) = self.send_call(now, mapping, to, call, segment) {
                self.stack.udp_failed(now, mapping, to, failure_of(&errno.into()), None);
                return;
            }
        }
    }

    fn send_call(
        &mut self,
        now: Instant,
        mapping: MappingId,
        to: SocketAddr,
        datagrams: &[u8],
        segment: usize,
    ) -> Result<(), Errno> {
        if datagrams.len() > segment {
            let sent = self
                .try_send(now, mapping, None, |socket| socket.send_segments(datagrams, segment as u16, to));
            match sent {
                Err(errno) if is_about_the_run(errno) => {}
                sent => {
                    self.note(sent?, datagrams.len().div_ceil(segment));
                    return Ok(());
                }
            }
        }
        let mut rest = datagrams;
        loop {
            let (datagram, after) = rest.split_at(segment.min(rest.len()));
            match self.try_send(now, mapping, Some(to), |socket| socket.send(datagram, to)) {
                Ok(sent) => self.note(sent, 1),
                // The queue says which one, and what the path takes.
                Err(Errno::MSGSIZE) => {
                    self.take_errors(now, mapping.slot, Some(to));
                }
                Err(errno) => return Err(errno),
            }
            rest = after;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    fn note(&mut self, sent: bool, datagrams: usize) {
        if !sent {
            self.stack.send_failed(datagrams);
        }
    }

    fn try_send(
        &mut self,
        now: Instant,
        mapping: MappingId,
        tried: Option<SocketAddr>,
        send: impl Fn(&UdpSocket) -> Result<bool, Errno>,
    ) -> Result<bool, Errno> {
        let attempt = |pod: &Self| match pod.mappings.get(mapping.slot as usize) {
            Some(Some(socket)) if socket.id == mapping => send(socket),
            // The outside has just ended it; that was told.
            _ => Ok(true),
        };
        attempt(self).or_else(|_| {
            // The error may be an earlier datagram's, told now; then it is on the queue, and this one can go.
            if self.take_errors(now, mapping.slot, tried) { Ok(true) } else { attempt(self) }
        })
    }

    /// Tells the stack which datagrams the outside answered with an error. Returns whether the one that was just `tried` was
    /// refused here, before it was sent.
    fn take_errors(&mut self, now: Instant, slot: u32, tried: Option<SocketAddr>) -> bool {
        let mut refused = false;
        while let Some(Some(socket)) = self.mappings.get(slot as usize) {
            let id = socket.id;
            let Some(queued) = error_queue::take(&socket.fd) else { break };
            // Of its own refusals over IPv4 the kernel does not tell the port.
            let own = tried.filter(|_| queued.origin == Origin::Local);
            refused |= own.is_some();
            let to = own.unwrap_or(queued.destination);
            self.stack.udp_failed(now, id, to, report_of(&queued), queued.reporter);
        }
        refused
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
                Err(_) => {
                    self.take_errors(env.now, slot, None);
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket as Receiver};

    use super::*;
    use crate::worker::descriptors::Descriptors;

    #[test]
    fn the_kernel_cuts_what_leaves_in_one_call() {
        for v6 in [false, true] {
            let loopback: std::net::IpAddr =
                if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
            let receiver = Receiver::bind((loopback, 0)).unwrap();
            let lease = Descriptors::of(Some(4_096)).share().lease().unwrap();
            let id = MappingId { slot: 0, generation: 0 };
            let fields = Fields::default();
            let socket = UdpSocket { id, fd: open_udp(v6, None).unwrap(), v6, fields, _lease: lease };
            let datagrams: Vec<u8> = (0..=255).cycle().take(20 * 1_200 + 7).collect();
            assert_eq!(socket.send_segments(&datagrams, 1_200, receiver.local_addr().unwrap()), Ok(true));
            let mut buffer = [0; 2_000];
            for wanted in datagrams.chunks(1_200) {
                let (length, _) = receiver.recv_from(&mut buffer).unwrap();
                assert_eq!(buffer[..length], *wanted);
            }
        }
    }
}
