//! Which names a pod was given for an address: the binding between a flow and its name.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use smoltcp::time::{Duration, Instant};
use tunproxy_policy::DomainName;

use crate::dns::Answer;
use crate::key::KeyedState;

/// Clients keep answers longer than their TTL (connection pools, runtimes that cache for ever); a lease outlives it by
/// this much. It grants nothing but the name the trusted resolver gave.
const GRACE: Duration = Duration::from_secs(300);
const MAX_TTL: Duration = Duration::from_secs(24 * 3_600);

/// Names kept for one address, the latest ones.
const NAMES_PER_ADDRESS: usize = 16;

#[derive(Debug)]
struct Lease {
    name: DomainName,
    /// Who said so, by the address that the pod asked.
    resolver: IpAddr,
    until: Instant,
}

/// The leases of one pod.
#[derive(Debug)]
pub struct Leases {
    by_address: HashMap<IpAddr, Vec<Lease>, KeyedState>,
    /// In the order addresses were first learnt; the oldest gives way.
    order: VecDeque<IpAddr>,
    limit: usize,
}

impl Leases {
    pub(crate) fn new(hasher: KeyedState, limit: usize) -> Self {
        Self { by_address: HashMap::with_hasher(hasher), order: VecDeque::new(), limit }
    }

    pub(crate) fn learn(&mut self, now: Instant, resolver: IpAddr, answer: &Answer) {
        let until = now + Duration::from_secs(u64::from(answer.ttl)).min(MAX_TTL) + GRACE;
        for &address in &answer.addresses {
            self.make_room(address);
            let leases = self.by_address.entry(address).or_default();
            leases.retain(|lease| lease.name != answer.name && lease.until > now);
            if leases.len() >= NAMES_PER_ADDRESS {
                leases.remove(0);
            }
            leases.push(Lease { name: answer.name.clone(), resolver, until });
        }
    }

    fn make_room(&mut self, address: IpAddr) {
        if self.by_address.contains_key(&address) {
            return;
        }
        while self.by_address.len() >= self.limit {
            let Some(oldest) = self.order.pop_front() else { break };
            self.by_address.remove(&oldest);
        }
        self.order.push_back(address);
    }

    /// The names of `address`, the latest last, of those resolvers that are `trusted` now: what another shard has learnt may
    /// be of one whose trust has ended since.
    pub(crate) fn names(
        &self,
        now: Instant,
        address: IpAddr,
        trusted: impl Fn(IpAddr) -> bool,
    ) -> Vec<DomainName> {
        let leases = self.by_address.get(&address).map_or(&[][..], Vec::as_slice);
        let holds = |lease: &&Lease| lease.until > now && trusted(lease.resolver);
        leases.iter().filter(holds).map(|lease| lease.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESOLVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 10));

    fn answer(name: &str, last: u8, ttl: u32) -> Answer {
        let address = IpAddr::from([192, 0, 2, last]);
        Answer { name: DomainName::parse(name).unwrap(), addresses: vec![address], ttl }
    }

    fn names(leases: &Leases, now: Instant, last: u8) -> Vec<String> {
        names_of(leases, now, last, |_| true)
    }

    fn names_of(leases: &Leases, now: Instant, last: u8, trusted: impl Fn(IpAddr) -> bool) -> Vec<String> {
        let names = leases.names(now, IpAddr::from([192, 0, 2, last]), trusted);
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_latest_name_is_last_and_leases_end() {
        let mut leases = Leases::new(KeyedState::new([0; 16]), 10);
        let start = Instant::from_secs(0);
        leases.learn(start, RESOLVER, &answer("a.example", 1, 10));
        leases.learn(start, RESOLVER, &answer("b.example", 1, 1_000));
        leases.learn(start, RESOLVER, &answer("a.example", 1, 10));
        assert_eq!(names(&leases, start, 1), ["b.example", "a.example"]);
        assert_eq!(names(&leases, start + Duration::from_secs(311), 1), ["b.example"]);
        assert!(names(&leases, start + Duration::from_secs(1_301), 1).is_empty());
    }

    #[test]
    fn the_table_and_each_address_are_bounded() {
        let mut leases = Leases::new(KeyedState::new([0; 16]), 3);
        let now = Instant::from_secs(0);
        for last in 0..5 {
            leases.learn(now, RESOLVER, &answer("a.example", last, 10));
        }
        assert!(names(&leases, now, 1).is_empty());
        assert_eq!(names(&leases, now, 4), ["a.example"]);
        for number in 0..40 {
            leases.learn(now, RESOLVER, &answer(&format!("n{number}.example"), 4, 10));
        }
        assert_eq!(names(&leases, now, 4).len(), NAMES_PER_ADDRESS);
    }

    #[test]
    fn what_a_resolver_said_goes_with_its_trust() {
        let mut leases = Leases::new(KeyedState::new([0; 16]), 2);
        let now = Instant::from_secs(0);
        let other = IpAddr::from([10, 96, 0, 11]);
        leases.learn(now, RESOLVER, &answer("a.example", 1, 10));
        leases.learn(now, other, &answer("b.example", 1, 10));
        leases.learn(now, other, &answer("c.example", 2, 10));
        let trusted = |resolver| resolver == RESOLVER;
        assert_eq!(names_of(&leases, now, 1, trusted), ["a.example"]);
        assert!(names_of(&leases, now, 2, trusted).is_empty());
    }
}
