//! One pod's stack: from packets of its TUN to actions on sockets and back.

mod common;
mod inspect;
mod refusals;
pub(crate) mod shared;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use smoltcp::time::Instant;
use tunproxy_policy::{DomainName, Permit, UpstreamRef, WorkloadPolicy};

use crate::buffer::{PacketBuf, Pool};
use crate::counters::{Counters, DropReason};
use crate::echo::{Echo, EchoId};
use crate::fragment::Reassembly;
use crate::icmp::{self, Unreachable};
use crate::key::{FlowId, KeyedState};
use crate::limits::Limits;
use crate::record::{CloseReason, FlowBegin, FlowRecord};
use crate::shard::Shard;
use crate::tcp::table::Tcp;
use crate::too_big::TooBig;
use crate::udp::{MappingId, Udp};
use crate::view::{self, IpFields, Packet, Transport};
use crate::vnet;

pub(crate) use common::{Common, Tally};
pub use inspect::LiveFlow;
pub(crate) use shared::Shared;

/// What every call needs: the time, and the buffers of the worker that calls.
pub struct Cx<'a> {
    pub now: Instant,
    pub pool: &'a mut Pool,
}

#[derive(Clone, Debug)]
pub struct StackConfig {
    /// The pod's own addresses: packets from others are dropped. Empty: any source passes (a TUN that routes for others).
    pub addresses: Vec<IpAddr>,
    /// The broadcast addresses of the pod's own networks: no host has one (RFC 1122 3.2.1.3).
    pub broadcasts: Vec<IpAddr>,
    /// The TUN's MTU, octets.
    pub mtu: u16,
    /// The kernel completes checksums and cuts super-segments.
    pub offload: bool,
    pub limits: Limits,
    /// Resolvers whose answers bind names to flows.
    pub resolvers: Arc<[IpAddr]>,
    pub dns_alias: Option<DnsAlias>,
    pub policy: Arc<WorkloadPolicy>,
    /// Upstreams that the node itself carries, beside the one named `direct`.
    pub direct: Arc<HashSet<UpstreamRef>>,
    /// Tell of flows when they begin too ([`Action::Begin`]).
    pub record_begin: bool,
    /// Keys the flow tables and the initial sequence numbers; from the system's random source.
    pub seed: [u8; 16],
}

/// An address that stands for a resolver which the pod could not reach itself (one on the node's loopback, say).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsAlias {
    pub virtual_address: IpAddr,
    pub resolver: SocketAddr,
}

/// Where a flow is to be connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What the pod asked for.
    pub destination: SocketAddr,
    /// What a direct connection dials: the destination, or the resolver behind an alias.
    pub dial: SocketAddr,
    /// The name for upstreams that dial names.
    pub name: Option<DomainName>,
    /// The DSCP of the pod's packets, in its place in the header's octet. Their ECN is not passed on: that of a connection is
    /// between its own two ends.
    pub dscp: u8,
}

/// Why an upstream connect failed. The pod is told in the same terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialFailure {
    Refused,
    NetworkUnreachable,
    HostUnreachable,
    TimedOut,
    /// The upstream itself misbehaved or refused to carry the flow.
    Failed,
    Unsupported,
    /// The pod's share of the node's sockets is spent.
    Limit,
}

impl DialFailure {
    pub(crate) fn close_reason(self) -> CloseReason {
        match self {
            Self::Refused => CloseReason::Refused,
            Self::NetworkUnreachable => CloseReason::NetworkUnreachable,
            Self::HostUnreachable => CloseReason::HostUnreachable,
            Self::TimedOut => CloseReason::TimedOut,
            Self::Failed => CloseReason::UpstreamFailed,
            Self::Unsupported => CloseReason::UpstreamUnsupported,
            Self::Limit => CloseReason::Limit,
        }
    }
}

/// A failed connect: what the pod is told, and what only the record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamFailure {
    pub kind: DialFailure,
    /// The upstream's own words, where it had any.
    pub detail: Option<Box<str>>,
}

impl From<DialFailure> for UpstreamFailure {
    fn from(kind: DialFailure) -> Self {
        Self { kind, detail: None }
    }
}

