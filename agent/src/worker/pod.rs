//! One pod in a worker, or the part of it that the worker serves: its stack, its TUN and its sockets.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::{io, mem};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use tunproxy_datapath::{
    Account, Action, Counters, Cx, DropReason, FlowId, FlowRecord, Input, Instant, Limits, MappingId,
    PacketBuf, Pool, Stack, vnet,
};
use tunproxy_policy::Workload;

use super::datagram_run::{DatagramRun, Sending};
use super::descriptors::Share;
use super::handover::Siblings;
use super::icmp_io::EchoSocket;
use super::queues::Hand;
use super::tap::Taps;
use super::tcp_io::FlowSocket;
use super::token::{Generation, Source, pack};
use super::tun_io::Queue;
use super::turn::{Complaints, Ready, Turn};
use super::udp_io::UdpSocket;
use super::young::Young;
use super::{Dialed, Dialer, FlowSink, Handle, PodId, PodRules, PodSnapshot, ShardConfig};
use crate::pcap::Direction;

/// TCP flows that are judged anew before other pods have their turn; each may cost a packet.
const JUDGED: usize = 64;

/// Sockets and records of flows that policy has ended, before other pods have their turn.
const LEAVING: usize = 64;

/// What a pod's work needs of its worker.
pub(super) struct Env<'a> {
    pub(super) now: Instant,
    pub(super) pool: &'a mut Pool,
    /// Datagrams that wait to leave together; empty outside [`Pod::read_tun`].
    pub(super) run: &'a mut DatagramRun,
    pub(super) registry: &'a Registry,
    pub(super) dialer: &'a Arc<dyn Dialer>,
    pub(super) sink: &'a Arc<dyn FlowSink>,
    pub(super) mark: Option<u32>,
    pub(super) limits: &'a Limits,
    pub(super) worker: &'a Handle,
}

impl Env<'_> {
    pub(super) fn cx(&mut self) -> Cx<'_> {
        Cx { now: self.now, pool: self.pool }
    }
}

/// What is still to be done for a flow that policy has ended. Its place in the table may be another's already.
enum Leaving {
    Socket { socket: FlowSocket, abort: bool },
    Record(Box<FlowRecord>),
}

pub(super) struct Pod {
    /// Its place in the worker's table, and in tokens.
    pub(super) index: usize,
    pub(super) id: PodId,
    pub(super) stack: Stack,
    queues: Vec<Queue>,
    vnet_header: bool,
    pub(super) flows: Vec<Option<FlowSocket>>,
    pub(super) mappings: Vec<Option<UdpSocket>>,
    pub(super) echoes: Vec<Option<EchoSocket>>,
    /// Sockets that had more to read when their turn ended.
    pub(super) ready: Ready,
    pub(super) young: Young,
    /// TCP flows have not been judged by the policy in force.
    judging: bool,
    leaving: VecDeque<Leaving>,
    /// Detached: who is to be told when nothing of it is left.
    closing: Option<Sender<()>>,
    /// In the worker's list of pods with work.
    pub(super) queued: bool,
    /// The earliest entry in the worker's timers.
    pub(super) armed: Option<Instant>,
    workload: Arc<Workload>,
    pub(super) descriptors: Arc<Share>,
    siblings: Arc<Siblings>,
    /// What its flows hold of the node's packet memory.
    pub(super) account: Account,
    pub(super) complaints: Complaints,
    /// Who looks on.
    pub(super) taps: Taps,
}

impl Pod {
    pub(super) fn new(index: usize, config: ShardConfig, registry: &Registry) -> io::Result<Self> {
        Ok(Self {
            index,
            id: config.id,
            stack: config.stack,
            queues: open_queues(registry, index, config.hand, config.vnet_header)?,
            vnet_header: config.vnet_header,
            flows: Vec::new(),
            mappings: Vec::new(),
            echoes: Vec::new(),
            ready: Ready::default(),
            young: Young::default(),
            judging: false,
            leaving: VecDeque::new(),
            closing: None,
            queued: false,
            armed: None,
            workload: config.workload,
            descriptors: config.descriptors,
            siblings: config.siblings,
            account: config.account,
            complaints: Complaints::default(),
            taps: Taps::default(),
        })
    }

