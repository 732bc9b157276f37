//! What the protocols of one stack share: configuration, leases, and what goes out.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smoltcp::time::Instant;
use tunproxy_policy::{Decision, DomainName, FlowQuery, Permit, Protocol, Refusal};

use super::common::Common;
use super::{Action, StackConfig, Target, may_answer};
use crate::counters::{Counters, DropReason};
use crate::dns::{self, Answer};
use crate::icmp::{self, Unreachable};
use crate::key::KeyedState;
use crate::record::{CloseReason, FlowBegin, FlowRecord, NameSource, Outcome};
use crate::view::Packet;

/// Control packets (errors, resets) that may wait for the TUN.
const MAX_CONTROL: usize = 1_024;

pub(crate) struct Shared {
    pub(crate) config: StackConfig,
    pub(crate) hasher: KeyedState,
    pub(crate) common: Arc<Common>,
    pub(crate) counters: Counters,
    pub(crate) actions: VecDeque<Action>,
    pub(crate) control: VecDeque<Vec<u8>>,
}

impl Shared {
    pub(crate) fn new(config: StackConfig, hasher: KeyedState, common: Arc<Common>) -> Self {
        Self {
            config,
            hasher,
            common,
            counters: Counters::default(),
            actions: VecDeque::new(),
            control: VecDeque::new(),
        }
    }

    pub(crate) fn count_out(&mut self, octets: usize) {
        self.counters.packets_out += 1;
        self.counters.bytes_out += (octets - crate::vnet::LEN) as u64;
    }

    /// Asks policy about a flow, with the names leased for its destination.
    pub(crate) fn decide(&self, now: Instant, protocol: Protocol, destination: SocketAddr) -> Decision {
        let names = self.names(now, destination.ip());
        self.config.policy.decide(&FlowQuery {
            protocol,
            destination: destination.ip(),
            port: destination.port(),
            names: &names,
        })
    }

    /// The names leased for an address.
    pub(crate) fn names(&self, now: Instant, address: IpAddr) -> Vec<DomainName> {
        let trusted = |resolver| is_trusted(&self.config, resolver);
        self.common.wide().leases.names(now, address, trusted)
    }

    /// Asks policy again about a flow that lives under `permit`: the name it has is the name it keeps.
    pub(crate) fn still_allowed(
        &self,
        permit: &Permit,
        protocol: Protocol,
        destination: SocketAddr,
    ) -> Result<Permit, Refusal> {
        let names = permit.name().cloned().map_or_else(Vec::new, |name| vec![name]);
        let query =
            FlowQuery { protocol, destination: destination.ip(), port: destination.port(), names: &names };
        settle(self.config.policy.decide(&query))
    }

    /// Whether a datagram flow that lives under `permit` goes on: another upstream cannot take it over, it begins anew.
    pub(crate) fn still_carried(&self, permit: &Permit, protocol: Protocol, destination: SocketAddr) -> bool {
        let now = self.still_allowed(permit, protocol, destination);
        now.is_ok_and(|now| self.is_direct(&now) && now.upstream() == permit.upstream())
    }

    /// Where a permitted flow is connected.
    pub(crate) fn target(&self, permit: &Permit, destination: SocketAddr, dscp: u8) -> Target {
        Target { destination, dial: self.dial_address(destination), name: permit.name().cloned(), dscp }
    }

    /// What a direct connection dials.
    pub(crate) fn dial_address(&self, destination: SocketAddr) -> SocketAddr {
        match self.config.dns_alias {
            Some(alias) if alias.virtual_address == destination.ip() && destination.port() == 53 => {
                alias.resolver
            }
            _ => destination,
        }
    }

    /// Whether answers of this resolver bind names.
    pub(crate) fn is_trusted_resolver(&self, destination: SocketAddr) -> bool {
        destination.port() == 53 && is_trusted(&self.config, destination.ip())
    }

    /// Whether the node itself carries what this permit allows, datagrams too.
    pub(crate) fn is_direct(&self, permit: &Permit) -> bool {
        permit.upstream().is_direct() || self.config.direct.contains(permit.upstream())
    }

    pub(crate) fn learn(&mut self, now: Instant, resolver: IpAddr, answer: &Answer) {
        self.counters.dns_answers += 1;
        self.common.wide().leases.learn(now, resolver, answer);
    }

