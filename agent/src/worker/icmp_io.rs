//! The outside sockets of ICMP echo flows.

use std::io::IoSliceMut;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::Interest;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use tunproxy_datapath::{DialFailure, EchoId, Instant, IpFields, PacketBuf};
use tunproxy_linux_net::error_queue::{self, Origin};

use super::descriptors::Lease;
use super::pod::{Env, Pod, register, store};
use super::socket::{Fields, failure_of, open_echo, report_of};
use super::token::{Generation, Source, pack};
use super::turn::Turn;

const HEADER: usize = 8;
const BATCH: usize = 16;

#[derive(Debug)]
pub(super) struct EchoSocket {
    id: EchoId,
    fd: OwnedFd,
    v6: bool,
    /// A raw socket sees every reply of the destination, IPv4 header included; a ping socket only its own.
    raw: bool,
    identifier: u16,
    fields: Fields,
    _lease: Lease,
}

impl Pod {
    pub(super) fn open_echo(&mut self, env: &mut Env<'_>, echo: EchoId, destination: IpAddr) {
        let Some(lease) = self.descriptors.lease() else {
            self.stack.echo_failed(env.now, echo, None, DialFailure::Limit, None);
            return;
        };
        let token = pack(self.index, Source::Echo(echo.slot), Generation::NONE);
        let socket = open_echo(destination, env.mark)
            .and_then(|(fd, raw)| register(env.registry, &fd, token, Interest::READABLE).map(|()| (fd, raw)));
        match socket {
            Ok((fd, raw)) => {
                let identifier = fastrand::u16(..);
                let (v6, fields) = (destination.is_ipv6(), Fields::default());
                let socket = EchoSocket { id: echo, fd, v6, raw, identifier, fields, _lease: lease };
                store(&mut self.echoes, echo.slot, socket);
            }
            Err(error) => {
                if let Some(silenced) = self.complaints.utter(env.now) {
                    tracing::warn!(pod = self.id.0, %error, silenced, "cannot open an ICMP socket (CAP_NET_RAW or net.ipv4.ping_group_range)");
                }
                let failure = match failure_of(&error) {
                    failure @ (DialFailure::NetworkUnreachable | DialFailure::HostUnreachable) => failure,
                    _ => DialFailure::Unsupported,
                };
                self.stack.echo_failed(env.now, echo, None, failure, None);
            }
        }
    }

    pub(super) fn send_echo(
        &mut self,
        now: Instant,
        (echo, fields): (EchoId, IpFields),
        destination: IpAddr,
        sequence: u16,
        payload: &[u8],
    ) {
        let Some(Some(socket)) = self.echoes.get_mut(echo.slot as usize) else { return };
        if socket.id != echo {
            return;
        }
        if let Err(errno) = socket.fields.set(&socket.fd, socket.v6, fields)
            && let Some(silenced) = self.complaints.utter(now)
        {
            tracing::warn!(pod = self.id.0, %errno, silenced, "an echo request's IP header cannot be kept");
        }
        let mut message = vec![if destination.is_ipv6() { 128 } else { 8 }, 0, 0, 0];
        message.extend(socket.identifier.to_be_bytes());
        message.extend(sequence.to_be_bytes());
        message.extend(payload);
        // The kernel fills in the checksum of ICMPv6 and of ping sockets.
        if socket.raw && !socket.v6 {
            let sum = tunproxy_datapath::internet_checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let attempt = |pod: &Self| match pod.echoes.get(echo.slot as usize) {
            Some(Some(socket)) if socket.id == echo => {
                send(&socket.fd, &message, SendFlags::empty()).map(drop)
            }
            // The outside has just ended it; that was told.
            _ => Ok(()),
        };
        let sent = attempt(self).or_else(|errno| match errno {
            Errno::AGAIN | Errno::NOBUFS | Errno::INTR => Err(errno),
            // The error may be an earlier request's, told now; then it is on the queue, and this one can go.
            _ if self.take_echo_errors(now, echo.slot) => Ok(()),
            _ => attempt(self),
        });
        match sent {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => self.stack.send_failed(1),
            Err(Errno::MSGSIZE) => {
                self.take_echo_errors(now, echo.slot);
            }
            Err(errno) => self.stack.echo_failed(now, echo, None, failure_of(&errno.into()), None),
        }
    }

    /// Tells the stack which requests the outside answered with an error. Returns whether one was refused here, before it was
    /// sent.
    fn take_echo_errors(&mut self, now: Instant, slot: u32) -> bool {
        let mut refused = false;
        while let Some(Some(socket)) = self.echoes.get(slot as usize) {
            let id = socket.id;
            let Some(queued) = error_queue::take(&socket.fd) else { break };
            refused |= queued.origin == Origin::Local;
            // A raw socket hears of what others have sent to the destination too.
            let request = socket.request(queued.quoted.octets());
            if request.is_some() || queued.origin == Origin::Local {
                self.stack.echo_failed(now, id, request, report_of(&queued), queued.reporter);
            }
        }
        refused
    }

    /// Hands replies to the pod. Returns whether there is more for another turn.
    pub(super) fn read_echo(
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
            let Some(Some(socket)) = self.echoes.get(slot as usize) else { return false };
            let id = socket.id;
            match receive(&socket.fd, buffer.space()) {
                Ok((len, hop_limit)) => {
                    turn.spend(len);
                    let message = &buffer.space()[..len];
                    if let Some((sequence, payload)) = socket.reply(message) {
                        self.stack.echo_reply(env.now, id, sequence, hop_limit, payload);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                // An error of a request that was sent: it is on the queue, and more may wait behind it.
                Err(_) => {
                    self.take_echo_errors(env.now, slot);
                }
            }
        }
        true
    }
}

/// A message and the hop limit that it came with.
fn receive(fd: &OwnedFd, space: &mut [u8]) -> Result<(usize, Option<u8>), Errno> {
    let mut control = nix::cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(space)];
    let received = recvmsg::<()>(fd.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty());
    let received = received.map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
    let limit = received.cmsgs().ok().and_then(|mut messages| {
        messages.find_map(|message| match message {
            ControlMessageOwned::Ipv4Ttl(limit) | ControlMessageOwned::Ipv6HopLimit(limit) => {
                u8::try_from(limit).ok()
            }
            _ => None,
        })
    });
    Ok((received.bytes, limit))
}

impl EchoSocket {
    /// The sequence number, if `header` is that of a request of this flow. A ping socket hears of its own alone.
    fn request(&self, header: &[u8]) -> Option<u16> {
        let header: &[u8; HEADER] = header.first_chunk()?;
        let kind = if self.v6 { 128 } else { 8 };
        let ours = !self.raw || u16::from_be_bytes([header[4], header[5]]) == self.identifier;
        (header[0] == kind && ours).then(|| u16::from_be_bytes([header[6], header[7]]))
    }

    /// The sequence number and payload, if `message` is a reply to this flow.
    fn reply<'a>(&self, message: &'a [u8]) -> Option<(u16, &'a [u8])> {
        let message = if self.raw && !self.v6 {
            let header = usize::from(message.first()? & 0x0f) * 4;
            message.get(header..)?
        } else {
            message
        };
        let (header, payload) = message.split_at_checked(HEADER)?;
        let expected = if self.v6 { 129 } else { 0 };
        let ours = !self.raw || u16::from_be_bytes([header[4], header[5]]) == self.identifier;
        (header[0] == expected && ours).then(|| (u16::from_be_bytes([header[6], header[7]]), payload))
    }
}
