//! The outside sockets of ICMP echo flows.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use mio::Interest;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tunproxy_datapath::{DialFailure, EchoId, Instant, PacketBuf};

use super::descriptors::Lease;
use super::pod::{Env, Pod, register, store};
use super::socket::{failure_of, open_echo};
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
    _lease: Lease,
}

impl Pod {
    pub(super) fn open_echo(&mut self, env: &mut Env<'_>, echo: EchoId, destination: IpAddr) {
        let Some(lease) = self.descriptors.lease() else {
            self.stack.echo_failed(env.now, echo, DialFailure::Limit);
            return;
        };
        let token = pack(self.index, Source::Echo(echo.slot), Generation::NONE);
        let socket = open_echo(destination, env.mark)
            .and_then(|(fd, raw)| register(env.registry, &fd, token, Interest::READABLE).map(|()| (fd, raw)));
        match socket {
            Ok((fd, raw)) => {
                let identifier = fastrand::u16(..);
                let socket =
                    EchoSocket { id: echo, fd, v6: destination.is_ipv6(), raw, identifier, _lease: lease };
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
                self.stack.echo_failed(env.now, echo, failure);
            }
        }
    }

    pub(super) fn send_echo(
        &mut self,
        now: Instant,
        echo: EchoId,
        destination: IpAddr,
        sequence: u16,
        payload: &[u8],
    ) {
        let Some(Some(socket)) = self.echoes.get(echo.slot as usize) else { return };
        if socket.id != echo {
            return;
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
        match send(&socket.fd, &message, SendFlags::empty()) {
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => self.stack.send_failed(1),
            Err(errno) => self.stack.echo_failed(now, echo, failure_of(&errno.into())),
        }
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
            match recv(&socket.fd, buffer.space(), RecvFlags::empty()) {
                Ok((len, _)) => {
                    turn.spend(len);
                    let message = &buffer.space()[..len];
                    if let Some((sequence, payload)) = socket.reply(message) {
                        self.stack.echo_reply(env.now, id, sequence, payload);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(errno) => {
                    self.stack.echo_failed(env.now, id, failure_of(&errno.into()));
                    return false;
                }
            }
        }
        true
    }
}

impl EchoSocket {
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
