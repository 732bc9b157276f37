//! Deadlines of many flows in one heap, with lazy cancellation.
//!
//! A flow has at most a few entries: an entry is pushed only when the flow's deadline moves before the earliest one it
//! has in the heap. Deadlines that move later (every ACK moves the retransmission timer) cost nothing; the entry fires
//! early once, and the owner re-arms.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use smoltcp::time::Instant;

#[derive(Debug)]
pub(crate) struct Timers<K> {
    heap: BinaryHeap<Reverse<(i64, K)>>,
}

impl<K: Ord + Copy> Timers<K> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new() }
    }

    pub(crate) fn push(&mut self, at: Instant, key: K) {
        self.heap.push(Reverse((at.total_micros(), key)));
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| Instant::from_micros(*at))
    }

    /// The next key whose time has come.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now.total_micros() {
            return None;
        }
        self.heap.pop().map(|Reverse((_, key))| key)
    }
}
