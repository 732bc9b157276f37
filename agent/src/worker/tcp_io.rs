//! The upstream sockets of TCP flows.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use mio::Interest;
use mio::event::Event;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg, shutdown, sockopt,
};
use tunproxy_datapath::{DialFailure, FlowId, PacketBuf, Target};
use tunproxy_policy::Permit;

use super::descriptors::Lease;
use super::pod::{Env, Pod, register, store};
use super::socket::{
    connect_tcp, failure_of, keep_alive, keep_urgent_in_place, reset_on_close, set_traffic_class,
};
use super::token::{Generation, Source, pack};
use super::turn::Turn;
use super::{Completion, DialRequest, Dialed, Dialing};

/// Chunks given to one sendmsg.
const MAX_SLICES: usize = 16;

/// Reads of one flow before the others have their turn.
const READS: usize = 4;

#[derive(Debug)]
enum Stage {
    /// The dialer has it; it comes back as a connected socket. Held for its drop, which gives the connect up.
    Away(#[expect(dead_code, reason = "held for its drop")] Dialing),
    /// The address in a box: thousands of sockets are connected, and few are about to be.
    Connecting(OwnedFd, Box<SocketAddr>),
    Connected(OwnedFd),
}

/// Writes to a socket so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Nothing,
    Once,
    /// Nagle's algorithm is off.
    Prompt,
}

/// The upstream's end of a flow. Readiness is kept here, because epoll tells of an edge once.
#[derive(Debug)]
pub(super) struct FlowSocket {
    id: FlowId,
    stage: Stage,
    readable: bool,
    /// The peer closed or an error waits: a short read does not mean that everything was read.
    ended: bool,
    /// Nor does it where the peer marked something urgent: the kernel ends a read there.
    urgent: bool,
    failed: bool,
    /// Of what it sends.
    dscp: u8,
    sent: Sent,
    /// With the dialer while it has the flow.
    lease: Option<Lease>,
}

impl FlowSocket {
    fn new(id: FlowId, stage: Stage, lease: Option<Lease>) -> Self {
        Self {
            id,
            stage,
            readable: false,
            ended: false,
            urgent: false,
            failed: false,
            dscp: 0,
            sent: Sent::Nothing,
            lease,
        }
    }

    pub(super) fn id(&self) -> FlowId {
        self.id
    }

    /// Has what is sent from now on leave as the pod's own packets do. What a program marks it seldom marks otherwise later:
    /// most sockets are never asked for anything here.
    fn set_dscp(&mut self, dscp: u8) {
        if self.dscp == dscp {
            return;
        }
        if let Some(fd) = self.connected() {
            // Fails for no socket that there is; a mark is nothing to end a connection for.
            let v6 = sockopt::socket_domain(fd).is_ok_and(|domain| domain == AddressFamily::INET6);
            let _ = set_traffic_class(fd, v6, dscp);
        }
        self.dscp = dscp;
    }

    pub(super) fn wants_reading(&self) -> bool {
        self.readable && matches!(self.stage, Stage::Connected(_))
    }

    /// Before a write. The kernel holds the end of one back only while a short one before it is not acknowledged
    /// (`tcp_nagle_check` of net/ipv4/tcp_output.c), and many connections are written to but once.
    fn hurry(&mut self) {
        self.sent = match (self.sent, self.connected()) {
            (Sent::Nothing, _) => Sent::Once,
            (Sent::Once, Some(fd)) => {
                // Fails for no TCP socket.
                let _ = sockopt::set_tcp_nodelay(fd, true);
                Sent::Prompt
            }
            (sent, _) => sent,
        };
    }

    pub(super) fn close(self, abort: bool) {
        if abort && let Stage::Connected(fd) = &self.stage {
            reset_on_close(fd);
        }
    }

    fn connected(&self) -> Option<&OwnedFd> {
        match &self.stage {
            Stage::Connected(fd) => Some(fd),
            Stage::Away(_) | Stage::Connecting(..) => None,
        }
    }
}

impl Pod {
    pub(super) fn flow_socket(&self, flow: FlowId) -> Option<&FlowSocket> {
        self.flows.get(flow.slot as usize)?.as_ref().filter(|socket| socket.id == flow)
    }

    fn flow_socket_mut(&mut self, flow: FlowId) -> Option<&mut FlowSocket> {
        self.flows.get_mut(flow.slot as usize)?.as_mut().filter(|socket| socket.id == flow)
    }

