//! Packets of the pod: to which flow a segment belongs, and what it is when it belongs to none.

use std::net::SocketAddr;

use smoltcp::time::Instant;
use tunproxy_policy::{Decision, Permit, Protocol};

use super::replies::{refuse, reset_stray, send_alone};
use super::{Leave, Tcp, arm};
use crate::buffer::PacketBuf;
use crate::counters::DropReason;
use crate::key::{Ends, FlowId};
use crate::record::CloseReason;
use crate::stack::{Action, Cx, Shared};
use crate::tcp::flow::Syn;
use crate::tcp::segment::Segment;
use crate::tcp::seq::Seq;
use crate::tcp::slot::{Body, Held, Meta, Slot};
use crate::tcp::time_wait::Verdict;
use crate::too_big::TooBig;
use crate::view::{self, Packet};

impl Tcp {
    pub(crate) fn handle_packet(
        &mut self,
        sh: &mut Shared,
        cx: &mut Cx<'_>,
        packet: &Packet,
        buffer: &mut PacketBuf,
    ) -> Result<(), DropReason> {
        let (ends, segment) = {
            let tcp = view::tcp(packet, buffer.bytes())?;
            let pod = SocketAddr::new(packet.source, tcp.src_port());
            let remote = SocketAddr::new(packet.destination, tcp.dst_port());
            (Ends::new(pod, remote), Segment::new(&tcp, packet.transport.start, packet.transport.len()))
        };
        let Some(&slot) = self.by_ends.get(&ends) else {
            return self.handle_unknown(sh, cx, ends, &segment, packet.fields.dscp());
        };
        let slot = &mut self.slots[slot as usize];
        slot.meta.packets_sent += 1;
        let id = slot.id;
        match &mut slot.body {
            Body::Held(held) => {
                let syn = held.syn;
                self.handle_while_held(sh, cx, id, &segment, syn);
            }
            Body::Open(open) => {
                // An acknowledgment says nothing of the octets that the pod sends.
                if !segment.payload.is_empty() {
                    slot.dscp = packet.fields.dscp();
                }
                let events = open.flow.handle(cx.now, cx.pool, buffer, &segment);
                self.after_events(sh, cx, id, events);
            }
        }
        Ok(())
    }

    /// A link behind the pod is smaller than our segments. Returns whether that is news of a flow there is.
    pub(crate) fn packet_too_big(&mut self, now: Instant, error: &TooBig) -> bool {
        let Some(&slot) = self.by_ends.get(&Ends::new(error.pod, error.remote)) else { return false };
        let slot = &mut self.slots[slot as usize];
        let id = slot.id;
        let changed = slot.open_mut().is_some_and(|open| open.flow.packet_too_big(now, error));
        if changed {
            self.touch(id);
        }
        changed
    }

    /// A segment for a flow whose upstream has not connected: its SYN again, or a change of mind.
    fn handle_while_held(
        &mut self,
        sh: &mut Shared,
        cx: &mut Cx<'_>,
        id: FlowId,
        segment: &Segment,
        syn: Syn,
    ) {
        if segment.rst {
            if segment.seq == syn.seq || segment.seq == syn.seq + 1 {
                self.remove(sh, cx, id, CloseReason::Abandoned, Leave::Abort);
            }
        } else if segment.syn && segment.ack.is_none() && !segment.fin {
            // The same SYN joins the pending connect; one with another number replaces it.
            if let Some(Body::Held(held)) = self.slot_mut(id).map(|slot| &mut slot.body) {
                held.syn = Syn { seq: segment.seq, window: segment.window, options: segment.options };
            }
        } else if segment.ack.is_some()
            && let Some(slot) = self.slot(id)
        {
            let ends = slot.ends;
            reset_stray(sh, cx.now, &ends, segment);
        }
    }

    fn handle_unknown(
        &mut self,
        sh: &mut Shared,
        cx: &mut Cx<'_>,
        ends: Ends,
        segment: &Segment,
        dscp: u8,
    ) -> Result<(), DropReason> {
        let predecessor = match self.time_wait.handle(cx.now, &ends, segment) {
            Verdict::Answer(outgoing) => {
                send_alone(sh, &ends, &outgoing);
                return Ok(());
            }
            Verdict::Ignore => return Ok(()),
            Verdict::Reuse(last) => Some(last),
            Verdict::Unknown => None,
        };
        if segment.syn && segment.ack.is_none() && !segment.rst && !segment.fin {
            return self.handle_syn(sh, cx, ends, segment, (predecessor, dscp));
        }
        if segment.ack.is_some() && !segment.rst {
            reset_stray(sh, cx.now, &ends, segment);
        }
        Err(DropReason::NoFlow)
    }

    fn handle_syn(
        &mut self,
        sh: &mut Shared,
        cx: &mut Cx<'_>,
        ends: Ends,
        segment: &Segment,
        (predecessor, dscp): (Option<Seq>, u8),
    ) -> Result<(), DropReason> {
        let (permit, fallback) = match sh.decide(cx.now, Protocol::Tcp, ends.remote()) {
            Decision::Allow(permit) => (permit, None),
            Decision::ByName { provisional, fallback } => (provisional, Some(fallback)),
            Decision::Deny(refusal) => {
                refuse(sh, cx.now, &ends, segment, refusal);
                return Err(DropReason::Policy);
            }
        };
        // A full table drops the SYN, as a full accept queue does: the pod's next try may find room.
        let limits = &sh.config.limits;
        if self.pending.is_full(limits.pending) {
            return Err(DropReason::PendingLimit);
        }
        if self.half_open.is_full(limits.half_open) {
            return Err(DropReason::HalfOpenLimit);
        }
        if !self.flows.try_add(limits.flows) {
            reset_stray(sh, cx.now, &ends, segment);
            return Err(DropReason::FlowLimit);
        }
        if !self.pending.try_add(limits.pending) {
            self.flows.remove();
            return Err(DropReason::PendingLimit);
        }
        let syn = Syn { seq: segment.seq, window: segment.window, options: segment.options };
        self.hold(sh, cx, ends, Held { syn, fallback, predecessor }, (permit, dscp));
        Ok(())
    }

    fn hold(
        &mut self,
        sh: &mut Shared,
        cx: &mut Cx<'_>,
        ends: Ends,
        held: Held,
        (permit, dscp): (Permit, u8),
    ) {
        self.time_wait.give_way(&ends);
        self.generation = self.generation.wrapping_add(1);
        let entry = self.slots.vacant_entry();
        let id = FlowId { slot: entry.key() as u32, generation: self.generation };
        let target = sh.target(&permit, ends.remote(), dscp);
        sh.actions.push_back(Action::Connect { flow: id, permit: permit.clone(), target });
        let mut slot = Slot::new(id, ends, Meta::new(cx.now, permit), held, dscp);
        arm(&mut self.timers, &mut slot);
        entry.insert(Box::new(slot));
        self.by_ends.insert(ends, id.slot);
    }
}
