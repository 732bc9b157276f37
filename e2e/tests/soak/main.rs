//! Mixed traffic at full speed with pods coming and going: nothing grows, and no octet is wrong.
//!
//! Cycles of traffic are followed by rest: every pod goes, and the agent must hold no more flows, descriptors and files
//! than before the first, and hardly more memory. Its memory and its metrics must not grow from the middle of the run on,
//! when pools and tables have had their growth, and every kind of event has been seen.
//! `TUNPROXY_SOAK_MINUTES` (default 2) says how long it takes; `make soak` takes 30.

mod octets;
mod servers;
mod traffic;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tunproxy_e2e::{Path, Pod, World, WorldOptions};
use tunproxy_testkit::{AgentProcess, Namespace, PodIdentity, root_or_skip, wait};

use octets::Octets;
use traffic::{DENIED, KINDS, Kind, LENGTH, Traffic};

/// Longer than any flow of a pod that is gone may linger.
const SETTLED: Duration = Duration::from_mins(2);
/// What the agent's memory may grow by in the second half, at rest and under load, whatever passes meanwhile: under load
/// the allocator wanders by 2 to 3 MiB. It is 60 octets for each flow of two minutes, and 4 for each of half an hour.
const GROWTH_KIB: u64 = 6 * 1024;
/// What it may hold at rest beyond what it held before the first pod. It gives memory back within some seconds; tables,
/// spare buffers, the flow log's and the metrics' stay, and what shares a page with them.
const KEPT_KIB: u64 = 12 * 1024;

/// Chained, bridged and standalone pods that are there for a whole cycle.
const STEADY: [Path; 3] = Path::OURS;
/// Paths on which pods come and go all the time.
const COMING: [Path; 2] = [Path::AfterPtp, Path::Standalone];

/// One cycle as the agent has it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Held {
    rss_kib: u64,
    descriptors: usize,
    flows: u64,
    /// Lines of the metrics.
    series: usize,
}

impl Held {
    fn of(agent: &AgentProcess) -> Result<Self> {
        Ok(Self {
            rss_kib: agent.rss_kib()?,
            descriptors: agent.open_descriptors()?,
            flows: agent.live_flows()?,
            series: agent.admin("/metrics")?.lines().count(),
        })
    }
}

struct Soak {
    world: World,
    traffic: Traffic,
    pods: AtomicU64,
    /// On disk before the first pod.
    files: Vec<PathBuf>,
}

#[test]
#[ignore = "takes minutes: make e2e, make soak"]
fn nothing_grows_and_no_octet_is_wrong() {
    if !root_or_skip() {
        return;
    }
    let minutes: f64 = std::env::var("TUNPROXY_SOAK_MINUTES").map_or(2.0, |text| text.parse().unwrap());
    let soak = Soak::new().unwrap();
    let before = Held::of(soak.world.agent()).unwrap();
    println!("before: {before:?}");
    // Long enough for everything to be under way, and enough of them to see a trend.
    let cycles = (minutes * 2.0).clamp(4.0, 12.0) as usize;
    let length = Duration::from_secs_f64(minutes * 60.0 / cycles as f64);
    let mut seen = Vec::new();
    for cycle in 1..=cycles {
        let load = soak.cycle(length).unwrap_or_else(|error| panic!("cycle {cycle}: {error:#}"));
        let middle = seen.get(cycles / 2 - 1).map_or(u64::MAX, |(_, rest): &(Held, Held)| rest.rss_kib);
        let most = middle.saturating_add(GROWTH_KIB).min(before.rss_kib + KEPT_KIB);
        let rest = soak.rest(before, most).unwrap_or_else(|error| panic!("after cycle {cycle}: {error:#}"));
        println!("cycle {cycle}: under load {load:?}, at rest {rest:?}; {}", soak.summary());
        seen.push((load, rest));
    }
    for kind in KINDS {
        assert!(soak.traffic.done(kind) > 10, "hardly any {kind:?}: {}", soak.summary());
    }
    assert!(soak.pods.load(Ordering::Relaxed) > 10, "hardly any pod came and went: {}", soak.summary());
    let (middle, last) = (seen[cycles / 2 - 1], seen[cycles - 1]);
    for (what, before, after) in [("at rest", middle.1, last.1), ("under load", middle.0, last.0)] {
        let grown = after.rss_kib.saturating_sub(before.rss_kib);
        assert!(grown <= GROWTH_KIB, "{grown} KiB more {what} than in the middle: {seen:?}");
    }
    let pods = soak.pods.load(Ordering::Relaxed) as usize;
    assert!(last.1.series < middle.1.series + pods / 4, "metrics of {pods} pods that are gone: {seen:?}");
}

