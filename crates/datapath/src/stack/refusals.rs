//! Which refusals are written down: a pod that is refused without end must not push others out of the flow log.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;

use smoltcp::time::Instant;
use tunproxy_policy::Protocol;

use super::shared::Budget;
use crate::key::KeyedState;

/// Destinations remembered; the oldest gives way, and is new when it comes again.
const REMEMBERED: usize = 1_024;

type Asked = (Protocol, SocketAddr);

#[derive(Debug)]
pub(crate) struct Refusals {
    budget: Budget,
    recent: HashSet<Asked, KeyedState>,
    order: VecDeque<Asked>,
}

impl Refusals {
    pub(crate) fn new(hasher: KeyedState, rate: u32) -> Self {
        Self { budget: Budget::new(rate), recent: HashSet::with_hasher(hasher), order: VecDeque::new() }
    }

    /// Whether this one is to be recorded. Repeats leave half of the budget to what was not refused lately.
    pub(crate) fn admit(&mut self, now: Instant, protocol: Protocol, destination: SocketAddr) -> bool {
        let asked = (protocol, destination);
        let repeated = self.recent.contains(&asked);
        let admitted = if repeated { self.budget.take_of_half(now) } else { self.budget.take(now) };
        // One that found no room is new still.
        if admitted && !repeated {
            self.remember(asked);
        }
        admitted
    }

    fn remember(&mut self, asked: Asked) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.recent.remove(&oldest);
        }
        self.recent.insert(asked);
        self.order.push_back(asked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::time::Duration;

    fn port(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn refusals() -> Refusals {
        Refusals::new(KeyedState::new([0; 16]), 10)
    }

    #[test]
    fn repeats_leave_room_for_what_is_new() {
        let mut refusals = refusals();
        let now = Instant::from_secs(0);
        let repeats = (0..1_000).filter(|_| refusals.admit(now, Protocol::Udp, port(1))).count();
        assert_eq!(repeats, 5);
        // The same port of another protocol is another flow.
        assert!(refusals.admit(now, Protocol::Tcp, port(1)));
        let new = (2..1_000).filter(|&number| refusals.admit(now, Protocol::Udp, port(number))).count();
        assert_eq!(new, 4);
        let later = now + Duration::from_secs(1);
        assert!(refusals.admit(later, Protocol::Udp, port(999)), "what found no room is new still");
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut refusals = refusals();
        for number in 0..5_000 {
            refusals.admit(Instant::from_secs(i64::from(number)), Protocol::Udp, port(number));
        }
        assert_eq!((refusals.order.len(), refusals.recent.len()), (REMEMBERED, REMEMBERED));
    }
}
