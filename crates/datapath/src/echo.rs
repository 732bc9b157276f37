//! ICMP echo: requests of the pod, forwarded under policy, one flow per identifier and destination.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use slab::Slab;
use smoltcp::time::Instant;
use tunproxy_policy::{Permit, Protocol};

use crate::counters::DropReason;
use crate::icmp::{self, Unreachable};
use crate::key::KeyedState;
use crate::record::CloseReason;
use crate::stack::shared::{Usage, host, settle};
use crate::stack::{Action, Input, Report, Shared, error_for};
use crate::timer::{Armed, Timers};
use crate::view::{Packet, Transport};

/// An echo flow; see [`crate::FlowId`] for the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EchoId {
    pub slot: u32,
    pub generation: u32,
}

const HEADER: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    identifier: u16,
}

#[derive(Debug)]
struct Flow {
    id: EchoId,
    key: Key,
    permit: Permit,
    usage: Usage,
    /// The latest request, for an error to quote.
    sequence: u16,
    armed: Armed,
}

impl Key {
    /// Both ends as records name them: the identifier takes the place of the pod's port.
    fn ends(self) -> (SocketAddr, SocketAddr) {
        (SocketAddr::new(self.source, self.identifier), host(self.destination))
    }
}

pub(crate) struct Echo {
    flows: Slab<Flow>,
    by_key: HashMap<Key, usize, KeyedState>,
    timers: Timers<EchoId>,
    generation: u32,
}

