//! The node's packet memory: one budget for all workers, and what each pod has of it.
//!
//! Each worker counts what its flows hold, and each shard of a pod what the pod's flows hold there, exactly and for
//! itself. From the counts that they share they draw in grains: a packet touches no memory of another thread.

use std::sync::Arc;

use crate::sync::{AtomicUsize, Ordering};

/// Octets that are drawn at once, at most; two of them may be drawn and not used.
const GRAIN: usize = 256 * 1024;

/// Grains that the budget has at least, in all and for each worker: what is drawn and not used is an eighth of it at most.
const GRAINS: usize = 256;
const GRAINS_OF_WORKER: usize = 16;

/// Octets that the flows of all pods may hold; see [`Pool::is_exhausted`](crate::Pool::is_exhausted).
#[derive(Debug)]
pub struct Memory {
    budget: usize,
    grain: usize,
    drawn: AtomicUsize,
}

impl Memory {
    /// `budget`: octets; `workers`: how many draw from it.
    pub fn new(budget: usize, workers: usize) -> Arc<Self> {
        let grains = GRAINS.max(workers.saturating_mul(GRAINS_OF_WORKER));
        Arc::new(Self { budget, grain: (budget / grains).clamp(1, GRAIN), drawn: AtomicUsize::new(0) })
    }

    /// Octets that workers have drawn: those that flows hold, and up to two grains of each worker beside them.
    pub fn drawn(&self) -> usize {
        self.drawn.load(Ordering::Relaxed)
    }
}

/// What one pod's flows hold in one worker, beside what they hold in the others.
#[derive(Debug, Default)]
pub struct Account {
    pod: Arc<AtomicUsize>,
    tab: Tab,
}

impl Account {
    /// The account of another shard of the same pod.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self { pod: Arc::clone(&self.pod), tab: Tab::default() }
    }

    /// Octets that the pod's flows hold in this worker.
    pub fn held(&self) -> usize {
        self.tab.held
    }

    /// Returns what is drawn and not used, where the pod holds nothing here.
    pub(crate) fn rest(&mut self) {
        if self.tab.held == 0 {
            self.tab.settle(&self.pod);
        }
    }
}

/// A worker's part of the node's memory.
#[derive(Debug)]
pub(crate) struct Part {
    memory: Arc<Memory>,
    tab: Tab,
}

impl Part {
    pub(crate) fn of(memory: &Arc<Memory>) -> Self {
        Self { memory: Arc::clone(memory), tab: Tab::default() }
    }

    pub(crate) fn held(&self) -> usize {
        self.tab.held
    }

    pub(crate) fn charge(&mut self, account: &mut Account, octets: usize) {
        self.tab.charge(&self.memory.drawn, self.memory.grain, octets);
        account.tab.charge(&account.pod, self.memory.grain, octets);
    }

    pub(crate) fn credit(&mut self, account: &mut Account, octets: usize) {
        debug_assert!(account.tab.held >= octets, "the chunk is another pod's");
        self.tab.credit(&self.memory.drawn, self.memory.grain, octets);
        account.tab.credit(&account.pod, self.memory.grain, octets);
    }

    /// Whether the pod holds as much as is free.
    pub(crate) fn is_exhausted(&self, account: &Account) -> bool {
        let free = self.memory.budget.saturating_sub(self.tab.of_all(&self.memory.drawn));
        account.tab.of_all(&account.pod) >= free
    }

    /// Returns what is drawn and not used.
    pub(crate) fn settle(&mut self) {
        self.tab.settle(&self.memory.drawn);
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.tab.drawn == self.tab.held
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.tab.held = 0;
        self.settle();
    }
}

/// Octets that one thread holds, and those it has drawn for them.
#[derive(Debug, Default)]
struct Tab {
    held: usize,
    drawn: usize,
}

// The counts order nothing else, so relaxed will do.
impl Tab {
    fn charge(&mut self, shared: &AtomicUsize, grain: usize, octets: usize) {
        self.held += octets;
        if self.held > self.drawn {
            let more = (self.held - self.drawn).max(grain);
            shared.fetch_add(more, Ordering::Relaxed);
            self.drawn += more;
        }
    }

    /// Keeps a grain for what comes next.
    fn credit(&mut self, shared: &AtomicUsize, grain: usize, octets: usize) {
        self.held = self.held.saturating_sub(octets);
        let spare = self.drawn - self.held;
        if spare > 2 * grain {
            shared.fetch_sub(spare - grain, Ordering::Relaxed);
            self.drawn = self.held + grain;
        }
    }