    /// Learns from a trusted resolver's datagram.
    pub(crate) fn observe_dns(&mut self, now: Instant, resolver: IpAddr, message: &[u8]) {
        if let Some(answer) = dns::read_answer(message) {
            self.learn(now, resolver, &answer);
        }
    }

    /// Queues a packet that belongs to no flow. What finds no room is counted: the pod makes them faster than it reads.
    pub(crate) fn send_control(&mut self, packet: Vec<u8>) {
        if self.control.len() < MAX_CONTROL {
            self.control.push_back(packet);
        } else {
            self.counters.drop(DropReason::ErrorRate);
        }
    }

    /// Answers `packet` with an ICMP error, within the rate.
    pub(crate) fn send_error(&mut self, now: Instant, kind: Unreachable, packet: &Packet, bytes: &[u8]) {
        if may_answer(packet, bytes) && self.allow_error(now) {
            self.counters.icmp_errors_sent += 1;
            self.send_control(icmp::error(kind, packet, bytes));
        }
    }

    pub(crate) fn allow_error(&mut self, now: Instant) -> bool {
        let allowed = self.common.wide().errors.take(now);
        if !allowed {
            self.counters.drop(DropReason::ErrorRate);
        }
        allowed
    }

    pub(crate) fn allow_challenge(&mut self, now: Instant) -> bool {
        let allowed = self.common.wide().challenges.take(now);
        self.counters.challenge_acks += u64::from(allowed);
        allowed
    }

    /// Tells that a flow begins, if that is wanted.
    pub(crate) fn announce(&mut self, begin: impl FnOnce() -> FlowBegin) {
        if self.config.record_begin {
            self.actions.push_back(Action::Begin(Box::new(begin())));
        }
    }

    /// [`announce`](Self::announce) for a protocol without connections.
    pub(crate) fn announce_use(
        &mut self,
        now: Instant,
        protocol: Protocol,
        ends: (SocketAddr, SocketAddr),
        permit: &Permit,
    ) {
        let dialed = self.dialed(permit, ends.1);
        self.announce(|| FlowBegin {
            start: now,
            now,
            protocol,
            source: ends.0,
            destination: ends.1,
            name: permit.name().cloned(),
            name_source: permit.name().map(|_| NameSource::Dns),
            verdict: permit.verdict(),
            rule: permit.rule().clone(),
            upstream: permit.upstream().clone(),
            dialed,
            connect_micros: None,
        });
    }

    /// The address that the node itself sends to.
    fn dialed(&self, permit: &Permit, destination: SocketAddr) -> Option<SocketAddr> {
        self.is_direct(permit).then(|| self.dial_address(destination))
    }

    pub(crate) fn record(&mut self, record: FlowRecord) {
        self.actions.push_back(Action::Record(Box::new(record)));
    }

    /// Whether a flow that came to nothing is to be recorded; else it is counted.
    fn admit_refusal(&mut self, now: Instant, protocol: Protocol, destination: SocketAddr) -> bool {
        let admitted = self.common.wide().refusals.admit(now, protocol, destination);
        self.counters.refusals_unrecorded += u64::from(!admitted);
        admitted
    }

    /// Whether a flow that ended so is to be recorded. What fails for want of something may come once for each packet, as
    /// refusals do.
    pub(crate) fn admit_end(
        &mut self,
        now: Instant,
        protocol: Protocol,
        destination: SocketAddr,
        close: CloseReason,
    ) -> bool {
        let wanting = matches!(close, CloseReason::Limit | CloseReason::UpstreamUnsupported);
        !wanting || self.admit_refusal(now, protocol, destination)
    }

    /// Records a flow that policy refused at its start, within the rate.
    pub(crate) fn record_refusal(
        &mut self,
        now: Instant,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        refusal: Refusal,
    ) {
        if !self.admit_refusal(now, protocol, destination) {
            return;
        }
        let name_source = refusal.name.as_ref().map(|_| NameSource::Dns);
        self.record(FlowRecord {
            start: now,
            end: now,
            protocol,
            source,
            destination,
            name: refusal.name,
            name_source,
            outcome: Outcome::Denied(refusal.reason),
            rule: refusal.rule,
            upstream: None,
            dialed: None,
            bytes_sent: 0,
            bytes_received: 0,
            packets_sent: 1,
            packets_received: 0,
            connect_micros: None,
            close: CloseReason::Denied,
            detail: None,
        });
    }

