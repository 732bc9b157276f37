//! Descriptors are the node's: no pod may take so many that another finds none.
//!
//! A pod may hold as many sockets as are still free (dynamic threshold): alone it gets half of them, two busy pods a
//! third each, and there is always something left for the next.

use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sync::{AtomicUsize, Ordering};

/// For the agent itself: TUNs, listeners, files, the handshakes of upstreams.
const RESERVE: usize = 1_024;

/// Where the process has no limit.
const UNLIMITED: usize = 1 << 20;

/// The descriptors of the process that pods share.
#[derive(Debug)]
pub(super) struct Descriptors {
    total: usize,
    used: AtomicUsize,
}

/// What one pod holds of them.
#[derive(Debug)]
pub(super) struct Share {
    node: Arc<Descriptors>,
    held: AtomicUsize,
}

/// One socket's place; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Lease(Arc<Share>);

impl Descriptors {
    pub(super) fn new() -> Arc<Self> {
        Self::of(getrlimit(Resource::Nofile).current)
    }

    pub(super) fn of(limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self { total: descriptors_for_pods(limit), used: AtomicUsize::new(0) })
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn share(self: &Arc<Self>) -> Arc<Share> {
        Arc::new(Share { node: self.clone(), held: AtomicUsize::new(0) })
    }
}

impl Share {
    /// A place for one more socket, if the pod's share allows it.
    pub(super) fn lease(self: &Arc<Self>) -> Option<Lease> {
        // Other workers count at the same time; being off by a few is what the reserve is for.
        let free = self.node.total.saturating_sub(self.node.used.load(Ordering::Relaxed));
        if self.held.load(Ordering::Relaxed) >= free {
            return None;
        }
        self.node.used.fetch_add(1, Ordering::Relaxed);
        self.held.fetch_add(1, Ordering::Relaxed);
        Some(Lease(self.clone()))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.node.used.fetch_sub(1, Ordering::Relaxed);
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Of so many descriptors (`None`: no limit) those that pods share, one for each flow.
pub fn descriptors_for_pods(limit: Option<u64>) -> usize {
    let limit = limit.map_or(UNLIMITED, |limit| limit as usize);
    // A tiny limit is shared all the same; the kernel says when it is reached.
    limit.saturating_sub(RESERVE).max(limit / 2)
}

/// Raises the soft limit of descriptors to the hard one, for a process that serves many pods.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the limit of descriptors cannot be raised");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(share: &Arc<Share>) -> Vec<Lease> {
        std::iter::from_fn(|| share.lease()).collect()
    }

    #[test]
    fn greedy_pods_leave_something_for_the_next() {
        let node = Descriptors::of(Some(RESERVE as u64 + 1_200));
        let (one, two, three) = (node.share(), node.share(), node.share());
        let first = take_all(&one);
        assert_eq!(first.len(), 600);
        let second = take_all(&two);
        assert_eq!(second.len(), 300);
        assert_eq!(take_all(&three).len(), 150);
        drop(first);
        assert!(three.lease().is_some());
        drop(second);
        assert_eq!(node.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_tiny_limit_is_shared_too() {
        let node = Descriptors::of(Some(64));
        assert_eq!(take_all(&node.share()).len(), 16);
    }
}

#[cfg(all(test, tunproxy_loom))]
mod loom_tests {
    use super::*;

    #[test]
    fn two_workers_are_off_by_one_at_most_and_give_all_back() {
        loom::model(|| {
            let node = Descriptors::of(Some(4));
            assert_eq!(node.total, 2);
            // One pod in two workers: its share is one of two.
            let pod = node.share();
            let other = {
                let pod = pod.clone();
                loom::thread::spawn(move || pod.lease())
            };
            let leases = [pod.lease(), other.join().unwrap()];
            assert!((1..=2).contains(&leases.iter().flatten().count()));
            assert!(pod.lease().is_none());
            drop(leases);
            assert_eq!((node.used(), pod.held.load(Ordering::Relaxed)), (0, 0));
            assert!(pod.lease().is_some());
        });
    }
}