    pub(super) fn snapshot(&self) -> PodSnapshot {
        let (tcp, udp, echo) = self.stack.flow_counts();
        PodSnapshot { id: self.id, counters: self.stack.counters().clone(), flows: tcp + udp + echo }
    }

    /// Notes what an event says; the work is done in [`Pod::service`].
    pub(super) fn handle_event(
        &mut self,
        env: &mut Env<'_>,
        source: Source,
        generation: Generation,
        event: &Event,
    ) {
        match source {
            Source::Tun(queue) => {
                if let Some(queue) = self.queues.get_mut(usize::from(queue)) {
                    queue.readable = true;
                }
            }
            Source::Tcp(slot) => self.handle_tcp_event(env, slot, generation, event),
            Source::Udp(_) | Source::Echo(_) => self.ready.push(source),
        }
    }

    /// Moves what can be moved in one turn. Returns whether more is waiting.
    pub(super) fn service(&mut self, env: &mut Env<'_>, buffer: &mut PacketBuf) -> bool {
        if self.closing.is_some() {
            self.let_go(env, LEAVING);
            return !self.leaving.is_empty();
        }
        let mut more = false;
        for number in 0..self.queues.len() {
            if self.queues[number].readable {
                more |= self.read_tun(env, buffer, number);
            }
        }
        self.read_upstreams(env, buffer);
        self.drain(env);
        if self.judging {
            self.judge(env);
        } else {
            self.let_go(env, LEAVING);
        }
        more || self.judging || !self.ready.is_empty() || !self.leaving.is_empty()
    }

    /// Judges some flows by the policy in force. Their pod is told first: what their ends cost elsewhere is paid when all
    /// are judged.
    fn judge(&mut self, env: &mut Env<'_>) {
        self.judging = self.stack.judge(&mut env.cx(), JUDGED);
        self.tell_pod_first(env);
    }

    /// Carries out what the stack has decided, but for what the ends of flows cost elsewhere.
    fn tell_pod_first(&mut self, env: &mut Env<'_>) {
        while let Some(action) = self.stack.poll_action() {
            match action {
                Action::Close { flow, abort } => {
                    let socket = self.take_flow(flow);
                    self.leaving.extend(socket.map(|socket| Leaving::Socket { socket, abort }));
                }
                Action::Record(record) => {
                    self.tell_taps(&record);
                    self.leaving.push_back(Leaving::Record(record));
                }
                other => {
                    if let Action::Connect { flow, .. } = &other {
                        self.let_go_of_predecessor(*flow);
                    }
                    self.carry_out(env, other);
                }
            }
        }
        self.transmit(env);
    }

    /// A flow that is connected anew has just closed its first socket, whose events must not be taken for the new one's.
    fn let_go_of_predecessor(&mut self, flow: FlowId) {
        let last = self.leaving.back();
        if last.is_some_and(|last| matches!(last, Leaving::Socket { socket, .. } if socket.id() == flow))
            && let Some(Leaving::Socket { socket, abort }) = self.leaving.pop_back()
        {
            socket.close(abort);
        }
    }

    /// Lets go of up to `count` of what is over.
    fn let_go(&mut self, env: &mut Env<'_>, count: usize) {
        for leaving in self.leaving.drain(..count.min(self.leaving.len())) {
            match leaving {
                Leaving::Socket { socket, abort } => socket.close(abort),
                Leaving::Record(record) => env.sink.record(&self.workload, *record),
            }
        }
        if self.leaving.is_empty() {
            self.leaving.shrink_to(LEAVING);
        }
    }