    fn settle(&mut self, shared: &AtomicUsize) {
        // Mostly there is nothing to return, and this comes with every turn of a pod.
        if self.drawn > self.held {
            shared.fetch_sub(self.drawn - self.held, Ordering::Relaxed);
            self.drawn = self.held;
        }
    }

    /// What all threads have, this one's exactly.
    fn of_all(&self, shared: &AtomicUsize) -> usize {
        shared.load(Ordering::Relaxed) - self.drawn + self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::CAPACITY;

    const CHUNK: usize = 100;

    /// Charges chunks until the pod has its share; gives how many octets that were.
    fn fill(part: &mut Part, account: &mut Account) -> usize {
        let before = part.held();
        while !part.is_exhausted(account) {
            part.charge(account, CHUNK);
        }
        part.held() - before
    }

    #[test]
    fn a_greedy_pod_leaves_memory_for_the_others() {
        let mut part = Part::of(&Memory::new(120_000, 1));
        let mut accounts: [Account; 3] = Default::default();
        assert_eq!([0, 1, 2].map(|pod| fill(&mut part, &mut accounts[pod])), [60_000, 30_000, 15_000]);
        let held = accounts[0].held();
        part.credit(&mut accounts[0], held);
        assert_eq!(accounts[0].held(), 0);
        assert_eq!(fill(&mut part, &mut accounts[2]), 30_000);
    }

    #[test]
    fn shards_have_the_share_of_one_pod_and_workers_one_budget() {
        let memory = Memory::new(64 << 20, 2);
        let mut workers = [Part::of(&memory), Part::of(&memory)];
        let mut first = Account::default();
        let mut second = first.sibling();
        let taken = fill(&mut workers[0], &mut first);
        let slack = 4 * GRAIN;
        assert!(taken.abs_diff(32 << 20) <= slack, "{taken} of half the budget");
        // The other shard has nothing left of it, another pod there the half of what is free.
        assert!(fill(&mut workers[1], &mut second) <= slack);
        let mut other = Account::default();
        let taken = fill(&mut workers[1], &mut other);
        assert!(taken.abs_diff(16 << 20) <= slack, "{taken} of a quarter of the budget");
    }

    #[test]
    fn what_is_not_used_goes_back() {
        let memory = Memory::new(64 << 20, 2);
        let (mut part, mut account) = (Part::of(&memory), Account::default());
        part.charge(&mut account, 10);
        part.credit(&mut account, 10);
        assert!(!part.is_settled());
        account.rest();
        part.settle();
        assert_eq!((memory.drawn(), account.pod.load(Ordering::Relaxed)), (0, 0));
        part.charge(&mut account, 1_000);
        drop(part);
        assert_eq!(memory.drawn(), 0);
    }

    #[test]
    fn what_many_workers_do_not_use_is_a_small_part() {
        for (budget, workers) in [(16 << 20, 1), (16 << 20, 256), (256 << 20, 64), (1_000, 3)] {
            let memory = Memory::new(budget, workers);
            let mut account = Account::default();
            let mut parts: Vec<Part> = (0..workers).map(|_| Part::of(&memory)).collect();
            for part in &mut parts {
                part.charge(&mut account, 3 * memory.grain);
                part.credit(&mut account, 2 * memory.grain);
            }
            let held: usize = parts.iter().map(Part::held).sum();
            assert!(memory.drawn() - held <= budget / 8, "{workers} workers, {budget} octets");
        }
    }

    proptest::proptest! {
        /// Against plain sums: two workers, two pods with a shard in each.
        #[test]
        fn what_is_drawn_covers_what_is_held(
            operations in proptest::collection::vec((0usize..2, 0usize..2, 0usize..4, 1usize..200_000), 0..200),
        ) {
            let memory = Memory::new(8 << 20, 2);
            let mut workers = [Part::of(&memory), Part::of(&memory)];
            let first = [Account::default(), Account::default()];
            let siblings = [first[0].sibling(), first[1].sibling()];
            let mut accounts = [first, siblings];
            let mut held = [[0; 2]; 2];
            for (worker, pod, operation, octets) in operations {
                let (part, account) = (&mut workers[worker], &mut accounts[worker][pod]);
                match operation {
                    0 if part.is_exhausted(account) => {}
                    0 | 1 => {
                        part.charge(account, octets);
                        held[worker][pod] += octets;
                    }
                    2 => {
                        let octets = octets.min(held[worker][pod]);
                        part.credit(account, octets);
                        held[worker][pod] -= octets;
                    }
                    _ => {
                        account.rest();
                        part.settle();
                    }
                }
                let sum: usize = held.iter().flatten().sum();
                proptest::prop_assert!((sum..=sum + 4 * memory.grain).contains(&memory.drawn()));
                for pod in 0..2 {
                    let sum = held[0][pod] + held[1][pod];
                    let drawn = accounts[0][pod].pod.load(Ordering::Relaxed);
                    proptest::prop_assert!((sum..=sum + 4 * memory.grain).contains(&drawn));
                }
                for (worker, part) in workers.iter().enumerate() {
                    proptest::prop_assert_eq!(part.held(), held[worker].iter().sum::<usize>());
                }
            }
        }

        /// Greedy pods come in any order and through any worker, and take what they get. The budget is passed by the last
        /// packet at most, one more pod gets as much as if the greedy ones had halved what was free in turn, and all of it
        /// goes back.
        #[test]
        fn greedy_pods_stay_in_the_budget_and_leave_a_part_of_it(
            greedy in 1usize..4,
            turns in proptest::collection::vec((0usize..4, 0usize..2, 1..=CAPACITY), 0..400),
        ) {
            let memory = Memory::new(8 << 20, 2);
            let mut workers = [Part::of(&memory), Part::of(&memory)];
            let first: Vec<Account> = (0..=greedy).map(|_| Account::default()).collect();
            let siblings: Vec<Account> = first.iter().map(Account::sibling).collect();
            let mut accounts = [first, siblings];
            let mut take = |pod: usize, worker: usize, octets: usize| {
                let (part, account) = (&mut workers[worker], &mut accounts[worker][pod]);
                let may = !part.is_exhausted(account);
                if may {
                    part.charge(account, octets);
                }
                may
            };
            for (pod, worker, octets) in turns {
                take(pod % greedy, worker, octets);
            }
            while (0..greedy).any(|pod| take(pod, 0, CAPACITY) || take(pod, 1, CAPACITY)) {}
            let mut quiet = 0;
            while take(greedy, quiet % 2, CHUNK) || take(greedy, 1 - quiet % 2, CHUNK) {
                quiet += 1;
            }
            let slack = 2 * CAPACITY + 4 * memory.grain;
            proptest::prop_assert!(quiet * CHUNK + slack >= memory.budget >> (greedy + 1), "{} chunks", quiet);
            let held: usize = workers.iter().map(Part::held).sum();
            proptest::prop_assert!(held < memory.budget + CAPACITY, "{} octets", held);
            for (part, accounts) in workers.iter_mut().zip(&mut accounts) {
                for account in accounts {
                    part.credit(account, account.held());
                    account.rest();
                }
                part.settle();
            }
            let left: usize = accounts[0].iter().map(|account| account.pod.load(Ordering::Relaxed)).sum();
            proptest::prop_assert_eq!((memory.drawn(), left), (0, 0));
        }
    }
}

#[cfg(all(test, tunproxy_loom))]
mod loom_tests {
    use super::*;

