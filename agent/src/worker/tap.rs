//! The captures that watch one pod in one worker. None costs a pod whose packets nobody asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use tunproxy_datapath::{Counters, DropReason, FlowRecord, Instant, Stack};
use tunproxy_policy::Protocol;

use crate::pcap::{Comment, Direction, Ends, Filter, FlowKey, Inlet, Packet};

/// Flows that a capture remembers to have told of; when there are more it begins anew, and tells of some twice.
const TOLD: usize = 8_192;
/// Ends of flows that wait for the packet that tells the pod.
const ENDED: usize = 1_024;

/// What a worker needs to capture a pod's packets.
#[derive(Clone, Debug)]
pub struct Probe {
    pub inlet: Inlet,
    pub filter: Arc<Filter>,
    /// Octets that are kept of a packet.
    pub snaplen: usize,
}

#[derive(Debug, Default)]
pub(super) struct Taps(Vec<Tap>);

#[derive(Debug)]
struct Tap {
    probe: Probe,
    /// Flows whose decision stands on a packet already, and whether it was open then.
    told: HashMap<FlowKey, bool>,
    /// Why flows ended, for the reset or error that is on its way.
    ended: HashMap<FlowKey, String>,
}

/// A packet that some capture keeps.
pub(super) struct Held {
    time: SystemTime,
    direction: Direction,
    octets: Arc<[u8]>,
    length: usize,
    ends: Option<Ends>,
}

impl Taps {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, probe: Probe) {
        self.0.push(Tap { probe, told: HashMap::new(), ended: HashMap::new() });
    }

    /// Copies a packet that a capture keeps; its two parts are one after the other.
    pub(super) fn hold(&self, direction: Direction, parts: [&[u8]; 2]) -> Option<Held> {
        // A packet that is written has its headers in the first part; one that was read has everything there.
        let ends = Ends::parse(parts[0]);
        let wanting = self.0.iter().filter(|tap| tap.keeps(ends.as_ref()));
        let kept = wanting.map(|tap| tap.probe.snaplen).max()?;
        let length = parts[0].len() + parts[1].len();
        let mut octets = Vec::with_capacity(length.min(kept));
        for part in parts {
            octets.extend_from_slice(&part[..part.len().min(kept - octets.len())]);
        }
        Some(Held { time: SystemTime::now(), direction, octets: octets.into(), length, ends })
    }

    /// Hands a packet over when the stack has dealt with it. `before`: the pod's counters as they were before that.
    pub(super) fn give(&mut self, held: &Held, stack: &Stack, now: Instant, before: Option<&Counters>) {
        let dropped = before.and_then(|before| newly_dropped(before, stack.counters()));
        self.0.retain_mut(|tap| !tap.keeps(held.ends.as_ref()) || tap.give(held, stack, now, dropped));
    }

    /// A flow has ended; the pod will be told if it did not get what it asked for.
    pub(super) fn ended(&mut self, record: &FlowRecord) {
        let key = FlowKey { protocol: record.protocol, pod: record.source, remote: record.destination };
        for tap in &mut self.0 {
            tap.told.remove(&key);
            if !crate::flowlog::is_failure(record) {
                continue;
            }
            if tap.ended.len() >= ENDED {
                tap.ended.clear();
            }
            tap.ended.extend(Comment::of_end(record).into_text().map(|text| (key, text)));
        }
    }
}

impl Tap {
    fn keeps(&self, ends: Option<&Ends>) -> bool {
        match ends {
            Some(ends) => self.probe.filter.accepts(ends),
            None => self.probe.filter.is_everything(),
        }
    }

    /// `false`: the capture is over.
    fn give(&mut self, held: &Held, stack: &Stack, now: Instant, dropped: Option<DropReason>) -> bool {
        let comment = self.comment(held, stack, now, dropped);
        self.probe.inlet.offer(Packet {
            time: held.time,
            direction: held.direction,
            octets: held.octets.clone(),
            length: held.length as u32,
            comment,
        })
    }

    fn comment(
        &mut self,
        held: &Held,
        stack: &Stack,
        now: Instant,
        dropped: Option<DropReason>,
    ) -> Option<String> {
        let key = held.ends.as_ref().and_then(|ends| ends.flow(held.direction));
        let opens = held.ends.as_ref().is_some_and(|ends| ends.opens);
        let mut comment = match (key, held.direction) {
            (Some(key), Direction::Outbound) => self.of_request(key, opens, stack, now),
            (Some(key), Direction::Inbound) => match self.ended.remove(&key) {
                Some(text) => return Some(text),
                None => self.of_flow(key, false, stack),
            },
            (None, _) => None,
        }
        .unwrap_or_default();
        if let Some(reason) = dropped {
            comment.dropped(reason);
        }
        comment.into_text()
    }

    /// A packet of the pod: its flow's decision, or why it has none.
    fn of_request(&mut self, key: FlowKey, opens: bool, stack: &Stack, now: Instant) -> Option<Comment> {
        if stack.live_flow(key.protocol, key.pod, key.remote).is_some() {
            return self.of_flow(key, opens, stack);
        }
        // Only what would begin a flow is put to policy: a stray segment has no answer to wait for.
        let begins = opens || key.protocol != Protocol::Tcp;
        begins.then(|| Comment::of_decision(&stack.decide(now, key.protocol, key.remote)))
    }

    /// A live flow's decision, once, and once more when its name is settled.
    fn of_flow(&mut self, key: FlowKey, again: bool, stack: &Stack) -> Option<Comment> {
        let live = stack.live_flow(key.protocol, key.pod, key.remote)?;
        if self.told.len() >= TOLD {
            self.told.clear();
        }
        let told = self.told.insert(key, live.name_open);
        (again || told != Some(live.name_open)).then(|| Comment::of_flow(&live))
    }
}

/// The reason whose count has grown.
fn newly_dropped(before: &Counters, after: &Counters) -> Option<DropReason> {
    DropReason::ALL.into_iter().find(|&reason| after.dropped(reason) > before.dropped(reason))
}
