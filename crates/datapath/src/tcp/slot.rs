//! One entry of the flow table: who, under which permit, in which stage.

use std::net::SocketAddr;

use smoltcp::time::{Duration, Instant};
use tunproxy_policy::{Decision, FlowQuery, Permit, Protocol, Refusal};

use super::flow::{Flow, State, Syn};
use super::seq::Seq;
use crate::dns::StreamTap;
use crate::key::{End, Ends, FlowId};
use crate::record::{CloseReason, FlowBegin, FlowRecord, NameSource, Outcome};
use crate::sniff::{self, Sniffed};
use crate::stack::shared::settle;
use crate::stack::{LiveFlow, Shared};
use crate::timer::{Armed, Moment};

/// How long a flow whose name is to be shown may stay silent before the strictest verdict holds.
const SNIFF_PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Slot {
    pub(super) id: FlowId,
    pub(super) ends: Ends,
    pub(super) meta: Meta,
    pub(super) body: Body,
    /// The flow is the one that `ends` lead to. Not so once its connection is over and only octets are left.
    pub(super) linked: bool,
    pub(super) dirty: bool,
    pub(super) uplink_queued: bool,
    /// See [`crate::stack::Target::dscp`]: the SYN's, and then that of the last octets.
    pub(super) dscp: u8,
    pub(super) armed: Armed,
}

pub(super) enum Body {
    /// In a box of its own: connections are many and SYNs held are few.
    Held(Box<Held>),
    Open(Box<Open>),
}

/// A SYN that waits for its upstream.
pub(super) struct Held {
    pub(super) syn: Syn,
    /// Set where the name decides: what holds if none is shown.
    pub(super) fallback: Option<Box<Decision>>,
    /// How far we had sent in the connection in TIME-WAIT that gave way to this one.
    pub(super) predecessor: Option<Seq>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upstream {
    Connected,
    /// The name that was shown goes elsewhere; nothing has passed yet.
    Redialing,
}

/// Octets are held back until they show a name.
pub(super) struct Sniffing {
    fallback: Box<Decision>,
    until: Instant,
}

pub(super) struct Open {
    pub(super) flow: Flow,
    pub(super) upstream: Upstream,
    pub(super) sniffing: Option<Sniffing>,
    pub(super) tap: Option<Box<StreamTap>>,
    /// The pod has not acknowledged our SYN.
    pub(super) awaits_ack: bool,
    /// The upstream was told that the pod is done sending.
    pub(super) shut: bool,
    /// The caller found no room to read into and waits to be called back.
    pub(super) starved: bool,
    pub(super) linger_until: Option<Moment>,
}

/// What the name, or its absence, came to.
pub(super) struct Settled {
    pub(super) decision: Result<Permit, Refusal>,
    pub(super) source: Option<NameSource>,
}

impl Slot {
    pub(super) fn new(id: FlowId, ends: Ends, meta: Meta, held: Held, dscp: u8) -> Self {
        let body = Body::Held(Box::new(held));
        let armed = Armed::default();
        Self { id, ends, meta, body, linked: true, dirty: false, uplink_queued: false, dscp, armed }
    }

    pub(super) fn open(&self) -> Option<&Open> {
        match &self.body {
            Body::Held(_) => None,
            Body::Open(open) => Some(open),
        }
    }

    pub(super) fn open_mut(&mut self) -> Option<&mut Open> {
        match &mut self.body {
            Body::Held(_) => None,
            Body::Open(open) => Some(open),
        }
    }

    /// What holds if the flow shows no name; `None`: its name is settled.
    pub(super) fn fallback_mut(&mut self) -> Option<&mut Box<Decision>> {
        match &mut self.body {
            Body::Held(held) => held.fallback.as_mut(),
            Body::Open(open) => open.sniffing.as_mut().map(|sniffing| &mut sniffing.fallback),
        }
    }

    /// See [`crate::Stack::live_flow`].
    pub(super) fn live(&self) -> LiveFlow<'_> {
        let permit = &self.meta.permit;
        let name_open = match &self.body {
            Body::Held(held) => held.fallback.is_some(),
            Body::Open(open) => open.sniffing.is_some(),
        };
        LiveFlow { permit, name_source: self.meta.name_source.filter(|_| permit.name().is_some()), name_open }
    }

    pub(super) fn set_fallback(&mut self, fallback: Box<Decision>) {
        if let Some(current) = self.fallback_mut() {
            *current = fallback;
        }
    }

    pub(super) fn poll_at(&self) -> Option<Instant> {
        let open = match &self.body {
            Body::Held(_) => return Some(self.meta.started + super::table::HOLD),
            Body::Open(open) => open,
        };
        let sniff = open.sniffing.as_ref().map(|sniffing| sniffing.until);
        let flow = if self.linked { open.flow.poll_at() } else { None };
        [sniff, open.linger_until.map(Moment::get), flow].into_iter().flatten().min()
    }
}

impl Open {
    pub(super) fn new(now: Instant, flow: Flow, fallback: Option<Box<Decision>>, tap: bool) -> Self {
        Self {
            flow,
            upstream: Upstream::Connected,
            sniffing: fallback.map(|fallback| Sniffing { fallback, until: now + SNIFF_PATIENCE }),
            tap: tap.then(Box::default),
            awaits_ack: true,
            shut: false,
            starved: false,
            linger_until: None,
        }
    }

    /// Octets of the pod may go to the upstream: it is there, and the name is settled.
    pub(super) fn may_send_up(&self) -> bool {
        self.sniffing.is_none() && self.upstream == Upstream::Connected
    }

