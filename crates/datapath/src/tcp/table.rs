//! The TCP flows of one stack: held SYNs, connections, and what remains of them.
//!
//! A flow's life: SYN -> policy -> [`Action::Connect`] (the SYN is held) -> the upstream connected -> SYN|ACK ->
//! relay -> closed from either side, or both. A refused, unreachable or silent upstream is mirrored to the pod.

mod arrivals;
mod invariants;
mod names;
mod replies;
mod upstream;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use slab::Slab;
use smoltcp::time::{Duration, Instant};
use tunproxy_policy::Protocol;

use self::replies::{head_alone, reset_for_syn, send_alone, send_reset};
use super::flow::{Events, State};
use super::segment::Outgoing;
use super::seq::Seq;
use super::slot::{Body, Open, Slot, Upstream};
use super::time_wait::TimeWait;
use crate::emit::Head;
use crate::key::{Ends, FlowId, KeyedState};
use crate::limits::Limits;
use crate::record::CloseReason;
use crate::stack::{Action, Common, Cx, LiveFlow, Shared, Tally, Transmit};
use crate::timer::Timers;

/// Octets of an IP packet; a super-segment's payload and headers fit in it.
const MAX_PACKET: usize = 65_535;

/// IPv6 and TCP with all options.
const MAX_HEADERS: usize = 100;

/// Octets kept for one flow towards the pod, whatever window the pod offers.
const SEND_CEILING: usize = 4 << 20;

/// A SYN is not held for longer; the pod's next one starts anew. Upstreams have time-outs of their own below this.
pub(super) const HOLD: Duration = Duration::from_secs(30);

/// A closed connection whose last octets the upstream does not take is cut after this.
const LINGER: Duration = Duration::from_secs(60);

pub(crate) struct Tcp {
    slots: Slab<Box<Slot>>,
    by_ends: HashMap<Ends, u32, KeyedState>,
    time_wait: TimeWait,
    timers: Timers<FlowId>,
    /// Flows that may have something to transmit.
    dirty: VecDeque<FlowId>,
    uplinks: VecDeque<FlowId>,
    resumed: VecDeque<FlowId>,
    /// The first slot whose flow has not been judged by the policy in force; `None`: all have.
    unjudged: Option<usize>,
    /// Headers of the packet handed out last.
    head: Option<Head>,
    /// Of `slots`, with those of the pod's other shards.
    flows: Tally,
    pending: Tally,
    half_open: Tally,
    generation: u32,
}

/// How the upstream's side of a flow is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// Both directions are done, or the upstream is gone already.
    Close,
    Abort,
}

impl Tcp {
    /// The table of one of `shards`.
    pub(crate) fn new(hasher: &KeyedState, limits: &Limits, common: &Common, shards: usize) -> Self {
        Self {
            slots: Slab::new(),
            by_ends: HashMap::with_hasher(hasher.clone()),
            time_wait: TimeWait::new(hasher.clone(), limits.time_wait.div_ceil(shards)),
            timers: Timers::new(),
            dirty: VecDeque::new(),
            uplinks: VecDeque::new(),
            resumed: VecDeque::new(),
            unjudged: None,
            head: None,
            flows: common.flows(),
            pending: common.pending(),
            half_open: common.half_open(),
            generation: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// See [`crate::Stack::live_flow`].
    pub(crate) fn live(&self, pod: SocketAddr, remote: SocketAddr) -> Option<LiveFlow<'_>> {
        self.by_ends.get(&Ends::new(pod, remote)).map(|&slot| self.slots[slot as usize].live())
    }

    fn slot(&self, id: FlowId) -> Option<&Slot> {
        self.slots.get(id.slot as usize).map(|slot| &**slot).filter(|slot| slot.id == id)
    }

    fn slot_mut(&mut self, id: FlowId) -> Option<&mut Slot> {
        self.slots.get_mut(id.slot as usize).map(|slot| &mut **slot).filter(|slot| slot.id == id)
    }

    fn open_mut(&mut self, id: FlowId) -> Option<&mut Open> {
        self.slot_mut(id).and_then(Slot::open_mut)
    }

    // --- what a segment or a timer led to ---

    fn after_events(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, id: FlowId, events: Events) {
        if let Some(reason) = events.dropped {
            sh.counters.drop(reason);
        }
        let Some(slot) = self.slot_mut(id) else { return };
        let ends = slot.ends;
        if let Some(seq) = events.answer_reset {
            let mut outgoing = Outgoing::new(Seq(seq), None, 0);
            outgoing.rst = true;
            send_reset(sh, cx.now, &ends, &outgoing);
        }
        if events.challenge
            && sh.allow_challenge(cx.now)
            && let Some(open) = slot.open_mut()
        {
            open.flow.acknowledge_now();
        }
        if events.established
            && let Some(open) = slot.open_mut()
        {
            open.awaits_ack = false;
            self.half_open.remove();
            sh.counters.tcp_opened += 1;
        }
        if events.reset {
            // When only our FIN's acknowledgment was missing, the pod has forgotten a connection that is complete.
            let complete = self.slot(id).and_then(Slot::open).is_some_and(Open::is_complete);
            let (reason, leave) = if complete {
                (CloseReason::Finished, Leave::Close)
            } else {
                (CloseReason::ResetByPod, Leave::Abort)
            };
            self.remove(sh, cx, id, reason, leave);
            return;
        }
        if events.silent {
            self.give_up(sh, cx, id);
            return;
        }
        if events.acked || events.established {
            self.resume(cx, id);
        }
        if events.data || events.fin {
            self.advance_uplink(sh, cx, id);
        }
        self.finish_if_closed(sh, cx, id);
        self.touch(id);
    }

    /// Marks the flow as having something to transmit and sees to its timer.
    fn touch(&mut self, id: FlowId) {
        let Some(slot) = self.slots.get_mut(id.slot as usize).filter(|slot| slot.id == id) else { return };
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push_back(id);
        }
        arm(&mut self.timers, slot);
    }

