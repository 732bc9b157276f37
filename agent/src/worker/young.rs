//! Connections that have just been made. Most end within the second, and are not worth the calls that keep one alive.

use std::collections::VecDeque;

use tunproxy_datapath::{Duration, FlowId, Instant};

/// What is as old as this may last. No upstream goes silent for the keepalive's sake sooner.
const GROWN_UP: Duration = Duration::from_secs(1);

/// What is as old as this is taken along when another is due: many connections are no reason to wake up for each.
const NEARLY: Duration = Duration::from_millis(500);

/// Of one pod. Where more are made within the second, the oldest makes room: it is the likeliest to be gone.
const MOST: usize = 4_096;

#[derive(Debug, Default)]
pub(super) struct Young {
    /// In the order in which they were made.
    flows: VecDeque<(Instant, FlowId)>,
    /// Of the oldest, or of one that made room: a time that moves with each connection would have to be armed with each.
    due: Option<Instant>,
}

impl Young {
    /// Gives the one that makes room, which counts as grown up.
    pub(super) fn push(&mut self, now: Instant, flow: FlowId) -> Option<FlowId> {
        let oldest = if self.flows.len() < MOST { None } else { self.flows.pop_front() };
        self.flows.push_back((now, flow));
        self.due.get_or_insert(now + GROWN_UP);
        oldest.map(|(_, flow)| flow)
    }

    /// When [`Young::pop`] wants to be called.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The next that has grown up; to be asked until there is none.
    pub(super) fn pop(&mut self, now: Instant) -> Option<FlowId> {
        self.due.filter(|&due| due <= now)?;
        if self.flows.front().is_some_and(|&(made, _)| made + NEARLY <= now) {
            return self.flows.pop_front().map(|(_, flow)| flow);
        }
        self.due = self.flows.front().map(|&(made, _)| made + GROWN_UP);
        if self.flows.is_empty() {
            // An idle pod holds nothing.
            self.flows = VecDeque::new();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(slot: u32) -> FlowId {
        FlowId { slot, generation: 1 }
    }

    #[test]
    fn one_that_is_due_takes_along_what_nearly_is() {
        let (start, mut young) = (Instant::from_secs(9), Young::default());
        assert_eq!(young.due(), None);
        for (slot, millis) in [(1, 0), (2, 500), (3, 501)] {
            assert_eq!(young.push(start + Duration::from_millis(millis), flow(slot)), None);
        }
        let due = young.due().unwrap();
        assert_eq!(due, start + GROWN_UP);
        let grown: Vec<_> = std::iter::from_fn(|| young.pop(due)).collect();
        assert_eq!(grown, [flow(1), flow(2)]);
        assert_eq!(young.due(), Some(due + Duration::from_millis(501)));
    }

    #[test]
    fn the_crowd_of_one_pod_is_bounded() {
        let (start, mut young) = (Instant::from_secs(9), Young::default());
        assert!((0..MOST as u32).all(|slot| young.push(start, flow(slot)).is_none()));
        assert_eq!(young.push(start, flow(MOST as u32)), Some(flow(0)));
        assert_eq!(std::iter::from_fn(|| young.pop(start + GROWN_UP)).count(), MOST);
        assert_eq!((young.flows.capacity(), young.due()), (0, None));
    }
}
