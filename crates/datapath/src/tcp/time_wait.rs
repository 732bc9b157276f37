//! TIME-WAIT without a flow: what is needed to answer stray segments of a closed connection (RFC 9293 3.6.1).

use std::collections::{HashMap, VecDeque};

use smoltcp::time::{Duration, Instant};

use super::segment::{Outgoing, Segment};
use super::seq::Seq;
use crate::key::{Ends, KeyedState};

/// As Linux (TCP_TIMEWAIT_LEN); RFC 9293 says 2 MSL and lets the implementation choose MSL.
const TIME_WAIT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) snd_nxt: Seq,
    pub(crate) rcv_nxt: Seq,
    pub(crate) ts_recent: Option<u32>,
}

/// What a segment for a connection in TIME-WAIT leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict {
    /// No such connection.
    Unknown,
    /// A new connection may begin in its place (RFC 9293 3.6.1, RFC 6191).
    Reuse,
    Answer(Outgoing),
    Ignore,
}

#[derive(Debug)]
pub(crate) struct TimeWait {
    records: HashMap<Ends, (Record, Instant), KeyedState>,
    /// In the order they expire, as all wait equally long; entries may be outdated.
    order: VecDeque<(Instant, Ends)>,
    limit: usize,
}

impl TimeWait {
    pub(crate) fn new(hasher: KeyedState, limit: usize) -> Self {
        Self { records: HashMap::with_hasher(hasher), order: VecDeque::new(), limit }
    }

    pub(crate) fn insert(&mut self, now: Instant, ends: Ends, record: Record) {
        self.expire(now);
        while self.records.len() >= self.limit {
            let Some((_, oldest)) = self.order.pop_front() else { return };
            self.records.remove(&oldest);
        }
        let until = now + TIME_WAIT;
        self.records.insert(ends, (record, until));
        self.order.push_back((until, ends));
    }

    pub(crate) fn handle(&mut self, now: Instant, ends: &Ends, segment: &Segment) -> Verdict {
        let Some((record, until)) = self.records.get(ends).copied() else { return Verdict::Unknown };
        if until <= now {
            self.records.remove(ends);
            return Verdict::Unknown;
        }
        if segment.rst {
            // RFC 1337: a reset must not cut the wait short.
            return Verdict::Ignore;
        }
        if segment.syn && segment.ack.is_none() {
            let newer = match (segment.options.timestamp, record.ts_recent) {
                (Some(theirs), Some(recent)) => (theirs.value.wrapping_sub(recent) as i32) > 0,
                _ => false,
            };
            if newer || segment.seq.after(record.rcv_nxt) {
                self.records.remove(ends);
                return Verdict::Reuse;
            }
        }
        if segment.fin {
            // Our last ACK was lost: the wait starts anew.
            self.records.insert(*ends, (record, now + TIME_WAIT));
            self.order.push_back((now + TIME_WAIT, *ends));
        }
        let answer = segment.len() > 0 || segment.seq != record.rcv_nxt;
        if answer {
            Verdict::Answer(Outgoing::new(record.snd_nxt, Some(record.rcv_nxt), 0))
        } else {
            Verdict::Ignore
        }
    }

    /// Forgets what has waited long enough.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(&(until, ends)) = self.order.front() {
            if until > now && self.order.len() <= 2 * self.limit {
                break;
            }
            self.order.pop_front();
            if self.records.get(&ends).is_some_and(|&(_, current)| current <= now) {
                self.records.remove(&ends);
            }
        }
    }

    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.order.front().map(|&(until, _)| until)
    }
}
