//! The upstream's side of a flow: whether it connected, what it sends, what it takes.

use std::net::SocketAddr;

use smoltcp::time::Instant;

use super::replies::refuse_syn;
use super::{Leave, MAX_PACKET, SEND_CEILING, Tcp};
use crate::buffer::PacketBuf;
use crate::icmp::{self, Unreachable};
use crate::key::{End, FlowId};
use crate::record::CloseReason;
use crate::stack::{Cx, DialFailure, Shared, StackConfig, UpstreamFailure};
use crate::tcp::MIN_MSS;
use crate::tcp::flow::{Flow, Link};
use crate::tcp::send::MAX_SLIVER;
use crate::tcp::seq::Seq;
use crate::tcp::slot::{Body, Open, Slot, Upstream};

impl Tcp {
    pub(crate) fn upstream_connected(
        &mut self,
        sh: &mut Shared,
        cx: &mut Cx<'_>,
        id: FlowId,
        dialed: Option<SocketAddr>,
    ) {
        let link = link(&sh.config, self.slot(id).is_some_and(|slot| slot.ends.is_v6()));
        let Some(slot) = self.slot_mut(id) else { return };
        slot.meta.dialed = dialed.map(End::from);
        match &mut slot.body {
            Body::Held(held) => {
                slot.meta.connected(cx.now);
                let keyed = sh.hasher.hash((slot.ends, 0u8));
                let iss = initial_sequence(cx.now, keyed as u32, held.predecessor);
                let flow = Flow::accept(cx.now, &held.syn, link, iss, (keyed >> 32) as u32);
                let tap = sh.is_trusted_resolver(slot.ends.remote());
                slot.body = Body::Open(Box::new(Open::new(cx.now, flow, held.fallback.take(), tap)));
                self.pending.remove();
                self.half_open.add();
            }
            Body::Open(open) => {
                open.upstream = Upstream::Connected;
                self.advance_uplink(sh, cx, id);
                self.resume(cx, id);
            }
        }
        self.announce(sh, cx, id);
        self.touch(id);
    }

    pub(crate) fn upstream_failed(
        &mut self,
        sh: &mut Shared,
        cx: &mut Cx<'_>,
        id: FlowId,
        UpstreamFailure { kind: failure, detail }: UpstreamFailure,
    ) {
        let Some(slot) = self.slot_mut(id) else { return };
        slot.meta.failed(detail);
        let ends = slot.ends;
        let reason = failure.close_reason();
        let Body::Held(held) = &slot.body else {
            self.reset_pod(sh, cx, id, reason, Leave::Close);
            return;
        };
        let syn = held.syn;
        let unreachable = match failure {
            DialFailure::NetworkUnreachable => Some(Unreachable::Network),
            DialFailure::HostUnreachable => Some(Unreachable::Host),
            DialFailure::Refused | DialFailure::Failed | DialFailure::Unsupported | DialFailure::Limit => {
                refuse_syn(sh, &ends, syn.seq);
                None
            }
            // The pod's own timer tells it.
            DialFailure::TimedOut => None,
        };
        if let Some(kind) = unreachable
            && sh.allow_error(cx.now)
        {
            sh.counters.icmp_errors_sent += 1;
            sh.send_control(icmp::error_for_syn(kind, ends.pod(), ends.remote(), syn.seq));
        }
        self.remove(sh, cx, id, reason, Leave::Close);
    }

    pub(crate) fn downlink_room(&mut self, cx: &Cx<'_>, id: FlowId) -> usize {
        let exhausted = cx.pool.is_exhausted();
        let Some(slot) = self.slot_mut(id) else { return 0 };
        let headers = if slot.ends.is_v6() { 40 + 32 } else { 20 + 32 };
        let Some(open) = slot.open_mut() else { return 0 };
        let room = open.room(SEND_CEILING, exhausted);
        open.starved = room == 0;
        let mss = usize::from(open.flow.sender.mss());
        match room.min(MAX_PACKET - headers) {
            // Whole segments, but where one is larger than all that.
            room if room >= MAX_SLIVER.max(mss) => room - room % mss,
            room => room,
        }
    }