    fn read_upstreams(&mut self, env: &mut Env<'_>, buffer: &mut PacketBuf) {
        let mut turn = Turn::of_upstreams();
        for _ in 0..self.ready.len() {
            if turn.is_over() {
                return;
            }
            let Some(source) = self.ready.pop() else { return };
            let again = match source {
                Source::Tcp(slot) => self.read_flow(env, buffer, slot, &mut turn),
                Source::Udp(slot) => self.read_mapping(env, buffer, slot, &mut turn),
                Source::Echo(slot) => self.read_echo(env, buffer, slot, &mut turn),
                Source::Tun(_) => false,
            };
            // One that had nothing after all took time too.
            turn.spend(0);
            if again {
                self.ready.push(source);
            }
        }
    }

    fn read_tun(&mut self, env: &mut Env<'_>, buffer: &mut PacketBuf, number: usize) -> bool {
        let mut turn = Turn::of_tun();
        let mut more = true;
        while more && !turn.is_over() {
            more = self.queues[number].read(buffer);
            if more {
                turn.spend(buffer.len);
                self.handle_packet(env, buffer, false);
            }
        }
        self.send_run(env);
        more
    }

    /// Gives a packet to the stack; `handed_over`: another worker has read it, and counted.
    fn handle_packet(&mut self, env: &mut Env<'_>, buffer: &mut PacketBuf, handed_over: bool) {
        if self.taps.is_empty() {
            let input = self.ask_stack(env, buffer, handed_over);
            self.handle_input(env, buffer, input);
        } else {
            self.handle_watched(env, buffer, handed_over);
        }
    }

    fn ask_stack(&mut self, env: &mut Env<'_>, buffer: &mut PacketBuf, handed_over: bool) -> Input {
        if handed_over {
            self.stack.handle_handover(&mut env.cx(), buffer)
        } else {
            self.stack.handle_packet(&mut env.cx(), buffer)
        }
    }

    /// [`handle_packet`](Self::handle_packet) under the eyes of a capture.
    fn handle_watched(&mut self, env: &mut Env<'_>, buffer: &mut PacketBuf, handed_over: bool) {
        let before = self.stack.counters().clone();
        let held =
            self.taps.hold(Direction::Outbound, [buffer.bytes().get(vnet::LEN..).unwrap_or_default(), &[]]);
        let input = self.ask_stack(env, buffer, handed_over);
        // What becomes of it, another worker knows, and captures it.
        let elsewhere = matches!(input, Input::Elsewhere { .. });
        self.handle_input(env, buffer, input);
        let lost = |now: &Counters| now.dropped(DropReason::Handover) > before.dropped(DropReason::Handover);
        let handed = elsewhere && !lost(self.stack.counters());
        if let Some(held) = held.filter(|_| !handed) {
            self.taps.give(&held, &self.stack, env.now, Some(&before));
        }
    }

    /// Takes a packet that another worker has read.
    pub(super) fn handle_handover(&mut self, env: &mut Env<'_>, mut packet: PacketBuf) {
        self.handle_packet(env, &mut packet, true);
        self.send_run(env);
        env.pool.give(packet);
    }

    fn handle_input(&mut self, env: &mut Env<'_>, buffer: &mut PacketBuf, input: Input) {
        match input {
            // A datagram waits for more of its kind only, not for other packets.
            Input::Done => self.send_run(env),
            Input::Elsewhere { shard } => self.hand_over(env, shard, buffer),
            Input::Datagram { mapping, destination: to, payload, segment, fields } => {
                let sending = Sending { mapping, to, fields };
                let datagrams = &buffer.bytes()[payload];
                let joins = segment == 0 && env.run.takes(sending, datagrams.len());
                // Before what the stack has decided of this packet: a mapping that makes room for it may be the run's.
                if !joins {
                    self.send_run(env);
                }
                self.act(env);
                if segment == 0 {
                    env.run.push(sending, datagrams);
                } else {
                    self.send_datagrams(env.now, sending, datagrams, usize::from(segment));
                }
            }
            Input::Echo { echo, destination, sequence, payload, fields } => {
                self.send_run(env);
                self.act(env);
                self.send_echo(env.now, (echo, fields), destination, sequence, &buffer.bytes()[payload]);
            }
        }
    }

