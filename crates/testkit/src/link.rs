//! A wire between two namespaces with loss, duplication, reordering, delay and a rate, from a seed.
//!
//! The emulator owns a TAP at each end and carries the frames in user space on its own thread: this kernel has no
//! netem. A TAP without offloads gets its packets segmented and with complete checksums, so nothing else is to be done.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::netns::Namespace;

/// One direction. Probabilities are 0.0 to 1.0.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct LinkConfig {
    pub loss: f64,
    pub duplicate: f64,
    /// Probability that a frame is held back by another `reorder_by`.
    pub reorder: f64,
    pub reorder_by: Duration,
    pub delay: Duration,
    /// Bits a second; frames beyond `queue` waiting ones are dropped. `None`: as fast as it goes.
    pub rate: Option<u64>,
}

impl LinkConfig {
    /// The link of "It must show": 1 % loss, some reordering, 20 ms there and back in all.
    pub fn lossy() -> Self {
        Self {
            loss: 0.01,
            duplicate: 0.001,
            reorder: 0.01,
            reorder_by: Duration::from_millis(2),
            delay: Duration::from_millis(10),
            rate: None,
        }
    }
}

/// Frames that wait for a rate-limited direction: a quarter megabyte of full-sized ones, as a cheap router has.
const RATE_QUEUE: usize = 170;
/// Frames taken from one end before the other gets its turn.
const BATCH: usize = 64;
const MAX_FRAME: usize = 65_550;

/// What one direction did; a test reads it to show that its link really was bad.
#[derive(Debug, Default)]
pub struct LinkStats {
    pub carried: AtomicU64,
    pub lost: AtomicU64,
    pub duplicated: AtomicU64,
    pub reordered: AtomicU64,
    pub overflowed: AtomicU64,
}

#[derive(Debug)]
pub struct LinkEmulator {
    stats: [Arc<LinkStats>; 2],
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl LinkEmulator {
    /// Makes interface `names[i]` in `ends[i]` (up, without addresses) and starts carrying: `forward` from the first
    /// end to the second, `back` the other way.
    pub fn start(
        ends: [&Namespace; 2],
        names: [&str; 2],
        forward: LinkConfig,
        back: LinkConfig,
        seed: u64,
    ) -> Result<Self> {
        let taps = [open_tap(ends[0], names[0])?, open_tap(ends[1], names[1])?];
        let stats = [Arc::new(LinkStats::default()), Arc::new(LinkStats::default())];
        let (stopped, stop) = rustix::pipe::pipe().context("pipe")?;
        let directions = [
            Direction::new(forward, seed.wrapping_mul(2), Arc::clone(&stats[0])),
            Direction::new(back, seed.wrapping_mul(2) + 1, Arc::clone(&stats[1])),
        ];
        let thread = std::thread::Builder::new()
            .name("link-emulator".to_owned())
            .spawn(move || carry(&taps, directions, &stopped))?;
        Ok(Self { stats, stop: Some(stop), thread: Some(thread) })
    }

    /// From the first end to the second.
    pub fn forward(&self) -> &LinkStats {
        &self.stats[0]
    }

    pub fn back(&self) -> &LinkStats {
        &self.stats[1]
    }
}

impl Drop for LinkEmulator {
    fn drop(&mut self) {
        // Closing our end of the pipe is what the thread's poll wakes up for.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open_tap(namespace: &Namespace, name: &str) -> Result<SyncDevice> {
    let tap = namespace
        .enter(|| DeviceBuilder::new().name(name).layer(Layer::L2).packet_information(false).build_sync())
        .with_context(|| format!("cannot create TAP {name} in {}", namespace.name()))?;
    tap.set_nonblocking(true)?;
    namespace.ip(&format!("link set {name} txqueuelen 5000 up"))?;
    Ok(tap)
}

fn carry(taps: &[SyncDevice; 2], mut directions: [Direction; 2], stopped: &OwnedFd) {
    let mut frame = vec![0; MAX_FRAME];
    loop {
        let due = directions.iter().filter_map(Direction::next_due).min();
        if wait(taps, stopped, due) {
            return;
        }
        for (from, direction) in directions.iter_mut().enumerate() {
            for _ in 0..BATCH {
                let Ok(length) = taps[from].recv(&mut frame) else { break };
                direction.push(Instant::now(), &frame[..length]);
            }
            direction.deliver(Instant::now(), &taps[1 - from]);
        }
    }
}

/// Waits for a frame, the next due one, or the end; true means the end.
fn wait(taps: &[SyncDevice; 2], stopped: &OwnedFd, due: Option<Instant>) -> bool {
    let mut fds = [
        PollFd::new(stopped, PollFlags::IN),
        PollFd::new(&taps[0], PollFlags::IN),
        PollFd::new(&taps[1], PollFlags::IN),
    ];
    let left = due.map(|at| at.saturating_duration_since(Instant::now()));
    let left =
        left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
    match poll(&mut fds, left.as_ref()) {
        Ok(_) => !fds[0].revents().is_empty(),
        Err(Errno::INTR) => false,
        Err(_) => true,
    }
}

struct Direction {
    config: LinkConfig,
    random: fastrand::Rng,
    waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    ticket: u64,
    /// Until when the rate-limited wire is taken.
    busy_until: Option<Instant>,
    stats: Arc<LinkStats>,
}

impl Direction {
    fn new(config: LinkConfig, seed: u64, stats: Arc<LinkStats>) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { config, random, waiting: BinaryHeap::new(), ticket: 0, busy_until: None, stats }
    }