    /// Both ends have closed, and the upstream has everything.
    pub(super) fn is_complete(&self) -> bool {
        self.shut && self.flow.sender.is_fin_sent()
    }

    /// Octets that may be read from the upstream. While the name is open nothing passes, in either direction.
    pub(super) fn room(&self, ceiling: usize, exhausted: bool) -> usize {
        if !self.may_send_up() || self.flow.state() == State::SynReceived {
            return 0;
        }
        if exhausted && !self.flow.sender.is_idle() {
            return 0;
        }
        let room = self.flow.sender.room(ceiling);
        if exhausted { room.min(usize::from(self.flow.sender.mss())) } else { room }
    }

    /// Looks at the octets that wait. `None`: not yet decided.
    pub(super) fn sniff(&mut self, sh: &Shared, now: Instant, remote: SocketAddr) -> Option<Settled> {
        let sniffing = self.sniffing.as_ref()?;
        let receiver = &self.flow.receiver;
        let mut first = Vec::new();
        for chunk in receiver.uplink().chunks() {
            let take = chunk.len().min(sniff::LIMIT - first.len());
            first.extend_from_slice(&chunk[..take]);
        }
        let fallback = || Settled { decision: settle((*sniffing.fallback).clone()), source: None };
        match sniff::sniff(&first) {
            Sniffed::More if receiver.is_closed() => Some(fallback()),
            Sniffed::More => None,
            Sniffed::Nothing => Some(fallback()),
            Sniffed::Name(name, source) => {
                if !sh.names(now, remote.ip()).contains(&name) {
                    return Some(fallback());
                }
                let query = FlowQuery {
                    protocol: Protocol::Tcp,
                    destination: remote.ip(),
                    port: remote.port(),
                    names: std::slice::from_ref(&name),
                };
                Some(Settled { decision: settle(sh.config.policy.decide(&query)), source: Some(source) })
            }
        }
    }

    pub(super) fn sniff_timeout(&mut self, now: Instant) -> Option<Settled> {
        let sniffing = self.sniffing.as_ref().filter(|sniffing| sniffing.until <= now)?;
        Some(Settled { decision: settle((*sniffing.fallback).clone()), source: None })
    }
}

/// Why a flow did not get what it asked for.
enum Trouble {
    Refused(Refusal),
    /// The upstream's words.
    Failed(Box<str>),
}

/// What the flow's record will say.
pub(super) struct Meta {
    pub(super) started: Instant,
    pub(super) permit: Permit,
    trouble: Option<Box<Trouble>>,
    pub(super) name_source: Option<NameSource>,
    pub(super) dialed: Option<End>,
    /// More than an hour does not occur: a SYN is held for seconds.
    pub(super) connect_micros: Option<u32>,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) packets_sent: u64,
    pub(super) packets_received: u64,
}

impl Meta {
    pub(super) fn new(now: Instant, permit: Permit) -> Self {
        Self {
            started: now,
            name_source: permit.name().map(|_| NameSource::Dns),
            permit,
            trouble: None,
            dialed: None,
            connect_micros: None,
            bytes_sent: 0,
            bytes_received: 0,
            packets_sent: 1,
            packets_received: 0,
        }
    }

    pub(super) fn connected(&mut self, now: Instant) {
        self.connect_micros = Some((now - self.started).total_micros().try_into().unwrap_or(u32::MAX));
    }

    pub(super) fn refused(&mut self, refusal: Refusal) {
        self.trouble = Some(Box::new(Trouble::Refused(refusal)));
    }

    pub(super) fn failed(&mut self, detail: Option<Box<str>>) {
        self.trouble = detail.map(|detail| Box::new(Trouble::Failed(detail)));
    }

    pub(super) fn begin(&self, now: Instant, ends: Ends) -> FlowBegin {
        FlowBegin {
            start: self.started,
            now,
            protocol: Protocol::Tcp,
            source: ends.pod(),
            destination: ends.remote(),
            name: self.permit.name().cloned(),
            name_source: self.name_source.filter(|_| self.permit.name().is_some()),
            verdict: self.permit.verdict(),
            rule: self.permit.rule().clone(),
            upstream: self.permit.upstream().clone(),
            dialed: self.dialed.map(SocketAddr::from),
            connect_micros: self.connect_micros.map(u64::from),
        }
    }

    pub(super) fn into_record(self, now: Instant, ends: Ends, close: CloseReason) -> FlowRecord {
        let (refusal, detail) = match self.trouble.map(|trouble| *trouble) {
            Some(Trouble::Refused(refusal)) => (Some(refusal), None),
            Some(Trouble::Failed(detail)) => (None, Some(detail)),
            None => (None, None),
        };
        let outcome = match &refusal {
            Some(refusal) => Outcome::Denied(refusal.reason),
            None => Outcome::Allowed(self.permit.verdict()),
        };
        let rule = refusal.as_ref().map_or_else(|| self.permit.rule(), |refusal| &refusal.rule).clone();
        let shown = refusal.and_then(|refusal| refusal.name);
        let name = shown.or_else(|| self.permit.name().cloned());
        FlowRecord {
            start: self.started,
            end: now,
            protocol: Protocol::Tcp,
            source: ends.pod(),
            destination: ends.remote(),
            name_source: self.name_source.filter(|_| name.is_some()),
            name,
            outcome,
            rule,
            upstream: Some(self.permit.upstream().clone()),
            dialed: self.dialed.map(SocketAddr::from),
            bytes_sent: self.bytes_sent,
            bytes_received: self.bytes_received,
            packets_sent: self.packets_sent,
            packets_received: self.packets_received,
            connect_micros: self.connect_micros.map(u64::from),
            close,
            detail,
        }
    }
}