    fn resume(&mut self, cx: &Cx<'_>, id: FlowId) {
        let exhausted = cx.pool.is_exhausted();
        let Some(open) = self.open_mut(id) else { return };
        if open.starved && open.room(SEND_CEILING, exhausted) > 0 {
            open.starved = false;
            self.resumed.push_back(id);
        }
    }

    /// Octets or a FIN of the pod wait for the upstream.
    fn advance_uplink(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, id: FlowId) {
        let Some(slot) = self.slot_mut(id) else { return };
        let queued = slot.uplink_queued;
        let Some(open) = slot.open_mut() else { return };
        if open.sniffing.is_some() {
            self.try_sniff(sh, cx, id);
            return;
        }
        if open.upstream != Upstream::Connected {
            return;
        }
        if !open.flow.receiver.uplink().is_empty() {
            if !queued {
                slot.uplink_queued = true;
                self.uplinks.push_back(id);
            }
        } else if open.flow.receiver.is_closed() && !open.shut {
            open.shut = true;
            sh.actions.push_back(Action::Shutdown { flow: id });
        }
    }

    /// The pod's connection is over: its record may remain, its octets may still be on their way.
    fn finish_if_closed(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, id: FlowId) {
        let Some(slot) = self.slots.get_mut(id.slot as usize).filter(|slot| slot.id == id) else { return };
        let (ends, linked) = (slot.ends, slot.linked);
        let Some(open) = slot.open_mut() else { return };
        let state = open.flow.state();
        if state != State::TimeWait && state != State::Closed {
            return;
        }
        let drained = open.flow.receiver.uplink().is_empty() && open.shut;
        if linked {
            if state == State::TimeWait {
                // The last ACK goes out before the flow is forgotten.
                let record = open.flow.leave(cx.now);
                send_alone(sh, &ends, &record.acknowledgment);
                self.time_wait.insert(cx.now, ends, record);
            }
            open.linger_until = Some((cx.now + LINGER).into());
            slot.linked = false;
            self.by_ends.remove(&ends);
        }
        if drained {
            self.remove(sh, cx, id, CloseReason::Finished, Leave::Close);
        }
    }

    // --- packets for the pod ---

