//! Which of many things was used least recently, without touching anything when one is used.

use std::collections::VecDeque;

use smoltcp::time::Instant;

/// Entries that are not worth a sweep.
const SLACK: usize = 64;

/// Keys with the time they were last known to be used; the front is the least recently used, or is moved back.
#[derive(Debug)]
pub(crate) struct Recency<K>(VecDeque<(K, Instant)>);

impl<K: Copy> Recency<K> {
    pub(crate) fn new() -> Self {
        Self(VecDeque::new())
    }

    /// Takes a key that is not there yet. `live` is how many are in use, and `is_live` says which: what has ended leaves its
    /// entry behind, and without limit that would be a leak of one for each query.
    pub(crate) fn push(&mut self, key: K, now: Instant, live: usize, is_live: impl Fn(K) -> bool) {
        if self.0.len() > 2 * live + SLACK {
            self.0.retain(|&(key, _)| is_live(key));
        }
        self.0.push_back((key, now));
    }

    /// Takes out the least recently used key; `last` says when one was used, `None` of what has ended.
    pub(crate) fn pop(&mut self, last: impl Fn(K) -> Option<Instant>) -> Option<K> {
        while let Some((key, seen)) = self.0.pop_front() {
            match last(key) {
                None => {}
                Some(used) if used > seen => self.0.push_back((key, used)),
                Some(_) => return Some(key),
            }
        }
        None
    }

    /// Whether ended entries are kept within bounds.
    pub(crate) fn is_bounded(&self, most: usize) -> bool {
        self.0.len() <= 2 * most + SLACK + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_comes_first_and_what_ended_never() {
        let mut recency = Recency::new();
        let mut used: Vec<_> = (0..5).map(|second| Some(Instant::from_secs(second))).collect();
        for key in 0..5usize {
            recency.push(key, Instant::from_secs(key as i64), 5, |_| true);
        }
        used[0] = Some(Instant::from_secs(10));
        used[2] = None;
        let order: Vec<_> = std::iter::from_fn(|| recency.pop(|key| used[key])).collect();
        assert_eq!(order, [1, 3, 4, 0]);
    }

    #[test]
    fn ended_entries_are_swept() {
        let mut recency = Recency::new();
        for key in 0..10_000 {
            recency.push(key, Instant::from_secs(0), 1, |entry| entry + 1 >= key);
            assert!(recency.is_bounded(1), "{key}");
        }
    }
}