    fn next_due(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse((due, _, _))| *due)
    }

    fn push(&mut self, now: Instant, frame: &[u8]) {
        if self.hits(self.config.loss) {
            self.stats.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if self.hits(self.config.duplicate) {
            self.stats.duplicated.fetch_add(1, Ordering::Relaxed);
            self.schedule(now, frame);
        }
        self.schedule(now, frame);
    }

    fn schedule(&mut self, now: Instant, frame: &[u8]) {
        let Some(sent) = self.transmit(now, frame.len()) else {
            self.stats.overflowed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let mut due = sent + self.config.delay;
        if self.hits(self.config.reorder) {
            self.stats.reordered.fetch_add(1, Ordering::Relaxed);
            due += self.config.reorder_by;
        }
        self.ticket += 1;
        self.waiting.push(Reverse((due, self.ticket, frame.to_vec())));
    }

    /// When the last bit of the frame is on the wire; `None` when too many wait for it already.
    fn transmit(&mut self, now: Instant, length: usize) -> Option<Instant> {
        let Some(rate) = self.config.rate else { return Some(now) };
        let takes = |bytes: usize| Duration::from_secs_f64(bytes as f64 * 8.0 / rate as f64);
        let start = self.busy_until.map_or(now, |until| until.max(now));
        if start - now > takes(RATE_QUEUE * 1514) {
            return None;
        }
        let end = start + takes(length);
        self.busy_until = Some(end);
        Some(end)
    }

    fn deliver(&mut self, now: Instant, to: &SyncDevice) {
        while self.next_due().is_some_and(|due| due <= now) {
            let Some(Reverse((_, _, frame))) = self.waiting.pop() else { return };
            // A full or downed interface loses the frame, as a wire into a dead port does.
            match to.send(&frame) {
                Ok(_) => self.stats.carried.fetch_add(1, Ordering::Relaxed),
                Err(_) => self.stats.overflowed.fetch_add(1, Ordering::Relaxed),
            };
        }
    }

    fn hits(&mut self, probability: f64) -> bool {
        self.random.f64() < probability
    }
}

/// An interface of a test's own into a namespace, for raw packets: what is written arrives there, what is sent there
/// is read.
pub struct RawTun {
    device: SyncDevice,
}

impl RawTun {
    /// A TUN without headers or offloads named `name`, up, without addresses.
    pub fn open(namespace: &Namespace, name: &str) -> Result<Self> {
        let device = namespace
            .enter(|| DeviceBuilder::new().name(name).packet_information(false).build_sync())
            .with_context(|| format!("cannot create TUN {name} in {}", namespace.name()))?;
        device.set_nonblocking(true)?;
        namespace.ip(&format!("link set {name} up"))?;
        Ok(Self { device })
    }

    pub fn send(&self, packet: &[u8]) -> std::io::Result<()> {
        self.device.send(packet).map(drop)
    }

    /// The next packet, or `None` when none comes in time.
    pub fn recv(&self, limit: Duration) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + limit;
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            if let Ok(length) = self.device.recv(&mut buffer) {
                buffer.truncate(length);
                return Ok(Some(buffer));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            poll(&mut [PollFd::new(&self.device, PollFlags::IN)], Some(&left)).context("poll")?;
        }
    }
}

impl AsFd for RawTun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