    fn hand_over(&mut self, env: &mut Env<'_>, shard: usize, buffer: &mut PacketBuf) {
        match self.siblings.place() {
            Some(place) => {
                let packet = mem::replace(buffer, env.pool.take());
                self.siblings.hand_over(self.id, shard, packet, place);
            }
            None => self.stack.handover_failed(),
        }
    }

    /// Sends the datagrams that wait.
    fn send_run(&mut self, env: &mut Env<'_>) {
        if let Some((sending, segment)) = env.run.take() {
            self.send_datagrams(env.now, sending, env.run.octets(), segment);
            env.run.clear();
        }
    }

    /// Carries out everything the stack has decided: sockets, octets for upstreams, packets for the pod.
    pub(super) fn drain(&mut self, env: &mut Env<'_>) {
        loop {
            self.act(env);
            while let Some(flow) = self.stack.poll_uplink() {
                self.write_upstream(env, flow);
            }
            while let Some(flow) = self.stack.poll_resumed() {
                if self.flow_socket(flow).is_some_and(FlowSocket::wants_reading) {
                    self.ready.push(Source::Tcp(flow.slot));
                }
            }
            if !self.transmit(env) {
                break;
            }
        }
    }

    /// Writes the stack's packets to the TUN; returns whether there were any.
    pub(super) fn transmit(&mut self, env: &mut Env<'_>) -> bool {
        let (mut any, mut lost) = (false, 0);
        let Some(queue) = self.queues.first() else { return false };
        while let Some(packet) = self.stack.poll_transmit(&mut env.cx()) {
            any = true;
            lost += usize::from(!queue.write(packet.head, packet.payload));
            if !self.taps.is_empty() {
                let held = self.taps.hold(Direction::Inbound, [&packet.head[vnet::LEN..], packet.payload]);
                if let Some(held) = held {
                    self.taps.give(&held, &self.stack, env.now, None);
                }
            }
        }
        if lost > 0 {
            self.stack.write_failed(lost);
        }
        any
    }

    fn act(&mut self, env: &mut Env<'_>) {
        while let Some(action) = self.stack.poll_action() {
            self.carry_out(env, action);
        }
    }

    fn carry_out(&mut self, env: &mut Env<'_>, action: Action) {
        match action {
            Action::Connect { flow, permit, target } => self.connect(env, flow, permit, target),
            Action::Shutdown { flow } => self.shutdown(flow),
            Action::Close { flow, abort } => {
                if let Some(socket) = self.take_flow(flow) {
                    socket.close(abort);
                }
            }
            Action::OpenMapping { mapping, v6, permit: _ } => self.open_mapping(env, mapping, v6),
            Action::CloseMapping { mapping } => close(&mut self.mappings, mapping.slot),
            Action::OpenEcho { echo, destination, permit: _ } => self.open_echo(env, echo, destination),
            Action::CloseEcho { echo } => close(&mut self.echoes, echo.slot),
            Action::Begin(begin) => env.sink.begin(&self.workload, *begin),
            Action::Record(record) => {
                self.tell_taps(&record);
                env.sink.record(&self.workload, *record);
            }
        }
    }

    fn tell_taps(&mut self, record: &FlowRecord) {
        if !self.taps.is_empty() {
            self.taps.ended(record);
        }
    }

    /// A dial that was handed away is over.
    pub(super) fn dialed(&mut self, env: &mut Env<'_>, dialed: Dialed) {
        self.finish_dial(env, dialed);
        self.drain(env);
    }

    pub(super) fn set_rules(&mut self, env: &mut Env<'_>, rules: PodRules) {
        self.stack.set_resolvers(rules.resolvers);
        self.stack.set_direct(rules.direct);
        self.stack.begin_policy(&mut env.cx(), rules.policy);
        self.judging = true;
        self.drain(env);
    }

    /// See [`super::Workers::replace_queues`].
    pub(super) fn replace_queues(&mut self, env: &mut Env<'_>, hand: Hand) -> io::Result<()> {
        let new = open_queues(env.registry, self.index, hand, self.vnet_header)?;
        let old = mem::replace(&mut self.queues, new);
        close_queues(env.registry, old);
        self.drain(env);
        Ok(())
    }

