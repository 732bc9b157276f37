//! TIME-WAIT without a flow: what is needed to answer stray segments of a closed connection (RFC 9293 3.6.1).

use std::collections::{HashMap, VecDeque};

use smoltcp::time::{Duration, Instant};

use super::flow::timestamp_value;
use super::segment::{Outgoing, Segment, Timestamp};
use super::seq::Seq;
use crate::key::{Ends, KeyedState};

/// As Linux (TCP_TIMEWAIT_LEN); RFC 9293 says 2 MSL and lets the implementation choose MSL.
const TIME_WAIT: Duration = Duration::from_secs(60);

/// Entries of the queue that are not worth a sweep.
const SLACK: usize = 64;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// Repeated whenever an answer is due.
    pub(crate) acknowledgment: Outgoing,
    pub(crate) timestamp_offset: u32,
}

impl Record {
    fn rcv_nxt(&self) -> Seq {
        self.acknowledgment.ack.unwrap_or(Seq(0))
    }

    fn answer(&self, now: Instant) -> Outgoing {
        let mut outgoing = self.acknowledgment;
        if let Some(Timestamp { value, .. }) = &mut outgoing.options.timestamp {
            *value = timestamp_value(now, self.timestamp_offset);
        }
        outgoing
    }

    /// Whether `syn` begins a new connection rather than repeating the old one: newer by its timestamp, or by its
    /// sequence number where the timestamps do not say that it is older (RFC 6191, Linux: tcp_timewait_state_process).
    fn is_succeeded_by(&self, syn: &Segment) -> bool {
        let newer_sequence = syn.seq.after(self.rcv_nxt());
        match (syn.options.timestamp, self.acknowledgment.options.timestamp) {
            (Some(theirs), Some(ours)) => match theirs.value.wrapping_sub(ours.echo) as i32 {
                1.. => true,
                0 => newer_sequence,
                _ => false,
            },
            _ => newer_sequence,
        }
    }
}

/// What a segment for a connection in TIME-WAIT leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict {
    /// No such connection.
    Unknown,
    /// A new connection may begin in its place (RFC 9293 3.6.1, RFC 6191), with numbers above this one of ours.
    Reuse(Seq),
    Answer(Outgoing),
    Ignore,
}

#[derive(Debug)]
struct Waiting {
    record: Record,
    until: Instant,
    /// The queue's entry that speaks of this record.
    entry: u64,
}

#[derive(Debug)]
pub(crate) struct TimeWait {
    records: HashMap<Ends, Waiting, KeyedState>,
    /// About in the order they expire, as all wait equally long. A record has one entry; those of records that gave way
    /// to a new connection are outdated.
    order: VecDeque<(Instant, Ends, u64)>,
    entries: u64,
    limit: usize,
}

impl TimeWait {
    pub(crate) fn new(hasher: KeyedState, limit: usize) -> Self {
        Self { records: HashMap::with_hasher(hasher), order: VecDeque::new(), entries: 0, limit }
    }

    pub(crate) fn insert(&mut self, now: Instant, ends: Ends, record: Record) {
        self.expire(now);
        while self.records.len() >= self.limit {
            let Some((_, oldest, entry)) = self.order.pop_front() else { return };
            if self.is_current(&oldest, entry) {
                self.records.remove(&oldest);
            }
        }
        if self.order.len() > 2 * self.records.len() + SLACK {
            let records = &self.records;
            self.order
                .retain(|(_, ends, entry)| records.get(ends).is_some_and(|waiting| waiting.entry == *entry));
        }
        self.entries += 1;
        let until = now + TIME_WAIT;
        self.records.insert(ends, Waiting { record, until, entry: self.entries });
        self.order.push_back((until, ends, self.entries));
    }

    fn is_current(&self, ends: &Ends, entry: u64) -> bool {
        self.records.get(ends).is_some_and(|waiting| waiting.entry == entry)
    }

    pub(crate) fn handle(&mut self, now: Instant, ends: &Ends, segment: &Segment) -> Verdict {
        let Some(waiting) = self.records.get_mut(ends) else { return Verdict::Unknown };
        let record = waiting.record;
        if waiting.until <= now {
            self.records.remove(ends);
            return Verdict::Unknown;
        }
        if segment.rst {
            // RFC 1337: a reset must not cut the wait short.
            return Verdict::Ignore;
        }
        if segment.syn && segment.ack.is_none() && !segment.fin && record.is_succeeded_by(segment) {
            return Verdict::Reuse(record.acknowledgment.seq);
        }
        if segment.fin {
            // Our last ACK was lost: the wait starts anew. The queue learns of it when the old time is over.
            waiting.until = now + TIME_WAIT;
        }
        if segment.len() > 0 || segment.seq != record.rcv_nxt() {
            Verdict::Answer(record.answer(now))
        } else {
            Verdict::Ignore
        }
    }

    /// A new connection takes the place.
    pub(crate) fn give_way(&mut self, ends: &Ends) {
        self.records.remove(ends);
    }

    /// Forgets what has waited long enough.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(&(due, ends, entry)) = self.order.front() {
            if due > now {
                break;
            }
            self.order.pop_front();
            let Some(waiting) = self.records.get(&ends).filter(|waiting| waiting.entry == entry) else {
                continue;
            };
            if waiting.until <= now {
                self.records.remove(&ends);
            } else {
                self.order.push_back((waiting.until, ends, entry));
            }
        }
    }

    /// Each record has its entry in the queue, and outdated entries do not pile up.
    pub(crate) fn check(&self) -> Result<(), String> {
        let current = self.order.iter().filter(|(_, ends, entry)| self.is_current(ends, *entry)).count();
        if current != self.records.len() || self.records.len() > self.limit {
            return Err(format!("{current} entries for {} connections in TIME-WAIT", self.records.len()));
        }
        if self.order.len() > 2 * self.limit + SLACK + 1 {
            return Err(format!("{} entries for TIME-WAIT", self.order.len()));
        }
        Ok(())
    }

    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.order.front().map(|&(until, _, _)| until)
    }
}