    const BUDGET: usize = 8;

    /// What a shard takes when it can take all, in chunks of two octets.
    fn take(memory: &Arc<Memory>, mut account: Account) -> (Part, Account) {
        let mut part = Part::of(memory);
        for _ in 0..2 {
            if !part.is_exhausted(&account) {
                part.charge(&mut account, 2);
            }
        }
        assert!(memory.drawn() >= part.held());
        (part, account)
    }

    #[test]
    fn two_shards_of_a_pod_stay_within_the_budget_and_return_all() {
        loom::model(|| {
            let memory = Memory::new(BUDGET, 2);
            let own = Account::default();
            let (pod, sibling) = (own.pod.clone(), own.sibling());
            let other = {
                let memory = memory.clone();
                loom::thread::spawn(move || take(&memory, sibling))
            };
            let mut shards = [take(&memory, own), other.join().unwrap()];
            // Half of the budget is the pod's; where neither has seen yet what the other took, both take it.
            let held: usize = shards.iter().map(|(part, _)| part.held()).sum();
            assert!((BUDGET / 2..=BUDGET).contains(&held), "{held}");
            for (part, account) in &mut shards {
                part.credit(account, part.held());
                account.rest();
                part.settle();
            }
            assert_eq!((memory.drawn(), pod.load(Ordering::Relaxed)), (0, 0));
        });
    }
}