/// What the caller is to do with sockets.
#[derive(Debug)]
pub enum Action {
    /// Connect a TCP flow; answer with [`Stack::upstream_connected`] or [`Stack::upstream_failed`].
    Connect {
        flow: FlowId,
        permit: Permit,
        target: Target,
    },
    /// Close the sending direction: the pod has sent its FIN and everything before it was written.
    Shutdown {
        flow: FlowId,
    },
    /// Forget the flow's socket, or its pending connect. `abort`: with a reset; else its sending direction ends here if no
    /// [`Action::Shutdown`] came before.
    Close {
        flow: FlowId,
        abort: bool,
    },
    /// Open a UDP socket for a mapping; datagrams for it follow.
    OpenMapping {
        mapping: MappingId,
        v6: bool,
        permit: Permit,
    },
    CloseMapping {
        mapping: MappingId,
    },
    /// Open an ICMP socket for echo requests to `destination`.
    OpenEcho {
        echo: EchoId,
        destination: IpAddr,
        permit: Permit,
    },
    CloseEcho {
        echo: EchoId,
    },
    Begin(Box<FlowBegin>),
    Record(Box<FlowRecord>),
}

/// What a packet asks of the caller beyond [`Action`]s; ranges index the packet's buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Done,
    /// The packet is for the pod's shard of this number: hand it over, to [`Stack::handle_handover`].
    Elsewhere {
        shard: usize,
    },
    /// Send the payload from the mapping's socket; in datagrams of `segment` octets where that is not zero.
    Datagram {
        mapping: MappingId,
        destination: SocketAddr,
        payload: Range<usize>,
        segment: u16,
        fields: IpFields,
    },
    /// Send an echo request.
    Echo {
        echo: EchoId,
        destination: IpAddr,
        sequence: u16,
        payload: Range<usize>,
        fields: IpFields,
    },
}

/// What the outside answered to a datagram or an echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// It does not get there; its flow ends.
    Failed(DialFailure),
    /// It is too large for the path, and asks not to be cut. `mtu`: the largest packet that passes, octets.
    TooBig { mtu: u32 },
    /// It was under way for too many hops.
    HopLimit,
}

impl From<DialFailure> for Report {
    fn from(failure: DialFailure) -> Self {
        Self::Failed(failure)
    }
}

/// A packet for the TUN in two parts: virtio, IP and transport headers, and the payload.
#[derive(Debug)]
pub struct Transmit<'a> {
    pub head: &'a [u8],
    pub payload: &'a [u8],
}

/// One pod's stack, or a shard of it (see [`Stack::shards`]).
pub struct Stack {
    shard: Shard,
    pub(crate) shared: Shared,
    pub(crate) tcp: Tcp,
    udp: Udp,
    echo: Echo,
    reassembly: Reassembly,
    /// The control packet that was handed out last; it stays until the next call.
    current: Vec<u8>,
}

impl Stack {
    pub fn new(config: StackConfig) -> Self {
        let common = Arc::new(Common::new(&KeyedState::new(config.seed), &config.limits));
        Self::shard(config, Shard::ONLY, &common)
    }

    /// The stack of one pod in `count` shards, each for a thread of its own. TCP flows are spread over them; everything
    /// else is the first one's. Names and limits are the pod's.
    pub fn shards(config: &StackConfig, count: usize) -> Vec<Self> {
        let common = Arc::new(Common::new(&KeyedState::new(config.seed), &config.limits));
        let shard = |index| Self::shard(config.clone(), Shard { index, count }, &common);
        (0..count).map(shard).collect()
    }