    /// Connects as `permit` allows; having one is what makes this call possible.
    pub(super) fn connect(&mut self, env: &mut Env<'_>, flow: FlowId, permit: Permit, target: Target) {
        let Some(lease) = self.descriptors.lease() else {
            self.stack.upstream_failed(&mut env.cx(), flow, DialFailure::Limit);
            return;
        };
        if !permit.upstream().is_direct() {
            let done = Completion::new(env.worker.clone(), self.id, flow, lease);
            let dialing = env.dialer.dial(DialRequest { pod: self.id, permit, target }, done);
            store(&mut self.flows, flow.slot, FlowSocket::new(flow, Stage::Away(dialing), None));
            return;
        }
        let token = pack(self.index, Source::Tcp(flow.slot), flow.into());
        let socket = connect_tcp(target.dial, target.dscp, env.mark)
            .and_then(|fd| watch(env, &fd, token).map(|()| fd));
        match socket {
            Ok(fd) => {
                let connecting = Stage::Connecting(fd, Box::new(target.dial));
                let mut socket = FlowSocket::new(flow, connecting, Some(lease));
                socket.dscp = target.dscp;
                store(&mut self.flows, flow.slot, socket);
            }
            Err(error) => {
                tracing::debug!(destination = %target.dial, %error, "cannot connect");
                self.stack.upstream_failed(&mut env.cx(), flow, failure_of(&error));
            }
        }
    }

    pub(super) fn finish_dial(&mut self, env: &mut Env<'_>, dialed: Dialed) {
        let Dialed { flow, result, lease, .. } = dialed;
        let index = self.index;
        let Some(socket) = self.flow_socket_mut(flow).filter(|socket| matches!(socket.stage, Stage::Away(_)))
        else {
            return;
        };
        let token = pack(index, Source::Tcp(flow.slot), flow.into());
        let result =
            result.and_then(|fd| watch(env, &fd, token).map(|()| fd).map_err(|_| DialFailure::Failed.into()));
        match result {
            Ok(fd) => {
                socket.stage = Stage::Connected(fd);
                socket.lease = Some(lease);
                socket.sent = Sent::Prompt;
                self.stack.upstream_connected(&mut env.cx(), flow, None);
                self.note_young(env, flow);
            }
            Err(failure) => {
                self.flows[flow.slot as usize] = None;
                self.stack.upstream_failed(&mut env.cx(), flow, failure);
            }
        }
    }