    pub(crate) fn downlink_data(
        &mut self,
        sh: &mut Shared,
        cx: &mut Cx<'_>,
        id: FlowId,
        buffer: &mut PacketBuf,
        len: usize,
    ) {
        let Some(slot) = self.slot_mut(id) else { return };
        slot.meta.bytes_received += len as u64;
        let remote = slot.ends.remote();
        let Some(open) = slot.open_mut() else { return };
        if let Some(tap) = &mut open.tap
            && sh.is_trusted_resolver(remote)
        {
            tap.feed(&buffer.space()[..len], |answer| sh.learn(cx.now, remote.ip(), &answer));
        }
        open.flow.sender.push(cx.pool, buffer, 0, len);
        self.touch(id);
    }

    pub(crate) fn downlink_eof(&mut self, _sh: &mut Shared, _cx: &mut Cx<'_>, id: FlowId) {
        let Some(open) = self.open_mut(id) else { return };
        open.flow.sender.queue_fin();
        self.touch(id);
    }

    pub(crate) fn upstream_reset(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, id: FlowId) {
        let Some(slot) = self.slot(id) else { return };
        if slot.linked {
            self.reset_pod(sh, cx, id, CloseReason::ResetByPeer, Leave::Close);
        } else {
            self.remove(sh, cx, id, CloseReason::Finished, Leave::Close);
        }
    }

    pub(crate) fn poll_uplink(&mut self) -> Option<FlowId> {
        while let Some(id) = self.uplinks.pop_front() {
            if let Some(slot) = self.slot_mut(id) {
                slot.uplink_queued = false;
                return Some(id);
            }
        }
        None
    }

    pub(crate) fn poll_resumed(&mut self) -> Option<FlowId> {
        self.resumed.pop_front()
    }

    pub(crate) fn uplink(&self, id: FlowId) -> impl Iterator<Item = &[u8]> {
        self.slot(id)
            .and_then(Slot::open)
            .filter(|open| open.may_send_up())
            .into_iter()
            .flat_map(|open| open.flow.receiver.uplink().chunks())
    }

    pub(crate) fn dscp(&self, id: FlowId) -> u8 {
        self.slot(id).map_or(0, |slot| slot.dscp)
    }

    pub(crate) fn uplink_sent(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, id: FlowId, octets: usize) {
        let Some(slot) = self.slot_mut(id) else { return };
        slot.meta.bytes_sent += octets as u64;
        let Some(open) = slot.open_mut() else { return };
        if open.flow.uplink_drained(cx.pool, octets) {
            self.touch(id);
        }
        let Some(open) = self.open_mut(id) else { return };
        if open.flow.receiver.uplink().is_empty() && open.flow.receiver.is_closed() {
            self.advance_uplink(sh, cx, id);
            self.finish_if_closed(sh, cx, id);
        }
    }
}

/// RFC 6528: a clock of four microseconds plus a keyed function of the ends. A predecessor that outran the clock is
/// passed by more than an unscaled window (RFC 9293 3.6.1; as Linux does).
fn initial_sequence(now: Instant, keyed: u32, predecessor: Option<Seq>) -> Seq {
    let clock = (now.total_micros() / 4) as u32;
    let iss = Seq(clock.wrapping_add(keyed));
    match predecessor {
        Some(last) if !iss.after(last) => last + (u32::from(u16::MAX) + 2),
        Some(_) | None => iss,
    }
}

fn link(config: &StackConfig, v6: bool) -> Link {
    let headers = if v6 { 60 } else { 40 };
    Link {
        mss: config.mtu.saturating_sub(headers).max(MIN_MSS),
        default_mss: if v6 { 1_220 } else { 536 },
        receive_buffer: config.limits.receive_buffer,
        keepalive: config.limits.keepalive,
        user_timeout: config.limits.user_timeout,
    }
}