    /// When [`Pod::handle_timeout`] wants to be called.
    pub(super) fn poll_at(&self) -> Option<Instant> {
        if self.closing.is_some() {
            return None;
        }
        [self.stack.poll_at(), self.young.due()].into_iter().flatten().min()
    }

    pub(super) fn handle_timeout(&mut self, env: &mut Env<'_>) {
        self.stack.handle_timeout(&mut env.cx());
        while let Some(flow) = self.young.pop(env.now) {
            self.keep_alive(env, flow);
        }
        self.drain(env);
    }

    /// Resets every flow towards the pod and lets go of the TUN. What it held outside goes in turns; `closed` is told when
    /// nothing is left.
    pub(super) fn close(&mut self, env: &mut Env<'_>, closed: Sender<()>) {
        self.stack.close(&mut env.cx());
        self.tell_pod_first(env);
        close_queues(env.registry, mem::take(&mut self.queues));
        self.closing = Some(closed);
    }

    /// Whether it was detached and nothing of it is left.
    pub(super) fn is_closed(&self) -> bool {
        self.closing.is_some() && self.leaving.is_empty()
    }

    /// Tells who waits for it.
    pub(super) fn tell_closed(self) {
        if let Some(closed) = self.closing {
            // Who asked may have gone.
            let _ = closed.send(());
        }
    }

    /// The address a mapping's datagram came from does not matter to the caller; its headers do.
    pub(super) fn deliver(&mut self, now: Instant, mapping: MappingId, from: SocketAddr, payload: &[u8]) {
        if let (Some(head), Some(queue)) =
            (self.stack.udp_reply(now, mapping, from, payload), self.queues.first())
        {
            let written = queue.write(head, payload);
            if !self.taps.is_empty()
                && let Some(held) = self.taps.hold(Direction::Inbound, [&head[vnet::LEN..], payload])
            {
                self.taps.give(&held, &self.stack, now, None);
            }
            if !written {
                self.stack.write_failed(1);
            }
        }
    }
}

/// All of them, or none is left registered.
fn open_queues(registry: &Registry, index: usize, hand: Hand, vnet_header: bool) -> io::Result<Vec<Queue>> {
    if !hand.reads {
        return Ok(hand.queues.into_iter().map(|fd| Queue::for_writing(fd, vnet_header)).collect());
    }
    let mut queues = Vec::with_capacity(hand.queues.len());
    for (number, fd) in hand.queues.into_iter().enumerate() {
        let token = pack(index, Source::Tun(number as u16), Generation::NONE);
        if let Err(error) = register(registry, &fd, token, Interest::READABLE) {
            close_queues(registry, queues);
            return Err(error);
        }
        queues.push(Queue::new(fd, vnet_header));
    }
    Ok(queues)
}

/// Whoever sent the descriptors may hold them still; epoll would go on telling of them under this pod's tokens.
fn close_queues(registry: &Registry, queues: Vec<Queue>) {
    for queue in queues {
        // Fails only for what is not registered.
        let _ = registry.deregister(&mut SourceFd(&queue.as_fd().as_raw_fd()));
    }
}

pub(super) fn register(
    registry: &Registry,
    fd: &OwnedFd,
    token: mio::Token,
    interest: Interest,
) -> io::Result<()> {
    registry.register(&mut SourceFd(&fd.as_fd().as_raw_fd()), token, interest)
}

/// Puts a socket into its slot.
pub(super) fn store<T>(sockets: &mut Vec<Option<T>>, slot: u32, socket: T) {
    let slot = slot as usize;
    if sockets.len() <= slot {
        sockets.resize_with(slot + 1, || None);
    }
    sockets[slot] = Some(socket);
}

/// Takes a socket out of its slot and closes it.
fn close<T>(sockets: &mut [Option<T>], slot: u32) {
    if let Some(socket) = sockets.get_mut(slot as usize) {
        mem::drop(socket.take());
    }
}
