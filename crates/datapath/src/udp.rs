//! UDP: one outside mapping per source port of the pod, with the peers policy allowed it.
//!
//! The mapping is independent of the endpoint (RFC 4787 4.1), the filter is per address and port: a datagram comes in
//! only from where one was sent, unless policy opens the pod's ports (RFC 4787 5) to those whom it may send to.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use slab::Slab;
use smoltcp::time::{Duration, Instant};
use tunproxy_policy::model::UdpFiltering;
use tunproxy_policy::{Permit, Protocol};

use crate::counters::DropReason;
use crate::emit::{self, Head};
use crate::icmp::{self, Unreachable};
use crate::key::KeyedState;
use crate::recency::Recency;
use crate::record::CloseReason;
use crate::stack::shared::{Usage, settle};
use crate::stack::{Action, Input, Report, Shared, error_for};
use crate::timer::{Armed, Timers};
use crate::view::{Datagram, Packet};
use crate::vnet::Gso;

/// The largest datagram that fits an IP packet of either family.
const MAX_PAYLOAD: usize = 65_507;

/// Datagrams of one super-segment: the kernel's own bound (`UDP_MAX_SEGMENTS`, include/linux/udp.h).
const MAX_SEGMENTS: usize = 128;

/// A mapping of one source port; see [`crate::FlowId`] for the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MappingId {
    pub slot: u32,
    pub generation: u32,
}

#[derive(Debug)]
struct Peer {
    /// The address the pod uses for this peer; it differs where an alias stands for a resolver.
    facing: SocketAddr,
    permit: Permit,
    usage: Usage,
    idle: Duration,
    /// Tells it from an earlier peer of the same mapping and address.
    serial: u64,
}

/// One peer among those of all mappings.
#[derive(Clone, Copy, Debug)]
struct PeerKey {
    mapping: MappingId,
    dial: SocketAddr,
    serial: u64,
}

#[derive(Debug)]
struct Mapping {
    id: MappingId,
    source: SocketAddr,
    /// By the address that is really sent to.
    peers: HashMap<SocketAddr, Peer, KeyedState>,
    last: Instant,
    armed: Armed,
}

pub(crate) struct Udp {
    mappings: Slab<Mapping>,
    by_source: HashMap<SocketAddr, usize, KeyedState>,
    hasher: KeyedState,
    timers: Timers<MappingId>,
    recent: Recency<MappingId>,
    recent_peers: Recency<PeerKey>,
    /// Of all mappings.
    peers: usize,
    generation: u32,
    serial: u64,
}