impl Echo {
    pub(crate) fn new(hasher: &KeyedState) -> Self {
        Self {
            flows: Slab::new(),
            by_key: HashMap::with_hasher(hasher.clone()),
            timers: Timers::new(),
            generation: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn handle_packet(
        &mut self,
        sh: &mut Shared,
        now: Instant,
        packet: &Packet,
        bytes: &[u8],
    ) -> Result<Input, DropReason> {
        let message = &bytes[packet.transport.clone()];
        let header = message.get(..HEADER).ok_or(DropReason::Truncated)?;
        let request = if packet.protocol == Transport::IcmpV4 { 8 } else { 128 };
        if packet.source.is_ipv4() != (packet.protocol == Transport::IcmpV4) || header[..2] != [request, 0] {
            return Err(DropReason::IcmpType);
        }
        let identifier = u16::from_be_bytes([header[4], header[5]]);
        let sequence = u16::from_be_bytes([header[6], header[7]]);
        let key = Key { source: packet.source, destination: packet.destination, identifier };
        let slot = match self.by_key.get(&key) {
            Some(&slot) => slot,
            None => self.open(sh, now, key, packet, bytes)?,
        };
        let flow = &mut self.flows[slot];
        flow.usage.sent(now, message.len() - HEADER);
        flow.sequence = sequence;
        let payload = packet.transport.start + HEADER..packet.transport.end;
        Ok(Input::Echo {
            echo: flow.id,
            destination: key.destination,
            sequence,
            payload,
            fields: packet.fields,
        })
    }

    fn open(
        &mut self,
        sh: &mut Shared,
        now: Instant,
        key: Key,
        packet: &Packet,
        bytes: &[u8],
    ) -> Result<usize, DropReason> {
        let permit = permitted(sh, now, key, packet, bytes)?;
        if self.flows.len() >= sh.config.limits.echo_flows {
            return Err(DropReason::EchoLimit);
        }
        self.generation = self.generation.wrapping_add(1);
        let entry = self.flows.vacant_entry();
        let slot = entry.key();
        let id = EchoId { slot: slot as u32, generation: self.generation };
        sh.actions.push_back(Action::OpenEcho {
            echo: id,
            destination: key.destination,
            permit: permit.clone(),
        });
        let mut armed = Armed::default();
        self.timers.arm(&mut armed, now + sh.config.limits.echo_idle, id);
        sh.announce_use(now, Protocol::Icmp, key.ends(), &permit);
        entry.insert(Flow { id, key, permit, usage: Usage::new(now), sequence: 0, armed });
        self.by_key.insert(key, slot);
        Ok(slot)
    }

    /// Under which permit the pod pings `destination`; its port is the identifier.
    pub(crate) fn permit(&self, pod: SocketAddr, destination: IpAddr) -> Option<&Permit> {
        let key = Key { source: pod.ip(), destination, identifier: pod.port() };
        self.by_key.get(&key).map(|&slot| &self.flows[slot].permit)
    }

    fn get_mut(&mut self, id: EchoId) -> Option<&mut Flow> {
        self.flows.get_mut(id.slot as usize).filter(|flow| flow.id == id)
    }

    pub(crate) fn reply(
        &mut self,
        sh: &mut Shared,
        now: Instant,
        id: EchoId,
        sequence: u16,
        hop_limit: Option<u8>,
        payload: &[u8],
    ) {
        let Some(flow) = self.get_mut(id) else { return };
        flow.usage.received(now, payload.len());
        let Key { source, destination, identifier } = flow.key;
        sh.send_control(icmp::echo_reply(destination, source, identifier, sequence, hop_limit, payload));
    }

    pub(crate) fn failed(
        &mut self,
        sh: &mut Shared,
        now: Instant,
        id: EchoId,
        sequence: Option<u16>,
        (report, reporter): (Report, Option<IpAddr>),
    ) {
        let Some(flow) = self.get_mut(id) else { return };
        if let Some(message) = error_for(report)
            && sh.allow_error(now)
        {
            sh.counters.icmp_errors_sent += 1;
            let Key { source, destination, identifier } = flow.key;
            let sequence = sequence.unwrap_or(flow.sequence);
            let ends = (source, destination);
            sh.send_control(icmp::error_for_echo(message, reporter, ends, identifier, sequence));
        }
        match report {
            Report::Failed(failure) => self.close(sh, now, id, failure.close_reason()),
            Report::TooBig { .. } => sh.counters.drop(DropReason::TooBig),
            Report::HopLimit => {}
        }
    }

    fn close(&mut self, sh: &mut Shared, now: Instant, id: EchoId, reason: CloseReason) {
        if self.get_mut(id).is_none() {
            return;
        }
        let mut flow = self.flows.remove(id.slot as usize);
        self.timers.disarm(&mut flow.armed, id);
        self.by_key.remove(&flow.key);
        sh.record_usage(now, Protocol::Icmp, flow.key.ends(), &flow.permit, &flow.usage, reason);
        sh.actions.push_back(Action::CloseEcho { echo: id });
    }

    pub(crate) fn close_all(&mut self, sh: &mut Shared, now: Instant) {
        let ids: Vec<_> = self.flows.iter().map(|(_, flow)| flow.id).collect();
        for id in ids {
            self.close(sh, now, id, CloseReason::Detached);
        }
    }

    pub(crate) fn reevaluate(&mut self, sh: &mut Shared, now: Instant) {
        let refused = |flow: &Flow| !sh.still_carried(&flow.permit, Protocol::Icmp, flow.key.ends().1);
        let ids: Vec<_> =
            self.flows.iter().filter(|(_, flow)| refused(flow)).map(|(_, flow)| flow.id).collect();
        for id in ids {
            self.close(sh, now, id, CloseReason::PolicyChanged);
        }
    }

    /// What holds between calls.
    pub(crate) fn check(&self) -> Result<(), String> {
        let armed = self.flows.iter().all(|(_, flow)| self.timers.holds(flow.armed, flow.id));
        if !armed || self.timers.len() != self.flows.len() || self.by_key.len() != self.flows.len() {
            return Err(format!("{} echo flows, {} timers", self.flows.len(), self.timers.len()));
        }
        Ok(())
    }

    pub(crate) fn poll_at(&self) -> Option<Instant> {
        self.timers.next()
    }

    pub(crate) fn handle_timeout(&mut self, sh: &mut Shared, now: Instant) {
        while let Some(id) = self.timers.pop_due(now) {
            let Some(flow) = self.flows.get_mut(id.slot as usize).filter(|flow| flow.id == id) else {
                continue;
            };
            flow.armed.fired();
            let until = flow.usage.last + sh.config.limits.echo_idle;
            if until > now {
                self.timers.arm(&mut flow.armed, until, id);
            } else {
                self.close(sh, now, id, CloseReason::Idle);
            }
        }
    }
}

/// Asks policy about a new flow; a refusal is told to the pod and recorded.
fn permitted(
    sh: &mut Shared,
    now: Instant,
    key: Key,
    packet: &Packet,
    bytes: &[u8],
) -> Result<Permit, DropReason> {
    let (source, destination) = key.ends();
    match settle(sh.decide(now, Protocol::Icmp, destination)) {
        Ok(permit) if sh.is_direct(&permit) => Ok(permit),
        Ok(permit) => {
            sh.send_error(now, Unreachable::Prohibited, packet, bytes);
            let reason = CloseReason::UpstreamUnsupported;
            sh.record_usage(now, Protocol::Icmp, (source, destination), &permit, &Usage::new(now), reason);
            Err(DropReason::Policy)
        }
        Err(refusal) => {
            sh.send_error(now, Unreachable::Prohibited, packet, bytes);
            sh.record_refusal(now, Protocol::Icmp, source, destination, refusal);
            Err(DropReason::Policy)
        }
    }
}