    /// Records the end of a permitted flow of a protocol without connections.
    pub(crate) fn record_usage(
        &mut self,
        now: Instant,
        protocol: Protocol,
        ends: (SocketAddr, SocketAddr),
        permit: &Permit,
        usage: &Usage,
        close: CloseReason,
    ) {
        if !self.admit_end(now, protocol, ends.1, close) {
            return;
        }
        let dialed = self.dialed(permit, ends.1);
        self.record(FlowRecord {
            start: usage.start,
            end: now,
            protocol,
            source: ends.0,
            destination: ends.1,
            name: permit.name().cloned(),
            name_source: permit.name().map(|_| NameSource::Dns),
            outcome: Outcome::Allowed(permit.verdict()),
            rule: permit.rule().clone(),
            upstream: Some(permit.upstream().clone()),
            dialed,
            bytes_sent: usage.bytes_sent,
            bytes_received: usage.bytes_received,
            packets_sent: usage.packets_sent,
            packets_received: usage.packets_received,
            connect_micros: None,
            close,
            detail: None,
        });
    }
}

/// What passed on a flow of a protocol without connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) start: Instant,
    pub(crate) last: Instant,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) packets_sent: u64,
    pub(crate) packets_received: u64,
}

impl Usage {
    pub(crate) fn new(now: Instant) -> Self {
        Self { start: now, last: now, bytes_sent: 0, bytes_received: 0, packets_sent: 0, packets_received: 0 }
    }

    pub(crate) fn sent(&mut self, now: Instant, octets: usize) {
        self.last = now;
        self.packets_sent += 1;
        self.bytes_sent += octets as u64;
    }

    pub(crate) fn received(&mut self, now: Instant, octets: usize) {
        self.last = now;
        self.packets_received += 1;
        self.bytes_received += octets as u64;
    }
}

/// Takes the strictest reading of a decision: without octets that show a name there is nothing else to go by.
pub(crate) fn settle(decision: Decision) -> Result<Permit, Refusal> {
    match decision {
        Decision::Allow(permit) => Ok(permit),
        Decision::Deny(refusal) => Err(refusal),
        Decision::ByName { fallback, .. } => settle(*fallback),
    }
}

/// Whether the pod's `resolver` may bind names.
fn is_trusted(config: &StackConfig, resolver: IpAddr) -> bool {
    config.resolvers.contains(&resolver)
        || config.dns_alias.is_some_and(|alias| alias.virtual_address == resolver)
}

/// What is the pod's address without its port.
pub(crate) fn host(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 0)
}

/// A token bucket: `rate` a second, at most a second's worth at once.
#[derive(Debug)]
pub(crate) struct Budget {
    rate: u32,
    /// Millionths of a token.
    tokens: u64,
    filled: Option<Instant>,
}

impl Budget {
    pub(crate) fn new(rate: u32) -> Self {
        Self { rate, tokens: u64::from(rate) * 1_000_000, filled: None }
    }

    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.take_above(now, 0)
    }

    /// [`take`](Self::take) as long as more than half of the bucket is left.
    pub(crate) fn take_of_half(&mut self, now: Instant) -> bool {
        self.take_above(now, self.full() / 2)
    }

    fn take_above(&mut self, now: Instant, kept: u64) -> bool {
        // Threads share a bucket, and one may be a little behind: time does not go back, nor pass twice.
        let filled = self.filled.unwrap_or(now);
        let now = now.max(filled);
        let elapsed = (now - filled).total_micros();
        self.filled = Some(now);
        let filled = self.tokens.saturating_add(elapsed.saturating_mul(u64::from(self.rate)));
        self.tokens = filled.min(self.full());
        let allowed = self.tokens >= kept + 1_000_000;
        if allowed {
            self.tokens -= 1_000_000;
        }
        allowed
    }

    fn full(&self) -> u64 {
        u64::from(self.rate) * 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::time::Duration;

    #[test]
    fn a_budget_gives_its_rate_and_no_more() {
        let mut budget = Budget::new(10);
        let start = Instant::from_secs(0);
        assert_eq!((0..100).filter(|_| budget.take(start)).count(), 10);
        let later = start + Duration::from_millis(500);
        assert_eq!((0..100).filter(|_| budget.take(later)).count(), 5);
        // Clocks of two threads, a second apart.
        let ahead = later + Duration::from_secs(1);
        assert_eq!(
            (0..100).filter(|turn| budget.take(if turn % 2 == 0 { ahead } else { later })).count(),
            10
        );
    }
}