impl Soak {
    fn new() -> Result<Self> {
        let deny = format!(
            "apiVersion: tunproxy.io/v1alpha1\nkind: ClusterEgressPolicy\nmetadata: {{name: soak}}\nspec:\n  \
             tier: Admin\n  subject: {{namespaces: {{}}}}\n  rules:\n  \
             - {{name: denied, action: Deny, ports: [{{protocol: TCP, port: {DENIED}}}]}}\n"
        );
        let world = World::new(&WorldOptions::for_path(Path::AfterPtp).with_policy(&deny))?;
        many_ports(&world.topology.node)?;
        let octets = Arc::new(Octets::new(LENGTH));
        servers::start(&world.topology.outside, &octets)?;
        let files = world.agent().state_files();
        Ok(Self { world, traffic: Traffic::new(octets), pods: AtomicU64::new(0), files })
    }

    /// Traffic of steady pods and of those that come and go; what the agent held in the middle of it, at most.
    fn cycle(&self, length: Duration) -> Result<Held> {
        let steady: Vec<Pod> = STEADY
            .iter()
            .enumerate()
            .map(|(number, path)| self.world.pod(*path, &format!("steady{number}")))
            .collect::<Result<_>>()?;
        steady.iter().try_for_each(|pod| many_ports(pod))?;
        let over = AtomicBool::new(false);
        let (ended, ends) = mpsc::channel();
        thread::scope(|scope| {
            let over = &over;
            for pod in &steady {
                let ended = ended.clone();
                scope.spawn(move || ended.send(self.traffic.run(pod, over)));
            }
            for path in COMING {
                let ended = ended.clone();
                scope.spawn(move || ended.send(self.come_and_go(path, over)));
            }
            let outcome = self.watch(length, &ends);
            over.store(true, Ordering::Relaxed);
            drop(ended);
            ends.iter().collect::<Result<()>>()?;
            outcome
        })
    }

    /// The most that was held, sampled until the time is over or somebody ends before it, which is a failure.
    fn watch(&self, length: Duration, ends: &mpsc::Receiver<Result<()>>) -> Result<Held> {
        let (began, mut most) = (Instant::now(), Held::default());
        while began.elapsed() < length {
            let step = Duration::from_millis(500).min(length.saturating_sub(began.elapsed()));
            match ends.recv_timeout(step) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(end) => return end.and(Err(anyhow::anyhow!("somebody ended by itself"))),
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("everybody ended"),
            }
            let now = Held::of(self.world.agent())?;
            most = Held {
                rss_kib: most.rss_kib.max(now.rss_kib),
                descriptors: most.descriptors.max(now.descriptors),
                flows: most.flows.max(now.flows),
                series: most.series.max(now.series),
            };
        }
        Ok(most)
    }

    /// Pods that do one of each kind and go, with a connection and a mapping still open.
    fn come_and_go(&self, path: Path, over: &AtomicBool) -> Result<()> {
        let network = Arc::new(self.world.network(path)?);
        while !over.load(Ordering::Relaxed) {
            let number = self.pods.fetch_add(1, Ordering::Relaxed);
            let namespace = self.world.topology.pod_namespace("coming")?;
            let identity = PodIdentity::new("default", &format!("coming{number}"), &[]);
            let mut attachment = network.attach(&self.world.topology.node, &namespace, &identity)?;
            let open = namespace.enter(|| -> Result<_> {
                KINDS.iter().try_for_each(|kind| self.traffic.once(*kind))?;
                traffic::connect(servers::address(servers::EXCHANGE, number))
            });
            let _open = open.with_context(|| format!("pod {number} on {path:?}"))?;
            attachment.detach()?;
        }
        Ok(())
    }

    /// Without pods, nothing may be held that was not held before the first, and no more than `most` KiB of memory.
    fn rest(&self, before: Held, most: u64) -> Result<Held> {
        let agent = self.world.agent();
        let is_as_before =
            |now: Held| now.flows == 0 && now.descriptors <= before.descriptors && now.rss_kib <= most;
        wait::until_true("no pod, flow and descriptor more than before, and its memory", SETTLED, || {
            agent.pods().is_ok_and(|pods| pods.is_empty()) && Held::of(agent).is_ok_and(is_as_before)
        })
        .with_context(|| format!("{:?}, before {before:?}", Held::of(agent)))?;
        ensure!(agent.state_files() == self.files, "left on disk: {:?}", agent.state_files());
        Held::of(agent)
    }

    fn summary(&self) -> String {
        let kinds: Vec<String> =
            KINDS.iter().map(|kind| format!("{} {kind:?}", self.traffic.done(*kind))).collect();
        let exchanged = (self.traffic.done(Kind::Exchange) * 2 * LENGTH as u64) >> 30;
        format!(
            "so far {} ({exchanged} GiB), {} datagrams lost, {} pods came and went",
            kinds.join(", "),
            self.traffic.lost(),
            self.pods.load(Ordering::Relaxed)
        )
    }
}

/// More connections are made than there are ports a minute.
fn many_ports(namespace: &Namespace) -> Result<()> {
    namespace.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
    namespace.sysctl("net.ipv4.ip_local_port_range", "1024 65000")
}