impl Udp {
    pub(crate) fn new(hasher: &KeyedState) -> Self {
        Self {
            mappings: Slab::new(),
            by_source: HashMap::with_hasher(hasher.clone()),
            hasher: hasher.clone(),
            timers: Timers::new(),
            recent: Recency::new(),
            recent_peers: Recency::new(),
            peers: 0,
            generation: 0,
            serial: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.mappings.len()
    }

    pub(crate) fn handle_packet(
        &mut self,
        sh: &mut Shared,
        now: Instant,
        packet: &Packet,
        bytes: &[u8],
    ) -> Result<Input, DropReason> {
        let datagram = Datagram::parse(packet, bytes)?;
        let segment = if packet.vnet.gso == Gso::UdpL4 { packet.vnet.gso_size } else { 0 };
        if segment > 0 && datagram.payload.len().div_ceil(usize::from(segment)) > MAX_SEGMENTS {
            return Err(DropReason::Segments);
        }
        let destination = datagram.destination;
        let known = self.by_source.get(&datagram.source).copied();
        let dial = sh.dial_address(destination);
        let has_peer = known.is_some_and(|slot| self.mappings[slot].peers.contains_key(&dial));
        if !has_peer {
            let permit = permitted(sh, now, &datagram, packet, bytes)?;
            self.add_peer(sh, now, (datagram.source, destination), dial, permit)?;
        }
        let slot = self.by_source[&datagram.source];
        let mapping = &mut self.mappings[slot];
        mapping.last = now;
        if let Some(peer) = mapping.peers.get_mut(&dial) {
            peer.usage.sent(now, datagram.payload.len());
        }
        let (fields, payload) = (packet.fields, datagram.payload);
        Ok(Input::Datagram { mapping: mapping.id, destination: dial, payload, segment, fields })
    }

    fn add_peer(
        &mut self,
        sh: &mut Shared,
        now: Instant,
        ends: (SocketAddr, SocketAddr),
        dial: SocketAddr,
        permit: Permit,
    ) -> Result<(), DropReason> {
        let (source, facing) = ends;
        // First, because a mapping goes with its last peer.
        if self.peers >= sh.config.limits.udp_peers {
            self.evict_peer(sh, now)?;
        }
        let known = self.by_source.get(&source).copied();
        let slot = known.map_or_else(|| self.add_mapping(sh, now, source, &permit), Ok)?;
        let mapping = &mut self.mappings[slot];
        let port = facing.port();
        let limits = &sh.config.limits;
        let idle = if port == 53 || port == 123 { limits.udp_query_idle } else { limits.udp_idle };
        sh.announce_use(now, Protocol::Udp, ends, &permit);
        self.serial += 1;
        let key = PeerKey { mapping: mapping.id, dial, serial: self.serial };
        let peer = Peer { facing, permit, usage: Usage::new(now), idle, serial: self.serial };
        mapping.peers.insert(dial, peer);
        self.timers.arm(&mut mapping.armed, now + idle, mapping.id);
        self.peers += 1;
        let mappings = &self.mappings;
        self.recent_peers.push(key, now, self.peers, |key| find_peer(mappings, key).is_some());
        Ok(())
    }

    /// Makes room: the pod's least recently used peer goes, and its mapping with it if it has no other.
    fn evict_peer(&mut self, sh: &mut Shared, now: Instant) -> Result<(), DropReason> {
        let mappings = &self.mappings;
        let key = self
            .recent_peers
            .pop(|key| find_peer(mappings, key).map(|peer| peer.usage.last))
            .ok_or(DropReason::MappingLimit)?;
        sh.counters.udp_evictions += 1;
        let evicted = |_: &Shared, peer: &Peer| peer.serial == key.serial;
        self.remove_peers_of(sh, now, key.mapping, CloseReason::Evicted, &evicted);
        Ok(())
    }

    fn add_mapping(
        &mut self,
        sh: &mut Shared,
        now: Instant,
        source: SocketAddr,
        permit: &Permit,
    ) -> Result<usize, DropReason> {
        if self.mappings.len() >= sh.config.limits.udp_mappings {
            self.evict(sh, now)?;
        }
        self.generation = self.generation.wrapping_add(1);
        let entry = self.mappings.vacant_entry();
        let slot = entry.key();
        let id = MappingId { slot: slot as u32, generation: self.generation };
        let peers = HashMap::with_hasher(self.hasher.clone());
        entry.insert(Mapping { id, source, peers, last: now, armed: Armed::default() });
        self.by_source.insert(source, slot);
        let mappings = &self.mappings;
        self.recent.push(id, now, mappings.len(), |id| find(mappings, id).is_some());
        sh.actions.push_back(Action::OpenMapping {
            mapping: id,
            v6: source.is_ipv6(),
            permit: permit.clone(),
        });
        Ok(slot)
    }

    /// Makes room: the least recently used mapping goes.
    fn evict(&mut self, sh: &mut Shared, now: Instant) -> Result<(), DropReason> {
        let mappings = &self.mappings;
        let id = self
            .recent
            .pop(|id| find(mappings, id).map(|mapping| mapping.last))
            .ok_or(DropReason::MappingLimit)?;
        sh.counters.drop(DropReason::MappingLimit);
        self.close(sh, now, id, CloseReason::Evicted);
        Ok(())
    }

    /// Under which permit `source` sends to `dial`, the address that is really sent to.
    pub(crate) fn permit(&self, source: SocketAddr, dial: SocketAddr) -> Option<&Permit> {
        let mapping = &self.mappings[*self.by_source.get(&source)?];
        mapping.peers.get(&dial).map(|peer| &peer.permit)
    }

    fn get(&self, id: MappingId) -> Option<&Mapping> {
        find(&self.mappings, id)
    }

    fn get_mut(&mut self, id: MappingId) -> Option<&mut Mapping> {
        self.mappings.get_mut(id.slot as usize).filter(|mapping| mapping.id == id)
    }

    /// Makes somebody a peer who sends first, where policy has opened the pod's ports and lets the pod send there.
    fn admit(&mut self, sh: &mut Shared, now: Instant, id: MappingId, from: SocketAddr) -> Option<()> {
        let source = self.get(id)?.source;
        if sh.config.policy.udp_filtering() != UdpFiltering::EndpointIndependent {
            return None;
        }
        let permit =
            settle(sh.decide(now, Protocol::Udp, from)).ok().filter(|permit| sh.is_direct(permit))?;
        // Of a full table the least recently used peer goes, as for one that the pod sends to. Where that is the mapping's
        // last, its socket is gone: no caller opens another.
        if self.peers >= sh.config.limits.udp_peers {
            self.evict_peer(sh, now).ok()?;
        }
        self.get(id)?;
        self.add_peer(sh, now, (source, from), from, permit).ok()
    }

    /// Headers for a datagram from outside, if the pod sent one there, or takes it from anybody.
    pub(crate) fn reply(
        &mut self,
        sh: &mut Shared,
        now: Instant,
        id: MappingId,
        from: SocketAddr,
        payload: &[u8],
    ) -> Option<Head> {
        if payload.len() > MAX_PAYLOAD {
            sh.counters.drop(DropReason::UnsolicitedReply);
            return None;
        }
        let is_peer = self.get(id)?.peers.contains_key(&from);
        if !is_peer && self.admit(sh, now, id, from).is_none() {
            sh.counters.drop(DropReason::UnsolicitedReply);
            return None;
        }
        let mapping = self.get_mut(id)?;
        let peer = mapping.peers.get_mut(&from)?;
        mapping.last = now;
        peer.usage.received(now, payload.len());
        // Trust may have been withdrawn since the question.
        if sh.is_trusted_resolver(peer.facing) {
            sh.observe_dns(now, peer.facing.ip(), payload);
        }
        Some(emit::udp(peer.facing, mapping.source, payload.len()))
    }

    /// Sending to `to` failed, or the outside answered with an error: the pod's socket is told, and the flow ends if no
    /// datagram of it gets there.
    pub(crate) fn failed(
        &mut self,
        sh: &mut Shared,
        now: Instant,
        id: MappingId,
        to: SocketAddr,
        (report, reporter): (Report, Option<IpAddr>),
    ) {
        let Some(mapping) = self.get_mut(id) else { return };
        let source = mapping.source;
        let Some(facing) = mapping.peers.get(&to).map(|peer| peer.facing) else { return };
        if let Some(message) = error_for(report)
            && sh.allow_error(now)
        {
            sh.counters.icmp_errors_sent += 1;
            // Who answers for himself does so by the address that the pod knows him by.
            let reporter = reporter.filter(|reporter| *reporter != to.ip());
            sh.send_control(icmp::error_for_datagram(message, reporter, source, facing));
        }
        let failure = match report {
            Report::Failed(failure) => failure,
            Report::TooBig { .. } => return sh.counters.drop(DropReason::TooBig),
            Report::HopLimit => return,
        };
        let Some(peer) = self.get_mut(id).and_then(|mapping| mapping.peers.remove(&to)) else { return };
        let empty = self.get(id).is_none_or(|mapping| mapping.peers.is_empty());
        self.peers -= 1;
        let ends = (source, peer.facing);
        sh.record_usage(now, Protocol::Udp, ends, &peer.permit, &peer.usage, failure.close_reason());
        if empty {
            self.close(sh, now, id, failure.close_reason());
        }
    }

    pub(crate) fn close(&mut self, sh: &mut Shared, now: Instant, id: MappingId, reason: CloseReason) {
        if self.get(id).is_none() {
            return;
        }
        let mut mapping = self.mappings.remove(id.slot as usize);
        self.timers.disarm(&mut mapping.armed, id);
        self.by_source.remove(&mapping.source);
        self.peers -= mapping.peers.len();
        for peer in mapping.peers.values() {
            let ends = (mapping.source, peer.facing);
            sh.record_usage(now, Protocol::Udp, ends, &peer.permit, &peer.usage, reason);
        }
        sh.actions.push_back(Action::CloseMapping { mapping: id });
    }

    pub(crate) fn close_all(&mut self, sh: &mut Shared, now: Instant) {
        let ids: Vec<_> = self.mappings.iter().map(|(_, mapping)| mapping.id).collect();
        for id in ids {
            self.close(sh, now, id, CloseReason::Detached);
        }
    }

    pub(crate) fn reevaluate(&mut self, sh: &mut Shared, now: Instant) {
        let refused = |sh: &Shared, peer: &Peer| !sh.still_carried(&peer.permit, Protocol::Udp, peer.facing);
        self.remove_peers(sh, now, CloseReason::PolicyChanged, refused);
    }

    /// Removes the peers that `gone` picks, and mappings left without one.
    fn remove_peers(
        &mut self,
        sh: &mut Shared,
        now: Instant,
        reason: CloseReason,
        gone: impl Fn(&Shared, &Peer) -> bool,
    ) {
        let ids: Vec<_> = self.mappings.iter().map(|(_, mapping)| mapping.id).collect();
        for id in ids {
            self.remove_peers_of(sh, now, id, reason, &gone);
        }
    }

    fn remove_peers_of(
        &mut self,
        sh: &mut Shared,
        now: Instant,
        id: MappingId,
        reason: CloseReason,
        gone: &impl Fn(&Shared, &Peer) -> bool,
    ) {
        let Some(mapping) = self.get_mut(id) else { return };
        let source = mapping.source;
        let removed: Vec<_> =
            mapping.peers.extract_if(|_, peer| gone(sh, peer)).map(|(_, peer)| peer).collect();
        let empty = mapping.peers.is_empty();
        self.peers -= removed.len();
        for peer in removed {
            sh.record_usage(now, Protocol::Udp, (source, peer.facing), &peer.permit, &peer.usage, reason);
        }
        if empty {
            self.close(sh, now, id, reason);
        }
    }

    /// What holds between calls.
    pub(crate) fn check(&self) -> Result<(), String> {
        let armed = self.mappings.iter().all(|(_, mapping)| self.timers.holds(mapping.armed, mapping.id));
        if !armed || self.timers.len() != self.mappings.len() || self.by_source.len() != self.mappings.len() {
            return Err(format!(
                "{} mappings, {} by source, {} timers",
                self.mappings.len(),
                self.by_source.len(),
                self.timers.len()
            ));
        }
        let peers: usize = self.mappings.iter().map(|(_, mapping)| mapping.peers.len()).sum();
        if peers != self.peers {
            return Err(format!("{peers} peers, counted as {}", self.peers));
        }
        // Evictions keep to what there once was at most.
        if !self.recent.is_bounded(self.mappings.capacity()) {
            return Err(format!("too many entries to evict {} mappings", self.mappings.len()));
        }
        Ok(())
    }

    pub(crate) fn poll_at(&self) -> Option<Instant> {
        self.timers.next()
    }

    pub(crate) fn handle_timeout(&mut self, sh: &mut Shared, now: Instant) {
        while let Some(id) = self.timers.pop_due(now) {
            if let Some(mapping) = self.get_mut(id) {
                mapping.armed.fired();
            }
            let idle = |_: &Shared, peer: &Peer| peer.usage.last + peer.idle <= now;
            self.remove_peers_of(sh, now, id, CloseReason::Idle, &idle);
            let Some(mapping) = self.mappings.get_mut(id.slot as usize).filter(|mapping| mapping.id == id)
            else {
                continue;
            };
            if let Some(at) = mapping.peers.values().map(|peer| peer.usage.last + peer.idle).min() {
                self.timers.arm(&mut mapping.armed, at, id);
            }
        }
    }
}

fn find(mappings: &Slab<Mapping>, id: MappingId) -> Option<&Mapping> {
    mappings.get(id.slot as usize).filter(|mapping| mapping.id == id)
}

fn find_peer(mappings: &Slab<Mapping>, key: PeerKey) -> Option<&Peer> {
    find(mappings, key.mapping)?.peers.get(&key.dial).filter(|peer| peer.serial == key.serial)
}

/// Asks policy about a new peer; a refusal is told to the pod and recorded.
fn permitted(
    sh: &mut Shared,
    now: Instant,
    datagram: &Datagram,
    packet: &Packet,
    bytes: &[u8],
) -> Result<Permit, DropReason> {
    match settle(sh.decide(now, Protocol::Udp, datagram.destination)) {
        Ok(permit) if sh.is_direct(&permit) => Ok(permit),
        Ok(permit) => {
            sh.send_error(now, Unreachable::Prohibited, packet, bytes);
            let ends = (datagram.source, datagram.destination);
            let reason = CloseReason::UpstreamUnsupported;
            sh.record_usage(now, Protocol::Udp, ends, &permit, &Usage::new(now), reason);
            Err(DropReason::Policy)
        }
        Err(refusal) => {
            sh.send_error(now, Unreachable::Prohibited, packet, bytes);
            sh.record_refusal(now, Protocol::Udp, datagram.source, datagram.destination, refusal);
            Err(DropReason::Policy)
        }
    }
}