    pub(crate) fn poll_transmit(&mut self, sh: &mut Shared, cx: &mut Cx<'_>) -> Option<Transmit<'_>> {
        let (index, piece) = loop {
            let id = *self.dirty.front()?;
            let found = self.slots.get_mut(id.slot as usize).filter(|slot| slot.id == id);
            let polled = found.and_then(|slot| poll_slot(sh, cx, slot, &mut self.timers));
            if let Some((head, piece)) = polled {
                self.head = Some(head);
                break (id.slot as usize, piece);
            }
            self.dirty.pop_front();
            if let Some(slot) = self.slot_mut(id) {
                slot.dirty = false;
            }
            // A FIN that was sent may have been the last thing to happen.
            self.finish_if_closed(sh, cx, id);
        };
        let open = self.slots[index].open();
        let payload = match (open, piece) {
            (Some(open), Some(piece)) => open.flow.sender.piece_bytes(&piece),
            _ => &[],
        };
        if !sh.config.offload
            && let Some(head) = &mut self.head
        {
            head.complete(payload);
        }
        let head = self.head.as_ref().map_or(&[][..], Head::bytes);
        sh.count_out(head.len() + payload.len());
        Some(Transmit { head, payload })
    }

    // --- the end ---

    pub(crate) fn close_all(&mut self, sh: &mut Shared, cx: &mut Cx<'_>) {
        let ids: Vec<_> = self.slots.iter().map(|(_, slot)| slot.id).collect();
        for id in ids {
            self.reset_pod(sh, cx, id, CloseReason::Detached, Leave::Abort);
        }
    }

    /// The pod does not answer. One that never answered the SYN|ACK is not bothered with a reset either.
    fn give_up(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, id: FlowId) {
        if self.slot(id).and_then(Slot::open).is_some_and(|open| open.awaits_ack) {
            self.remove(sh, cx, id, CloseReason::PodSilent, Leave::Abort);
        } else {
            self.reset_pod(sh, cx, id, CloseReason::PodSilent, Leave::Abort);
        }
    }

    /// Ends the pod's connection with a reset, whatever its state.
    fn reset_pod(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, id: FlowId, reason: CloseReason, leave: Leave) {
        let Some(slot) = self.slot_mut(id) else { return };
        let (ends, linked) = (slot.ends, slot.linked);
        let outgoing = match &mut slot.body {
            Body::Held(held) => reset_for_syn(held.syn.seq),
            Body::Open(open) => open.flow.reset(cx.now, cx.pool),
        };
        if linked {
            sh.counters.resets_sent += 1;
            let head = head_alone(sh, &ends, &outgoing);
            // As many at once as there are flows, whatever waits already: without it a pod that only reads waits on.
            sh.control.push_back(head.bytes().to_vec());
        }
        self.remove(sh, cx, id, reason, leave);
    }

    /// Forgets a flow: its socket, its buffers, its place in the tables. The record tells of it.
    fn remove(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, id: FlowId, reason: CloseReason, leave: Leave) {
        if self.slot(id).is_none() {
            return;
        }
        let mut slot = self.slots.remove(id.slot as usize);
        self.flows.remove();
        self.timers.disarm(&mut slot.armed, id);
        if slot.linked {
            self.by_ends.remove(&slot.ends);
        }
        match &mut slot.body {
            Body::Held(_) => self.pending.remove(),
            Body::Open(open) => {
                if open.awaits_ack {
                    self.half_open.remove();
                }
                open.flow.clear(cx.pool);
            }
        }
        // A close says what a shutdown just before it would.
        if leave == Leave::Close
            && matches!(sh.actions.back(), Some(Action::Shutdown { flow }) if *flow == id)
        {
            sh.actions.pop_back();
        }
        sh.actions.push_back(Action::Close { flow: id, abort: leave == Leave::Abort });
        let came_about = matches!(slot.body, Body::Open(_));
        if came_about || sh.admit_end(cx.now, Protocol::Tcp, slot.ends.remote(), reason) {
            sh.record(slot.meta.into_record(cx.now, slot.ends, reason));
        }
    }

    // --- time ---

    pub(crate) fn poll_at(&self) -> Option<Instant> {
        [self.timers.next(), self.time_wait.next_expiry()].into_iter().flatten().min()
    }

    pub(crate) fn handle_timeout(&mut self, sh: &mut Shared, cx: &mut Cx<'_>) {
        self.time_wait.expire(cx.now);
        while let Some(id) = self.timers.pop_due(cx.now) {
            let Some(slot) = self.slot_mut(id) else { continue };
            slot.armed.fired();
            self.flow_timeout(sh, cx, id);
        }
    }

    fn hold_timeout(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, id: FlowId) {
        match self.slots.get_mut(id.slot as usize).filter(|slot| slot.id == id) {
            Some(slot) if slot.poll_at().is_some_and(|at| at > cx.now) => arm(&mut self.timers, slot),
            Some(_) => self.remove(sh, cx, id, CloseReason::TimedOut, Leave::Abort),
            None => {}
        }
    }

    fn flow_timeout(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, id: FlowId) {
        let Some(slot) = self.slot_mut(id) else { return };
        let linked = slot.linked;
        let Some(open) = slot.open_mut() else {
            self.hold_timeout(sh, cx, id);
            return;
        };
        if open.linger_until.is_some_and(|until| until.get() <= cx.now) {
            self.remove(sh, cx, id, CloseReason::Finished, Leave::Abort);
            return;
        }
        if let Some(settled) = open.sniff_timeout(cx.now) {
            self.settle_name(sh, cx, id, settled);
        }
        let Some(open) = self.open_mut(id) else { return };
        let events = if linked { open.flow.handle_timeout(cx.now) } else { Events::default() };
        self.after_events(sh, cx, id, events);
    }
}

/// The flow's next packet: its headers, and where the payload lies.
fn poll_slot(
    sh: &mut Shared,
    cx: &mut Cx<'_>,
    slot: &mut Slot,
    timers: &mut Timers<FlowId>,
) -> Option<(Head, Option<super::send::Piece>)> {
    let (pod, remote, linked) = (slot.ends.pod(), slot.ends.remote(), slot.linked);
    let open = slot.open_mut()?;
    let limit =
        if sh.config.offload { MAX_PACKET - MAX_HEADERS } else { usize::from(open.flow.sender.mss()) };
    let polled = if linked { open.flow.poll(cx.now, limit) } else { None };
    if let Some((outgoing, piece)) = &polled {
        sh.counters.tcp_retransmits += u64::from(piece.is_some_and(|piece| piece.again));
        slot.meta.packets_received += u64::from(outgoing.payload_len > 0);
    }
    arm(timers, slot);
    polled.map(|(outgoing, piece)| (outgoing.head(remote, pod), piece))
}

fn arm(timers: &mut Timers<FlowId>, slot: &mut Slot) {
    if let Some(at) = slot.poll_at() {
        timers.arm(&mut slot.armed, at, slot.id);
    }
}
