//! A simulated pod (smoltcp's sockets) opposite anything that eats and emits IP packets, over a lossy path, in
//! virtual time: deterministic from a seed, and as fast as the code under test.
//!
//! ```no_run
//! # use tunproxy_testkit::sim::*;
//! # fn demo(engine: impl PacketPeer) {
//! let mut sim = Sim::new(SimConfig::seeded(7), engine);
//! let tcp = sim.pod.connect("192.0.2.1:80".parse().unwrap());
//! sim.run_until(std::time::Duration::from_secs(60), |sim| sim.pod.may_send(tcp)).expect("connected");
//! # }
//! ```

mod path;
mod pod;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, Instant};

pub use path::{Impairment, Path, PathStats};
pub use pod::{SimPod, SimPodConfig, SimTcp, SimUdp, TcpState};

/// Whatever sits at the other end of the pod's wire. Packets are single IP packets with complete checksums: an engine
/// that emits super-segments cuts them with [`crate::packet::segment`] first.
pub trait PacketPeer {
    fn handle(&mut self, now: Instant, packet: &[u8]);
    fn poll(&mut self, now: Instant) -> Option<Vec<u8>>;
    /// When the peer next wants `poll` to be called without a packet; `None`: never.
    fn poll_at(&mut self) -> Option<Instant>;
}

#[derive(Clone, Copy, Debug)]
pub struct SimConfig {
    pub seed: u64,
    pub pod: SimPodConfig,
    pub to_peer: Impairment,
    pub to_pod: Impairment,
}

impl SimConfig {
    /// A clean path of half a millisecond each way.
    pub fn clean(seed: u64) -> Self {
        let wire = Impairment::delay(Duration::from_micros(500));
        Self { seed, pod: SimPodConfig::default(), to_peer: wire, to_pod: wire }
    }

    /// Path and pod drawn from the seed: loss, duplication, reordering, buffer sizes, MTU, Nagle, timestamps.
    pub fn seeded(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let pod = SimPodConfig {
            mtu: *random.choice(&[1280, 1400, 1500, 9000]).expect("not empty"),
            receive_buffer: random.usize(2_000..60_000),
            send_buffer: random.usize(2_000..60_000),
            nagle: random.bool(),
            timestamps: random.bool(),
            ..SimPodConfig::default()
        };
        Self { seed, pod, to_peer: Impairment::random(&mut random), to_pod: Impairment::random(&mut random) }
    }
}

pub struct Sim<P> {
    pub pod: SimPod,
    pub peer: P,
    pub to_peer: Path,
    pub to_pod: Path,
    epoch: Instant,
    now: Instant,
    config: SimConfig,
}

/// Virtual time ran out, or nothing was left that could happen.
#[derive(Debug)]
pub struct Stalled {
    pub seed: u64,
    pub after: Duration,
    pub idle: bool,
    pub to_peer: PathStats,
    pub to_pod: PathStats,
}

impl fmt::Display for Stalled {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.idle { "nothing left to happen" } else { "the deadline passed" };
        write!(
            out,
            "seed {}: {why} after {:?} of virtual time (to peer {:?}, to pod {:?})",
            self.seed, self.after, self.to_peer, self.to_pod
        )
    }
}

impl std::error::Error for Stalled {}

impl<P: PacketPeer> Sim<P> {
    pub fn new(config: SimConfig, peer: P) -> Self {
        let epoch = Instant::now();
        Self::starting_at(config, peer, epoch)
    }

    /// For a peer that was made with a start time of its own.
    pub fn starting_at(config: SimConfig, peer: P, epoch: Instant) -> Self {
        Self {
            pod: SimPod::new(config.pod, epoch, config.seed),
            peer,
            to_peer: Path::new(config.to_peer, config.seed.wrapping_mul(2).wrapping_add(1)),
            to_pod: Path::new(config.to_pod, config.seed.wrapping_mul(2).wrapping_add(2)),
            epoch,
            now: epoch,
            config,
        }
    }

    pub fn now(&self) -> Instant {
        self.now
    }

    pub fn elapsed(&self) -> Duration {
        self.now - self.epoch
    }

    /// Runs until `done` says so; it is asked after every event and may read, write and close sockets meanwhile.
    pub fn run_until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<(), Stalled> {
        let deadline = self.now + limit;
        loop {
            if done(self) {
                return Ok(());
            }
            let moved = self.exchange();
            if moved {
                continue;
            }
            match self.next_event() {
                None => return Err(self.stalled(true)),
                Some(at) if at > deadline => {
                    self.now = deadline;
                    return Err(self.stalled(false));
                }
                Some(at) => self.now = self.now.max(at),
            }
        }
    }

    /// Lets virtual time pass, with everything that happens in it.
    pub fn run_for(&mut self, duration: Duration) {
        let until = self.now + duration;
        // A quiet wire is no failure here: the time passes all the same.
        let _ = self.run_until(duration, |sim| sim.now >= until);
        self.now = until;
    }

    /// Moves everything that can move at this instant; true when something did.
    fn exchange(&mut self) -> bool {
        let now = self.now;
        let mut moved = false;
        while let Some(packet) = self.to_pod.pop(now) {
            self.pod.handle(now, packet);
            moved = true;
        }
        while let Some(packet) = self.pod.poll(now) {
            self.to_peer.push(now, packet);
            moved = true;
        }
        while let Some(packet) = self.to_peer.pop(now) {
            self.peer.handle(now, &packet);
            moved = true;
        }
        while let Some(packet) = self.peer.poll(now) {
            self.to_pod.push(now, packet);
            moved = true;
        }
        moved
    }

    /// The next instant at which anything is due. What is overdue after an exchange moved nothing is asked again one
    /// microsecond later (smoltcp's own resolution), so that time always goes on.
    fn next_event(&mut self) -> Option<Instant> {
        let soonest = self.now + Duration::from_micros(1);
        [
            self.to_pod.next_arrival(),
            self.to_peer.next_arrival(),
            self.pod.poll_at(self.now),
            self.peer.poll_at(),
        ]
        .into_iter()
        .flatten()
        .map(|at| at.max(soonest))
        .min()
    }

    fn stalled(&self, idle: bool) -> Stalled {
        Stalled {
            seed: self.config.seed,
            after: self.elapsed(),
            idle,
            to_peer: self.to_peer.stats(),
            to_pod: self.to_pod.stats(),
        }
    }
}