    fn shard(config: StackConfig, shard: Shard, common: &Arc<Common>) -> Self {
        let hasher = KeyedState::new(config.seed);
        Self {
            shard,
            tcp: Tcp::new(&hasher, &config.limits, common, shard.count),
            udp: Udp::new(&hasher),
            echo: Echo::new(&hasher),
            reassembly: Reassembly::default(),
            shared: Shared::new(config, hasher, common.clone()),
            current: Vec::new(),
        }
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// A socket had no room for so many datagrams or echo requests of the pod: they are lost, as on any link.
    pub fn send_failed(&mut self, packets: usize) {
        self.shared.counters.drop_many(DropReason::SendFailed, packets);
    }

    /// A packet for another shard ([`Input::Elsewhere`]) could not be handed over: it is lost, as in a full queue.
    pub fn handover_failed(&mut self) {
        self.shared.counters.drop(DropReason::Handover);
    }

    /// The pod's device did not take so many packets: they are lost, as on any link.
    pub fn write_failed(&mut self, packets: usize) {
        self.shared.counters.drop_many(DropReason::TunWrite, packets);
    }

    /// TCP flows (pending ones included), UDP mappings and ICMP echo flows.
    pub fn flow_counts(&self) -> (usize, usize, usize) {
        (self.tcp.len(), self.udp.len(), self.echo.len())
    }

    // --- the pod's side ---

    /// Takes a packet the pod sent. The buffer may be exchanged for another: large payloads are kept, not copied.
    pub fn handle_packet(&mut self, cx: &mut Cx<'_>, buffer: &mut PacketBuf) -> Input {
        let counters = &mut self.shared.counters;
        counters.packets_in += 1;
        counters.bytes_in += buffer.len.saturating_sub(vnet::LEN) as u64;
        self.handle_handover(cx, buffer)
    }

    /// Takes a packet that another shard was given; that one has counted it.
    pub fn handle_handover(&mut self, cx: &mut Cx<'_>, buffer: &mut PacketBuf) -> Input {
        match self.try_packet(cx, buffer) {
            Ok(input) => input,
            Err(reason) => {
                self.shared.counters.drop(reason);
                Input::Done
            }
        }
    }

    fn try_packet(&mut self, cx: &mut Cx<'_>, buffer: &mut PacketBuf) -> Result<Input, DropReason> {
        let packet = match Packet::parse(buffer.bytes()) {
            Ok(packet) => packet,
            // Only one shard has all of a datagram's.
            Err(DropReason::Fragment) if self.shard.index > 0 => return Ok(Input::Elsewhere { shard: 0 }),
            Err(DropReason::Fragment) => {
                let accepted = self.reassembly.accept(cx.now, &buffer.bytes()[vnet::LEN..]);
                self.count_lost_fragments();
                let Some(whole) = accepted? else {
                    return Ok(Input::Done);
                };
                buffer.fill(&whole);
                let mut packet = Packet::parse(buffer.bytes())?;
                // What its sender has cut may be cut again.
                packet.fields.dont_fragment = false;
                packet
            }
            Err(reason) => return Err(reason),
        };
        self.check_addresses(&packet)?;
        if self.shard.count > 1 {
            let shard = self.shard.owner(&packet, buffer.bytes());
            if shard != self.shard.index {
                return Ok(Input::Elsewhere { shard });
            }
        }
        self.dispatch(cx, &packet, buffer)
    }

    fn dispatch(
        &mut self,
        cx: &mut Cx<'_>,
        packet: &Packet,
        buffer: &mut PacketBuf,
    ) -> Result<Input, DropReason> {
        match packet.protocol {
            Transport::Tcp => {
                self.tcp.handle_packet(&mut self.shared, cx, packet, buffer).map(|()| Input::Done)
            }
            Transport::Udp => self.udp.handle_packet(&mut self.shared, cx.now, packet, buffer.bytes()),
            Transport::IcmpV4 | Transport::IcmpV6
                if TooBig::parse(packet, buffer.bytes())
                    .is_some_and(|error| self.tcp.packet_too_big(cx.now, &error)) =>
            {
                Ok(Input::Done)
            }
            Transport::IcmpV4 | Transport::IcmpV6 => {
                self.echo.handle_packet(&mut self.shared, cx.now, packet, buffer.bytes())
            }
            Transport::Other(_) => {
                self.shared.send_error(cx.now, Unreachable::Protocol, packet, buffer.bytes());
                Err(DropReason::UnknownProtocol)
            }
        }
    }

    fn check_addresses(&self, packet: &Packet) -> Result<(), DropReason> {
        let StackConfig { addresses: own, broadcasts, .. } = &self.shared.config;
        if !own.is_empty() && !own.contains(&packet.source) {
            return Err(DropReason::ForeignSource);
        }
        let is_unicast = |address| view::is_unicast(address) && !broadcasts.contains(&address);
        if !is_unicast(packet.destination) || !is_unicast(packet.source) {
            return Err(DropReason::Multicast);
        }
        if packet.source == packet.destination || own.contains(&packet.destination) {
            return Err(DropReason::Land);
        }
        Ok(())
    }

    /// The next packet for the TUN.
    pub fn poll_transmit(&mut self, cx: &mut Cx<'_>) -> Option<Transmit<'_>> {
        if let Some(packet) = self.shared.control.pop_front() {
            self.current = packet;
            self.shared.count_out(self.current.len());
            return Some(Transmit { head: &self.current, payload: &[] });
        }
        self.tcp.poll_transmit(&mut self.shared, cx)
    }

    // --- the caller's side ---

    pub fn poll_action(&mut self) -> Option<Action> {
        self.shared.actions.pop_front()
    }

    /// The next flow that has octets for its upstream.
    pub fn poll_uplink(&mut self) -> Option<FlowId> {
        self.tcp.poll_uplink()
    }

    /// A flow whose [`Stack::downlink_room`] was nothing and is something now.
    pub fn poll_resumed(&mut self) -> Option<FlowId> {
        self.tcp.poll_resumed()
    }

    /// The octets that wait for the flow's upstream.
    pub fn uplink(&self, flow: FlowId) -> impl Iterator<Item = &[u8]> {
        self.tcp.uplink(flow)
    }

    /// What [`Target::dscp`] is for the octets of [`Stack::uplink`]: programs may change it while they are connected.
    pub fn dscp(&self, flow: FlowId) -> u8 {
        self.tcp.dscp(flow)
    }

    /// `octets` of [`Stack::uplink`] were written.
    pub fn uplink_sent(&mut self, cx: &mut Cx<'_>, flow: FlowId, octets: usize) {
        self.tcp.uplink_sent(&mut self.shared, cx, flow, octets);
    }

    pub fn upstream_connected(&mut self, cx: &mut Cx<'_>, flow: FlowId, dialed: Option<SocketAddr>) {
        self.tcp.upstream_connected(&mut self.shared, cx, flow, dialed);
    }

    pub fn upstream_failed(&mut self, cx: &mut Cx<'_>, flow: FlowId, failure: impl Into<UpstreamFailure>) {
        self.tcp.upstream_failed(&mut self.shared, cx, flow, failure.into());
    }

    /// How many octets may be read from the flow's upstream now. Where it is 0, the flow comes back from
    /// [`Stack::poll_resumed`].
    pub fn downlink_room(&mut self, cx: &Cx<'_>, flow: FlowId) -> usize {
        self.tcp.downlink_room(cx, flow)
    }

    /// The first `len` octets of the buffer came from the flow's upstream.
    pub fn downlink_data(&mut self, cx: &mut Cx<'_>, flow: FlowId, buffer: &mut PacketBuf, len: usize) {
        self.tcp.downlink_data(&mut self.shared, cx, flow, buffer, len);
    }

    /// The upstream closed its sending direction.
    pub fn downlink_eof(&mut self, cx: &mut Cx<'_>, flow: FlowId) {
        self.tcp.downlink_eof(&mut self.shared, cx, flow);
    }

    /// The upstream reset the connection, or writing to it failed.
    pub fn upstream_reset(&mut self, cx: &mut Cx<'_>, flow: FlowId) {
        self.tcp.upstream_reset(&mut self.shared, cx, flow);
    }

    /// A datagram for a mapping. Returns its headers, or `None` if nothing of the pod asked for it.
    pub fn udp_reply(
        &mut self,
        now: Instant,
        mapping: MappingId,
        from: SocketAddr,
        payload: &[u8],
    ) -> Option<&[u8]> {
        let mut head = self.udp.reply(&mut self.shared, now, mapping, from, payload)?;
        if !self.shared.config.offload {
            head.complete(payload);
        }
        self.current.clear();
        self.current.extend_from_slice(head.bytes());
        self.shared.count_out(self.current.len() + payload.len());
        Some(&self.current)
    }

    /// The outside answered a datagram of the mapping to `to` with an error, or it could not be sent. `reporter`: the router
    /// that said so; the pod sees it as the error's sender.
    pub fn udp_failed(
        &mut self,
        now: Instant,
        mapping: MappingId,
        to: SocketAddr,
        report: impl Into<Report>,
        reporter: Option<IpAddr>,
    ) {
        self.udp.failed(&mut self.shared, now, mapping, to, (report.into(), reporter));
    }

    /// The socket of a mapping could not be had.
    pub fn mapping_failed(&mut self, now: Instant, mapping: MappingId) {
        self.shared.counters.drop(DropReason::NoSocket);
        self.udp.close(&mut self.shared, now, mapping, CloseReason::Limit);
    }

    /// `hop_limit`: what was left of it when the reply came; `None`: not known.
    pub fn echo_reply(
        &mut self,
        now: Instant,
        echo: EchoId,
        sequence: u16,
        hop_limit: Option<u8>,
        payload: &[u8],
    ) {
        self.echo.reply(&mut self.shared, now, echo, sequence, hop_limit, payload);
    }

    /// The socket of an echo flow could not be had, sending on it failed, or the outside answered with an error: to the
    /// request of this `sequence`, or to the last one. `reporter`: as in [`Stack::udp_failed`].
    pub fn echo_failed(
        &mut self,
        now: Instant,
        echo: EchoId,
        sequence: Option<u16>,
        report: impl Into<Report>,
        reporter: Option<IpAddr>,
    ) {
        self.echo.failed(&mut self.shared, now, echo, sequence, (report.into(), reporter));
    }

    /// From now on, these resolvers' answers bind names; those of others do no more.
    pub fn set_resolvers(&mut self, resolvers: Arc<[IpAddr]>) {
        self.shared.config.resolvers = resolvers;
    }

    /// Other upstreams that the node itself carries (see [`StackConfig::direct`]) from now on; takes effect on live flows with
    /// [`Stack::set_policy`].
    pub fn set_direct(&mut self, upstreams: Arc<HashSet<UpstreamRef>>) {
        self.shared.config.direct = upstreams;
    }

    /// Puts another policy in force: what it no longer allows ends now.
    pub fn set_policy(&mut self, cx: &mut Cx<'_>, policy: Arc<WorkloadPolicy>) {
        self.begin_policy(cx, policy);
        while self.judge(cx, usize::MAX / 2) {}
    }

    /// Puts another policy in force for all that begins, and for datagrams. TCP flows are judged by [`Stack::judge`]: there
    /// may be more of them than can be reset before other pods have their turn.
    pub fn begin_policy(&mut self, cx: &mut Cx<'_>, policy: Arc<WorkloadPolicy>) {
        self.shared.config.policy = policy;
        self.tcp.forget_judgements();
        self.udp.reevaluate(&mut self.shared, cx.now);
        self.echo.reevaluate(&mut self.shared, cx.now);
    }

    /// Judges up to `count` more TCP flows by the policy in force: what it no longer allows ends now. Returns whether there
    /// are others.
    pub fn judge(&mut self, cx: &mut Cx<'_>, count: usize) -> bool {
        self.tcp.reevaluate(&mut self.shared, cx, count)
    }

    /// Ends everything: the pod is gone or the agent stops.
    pub fn close(&mut self, cx: &mut Cx<'_>) {
        self.tcp.close_all(&mut self.shared, cx);
        self.udp.close_all(&mut self.shared, cx.now);
        self.echo.close_all(&mut self.shared, cx.now);
    }

    /// What must hold between calls, for tests and fuzz targets: sequence numbers in order, each flow with a deadline,
    /// counts and buffers as the flows have them. `pool` serves no other stack. Costs a walk over everything.
    pub fn check_invariants(&self, pool: &Pool) -> Result<(), String> {
        let held = self.tcp.check()?;
        self.udp.check()?;
        self.echo.check()?;
        if held != pool.held() {
            return Err(format!("flows hold {held} octets of buffers, the pool counts {}", pool.held()));
        }
        Ok(())
    }

    // --- time ---

    /// When [`Stack::handle_timeout`] wants to be called.
    pub fn poll_at(&self) -> Option<Instant> {
        let times = [self.tcp.poll_at(), self.udp.poll_at(), self.echo.poll_at(), self.reassembly.poll_at()];
        times.into_iter().flatten().min()
    }

    pub fn handle_timeout(&mut self, cx: &mut Cx<'_>) {
        self.tcp.handle_timeout(&mut self.shared, cx);
        self.udp.handle_timeout(&mut self.shared, cx.now);
        self.echo.handle_timeout(&mut self.shared, cx.now);
        self.reassembly.expire(cx.now);
        self.count_lost_fragments();
    }

    fn count_lost_fragments(&mut self) {
        self.shared.counters.drop_many(DropReason::Fragment, self.reassembly.take_lost());
    }
}

/// The error for what the outside answered; `None`: the pod is told nothing.
pub(crate) fn error_for(report: Report) -> Option<icmp::Message> {
    match report {
        Report::Failed(failure) => unreachable_for(failure).map(icmp::Message::Unreachable),
        Report::TooBig { mtu } => Some(icmp::Message::TooBig { mtu }),
        Report::HopLimit => Some(icmp::Message::HopLimit),
    }
}

/// The error for a refused or failed packet.
pub(crate) fn unreachable_for(failure: DialFailure) -> Option<Unreachable> {
    match failure {
        DialFailure::Refused => Some(Unreachable::Port),
        DialFailure::NetworkUnreachable => Some(Unreachable::Network),
        DialFailure::HostUnreachable => Some(Unreachable::Host),
        DialFailure::TimedOut => None,
        DialFailure::Failed | DialFailure::Unsupported | DialFailure::Limit => Some(Unreachable::Prohibited),
    }
}

pub(crate) use icmp::may_answer;