    pub(super) fn handle_tcp_event(
        &mut self,
        env: &mut Env<'_>,
        slot: u32,
        generation: Generation,
        event: &Event,
    ) {
        let Some(Some(socket)) = self.flows.get_mut(slot as usize) else { return };
        let id = socket.id;
        // An event of an earlier socket in this slot would connect a flow whose own socket has not.
        if generation != id.into() {
            return;
        }
        match &socket.stage {
            Stage::Away(_) => return,
            Stage::Connecting(..) => {
                if !self.finish_connect(env, id, event) {
                    return;
                }
            }
            Stage::Connected(_) => {}
        }
        let Some(Some(socket)) = self.flows.get_mut(slot as usize) else { return };
        socket.ended |= event.is_read_closed() || event.is_error();
        socket.failed |= event.is_error();
        socket.urgent |= event.is_priority();
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            socket.readable = true;
            self.ready.push(Source::Tcp(slot));
        }
        if event.is_writable() {
            self.write_upstream(env, id);
        }
    }

    /// What an event says of a connect under way; returns whether the socket is connected now.
    fn finish_connect(&mut self, env: &mut Env<'_>, id: FlowId, event: &Event) -> bool {
        let Some(socket) = self.flow_socket_mut(id) else { return false };
        let Stage::Connecting(fd, to) = &socket.stage else { return false };
        let to = **to;
        // Only what failed has an error to ask for, and only what is through can be written to: no call says it again.
        if event.is_error()
            && let Ok(Err(errno)) = sockopt::socket_error(fd)
        {
            self.flows[id.slot as usize] = None;
            self.stack.upstream_failed(&mut env.cx(), id, failure_of(&errno.into()));
            return false;
        }
        if !event.is_writable() {
            return false;
        }
        socket.stage = match std::mem::replace(&mut socket.stage, Stage::Away(Dialing::over())) {
            Stage::Connecting(fd, _) => Stage::Connected(fd),
            other => other,
        };
        self.stack.upstream_connected(&mut env.cx(), id, Some(to));
        self.note_young(env, id);
        true
    }

    fn note_young(&mut self, env: &Env<'_>, flow: FlowId) {
        if let Some(oldest) = self.young.push(env.now, flow) {
            self.keep_alive(env, oldest);
        }
    }

    /// The connection may last.
    pub(super) fn keep_alive(&self, env: &Env<'_>, flow: FlowId) {
        if let Some(fd) = self.flow_socket(flow).and_then(FlowSocket::connected)
            && let Err(error) = keep_alive(fd, env.limits)
        {
            tracing::debug!(%error, "an upstream connection has no keepalive");
        }
    }

    /// Reads from the upstream what the pod has room for. Returns whether there is more for another turn.
    pub(super) fn read_flow(
        &mut self,
        env: &mut Env<'_>,
        buffer: &mut PacketBuf,
        slot: u32,
        turn: &mut Turn,
    ) -> bool {
        for _ in 0..READS {
            if turn.is_over() {
                break;
            }
            let Some(Some(socket)) = self.flows.get_mut(slot as usize) else { return false };
            let id = socket.id;
            if !socket.wants_reading() {
                return false;
            }
            let room = self.stack.downlink_room(&env.cx(), id);
            if room == 0 {
                if socket.failed {
                    self.reset(env, id);
                }
                return false;
            }
            let Some(fd) = socket.connected() else { return false };
            match recv(fd, &mut buffer.space()[..room], RecvFlags::empty()) {
                // A reset that a write has met already leaves nothing to read but an end that is none.
                Ok((0, _)) if socket.failed => {
                    socket.readable = false;
                    self.reset(env, id);
                    return false;
                }
                Ok((0, _)) => {
                    socket.readable = false;
                    self.stack.downlink_eof(&mut env.cx(), id);
                    return false;
                }
                Ok((len, _)) => {
                    turn.spend(len);
                    let ended = socket.ended;
                    socket.readable = len == room || ended || socket.urgent;
                    self.stack.downlink_data(&mut env.cx(), id, buffer, len);
                    // Where the end follows, the FIN goes with the last octets: one packet and one wake-up less.
                    if !ended {
                        self.transmit(env);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    (socket.readable, socket.urgent) = (false, false);
                    return false;
                }
                Err(_) => {
                    socket.readable = false;
                    self.reset(env, id);
                    return false;
                }
            }
        }
        true
    }

    /// Passes a reset on, behind what the upstream sent before it.
    fn reset(&mut self, env: &mut Env<'_>, flow: FlowId) {
        self.transmit(env);
        self.stack.upstream_reset(&mut env.cx(), flow);
    }

    /// Writes to the upstream what the pod has sent, as far as the socket takes it.
    pub(super) fn write_upstream(&mut self, env: &mut Env<'_>, flow: FlowId) {
        let dscp = self.stack.dscp(flow);
        if let Some(socket) = self.flow_socket_mut(flow) {
            socket.set_dscp(dscp);
        }
        loop {
            let chunks: Vec<IoSlice<'_>> =
                self.stack.uplink(flow).take(MAX_SLICES).map(IoSlice::new).collect();
            let total: usize = chunks.iter().map(|chunk| chunk.len()).sum();
            if total == 0 {
                return;
            }
            let found = self.flows.get_mut(flow.slot as usize).and_then(Option::as_mut);
            let Some(socket) = found.filter(|socket| socket.id == flow) else { return };
            socket.hurry();
            let Some(fd) = socket.connected() else { return };
            match sendmsg(fd, &chunks, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    drop(chunks);
                    self.stack.uplink_sent(&mut env.cx(), flow, sent);
                    if sent < total {
                        return;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    drop(chunks);
                    self.write_failed(env, flow);
                    return;
                }
            }
        }
    }

    /// The upstream does not take any more. What it sent before may still wait to be read; then comes the error.
    fn write_failed(&mut self, env: &mut Env<'_>, flow: FlowId) {
        let Some(socket) = self.flow_socket_mut(flow) else { return };
        if socket.readable {
            (socket.ended, socket.failed) = (true, true);
            self.ready.push(Source::Tcp(flow.slot));
        } else {
            self.stack.upstream_reset(&mut env.cx(), flow);
        }
    }

    pub(super) fn shutdown(&mut self, flow: FlowId) {
        if let Some(fd) = self.flow_socket(flow).and_then(FlowSocket::connected) {
            // Fails where the peer has reset the connection; reading tells that.
            let _ = shutdown(fd, Shutdown::Write);
        }
    }

    /// Takes the flow's socket, or its connect under way, out of its slot.
    pub(super) fn take_flow(&mut self, flow: FlowId) -> Option<FlowSocket> {
        self.flows.get_mut(flow.slot as usize)?.take_if(|socket| socket.id == flow)
    }
}

/// Has a flow's socket tell of itself, and keep in the stream what its peer marks urgent.
fn watch(env: &Env<'_>, fd: &OwnedFd, token: mio::Token) -> io::Result<()> {
    keep_urgent_in_place(fd)?;
    register(env.registry, fd, token, Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY)
}
