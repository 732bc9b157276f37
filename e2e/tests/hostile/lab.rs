//! The hostile pod, the pod beside it, and what the agent counts of what the hostile one sends.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tunproxy_e2e::{Path, Pod, World, WorldOptions};
use tunproxy_testkit::agent::PodCounts;
use tunproxy_testkit::process::{output_with_input, run};
use tunproxy_testkit::raw::{self, Pace};
use tunproxy_testkit::{Host, packet, wait};

pub const LIMIT: Duration = Duration::from_mins(1);
/// What the agent may grow by while it is attacked: its pools and tables are bounded per pod.
const MEMORY_KIB: u64 = 96 * 1024;
/// Packets that end a flood, from so many ports that each queue of the TUN gets some.
const MARKS: u16 = 64;

pub struct Lab {
    /// Dropped (and DELed) while their agent is still there.
    pub hostile: Pod,
    pub other: Pod,
    pub world: World,
    pub tun: String,
    /// The hostile pod's own addresses.
    pub v4: IpAddr,
    pub v6: IpAddr,
    memory: u64,
    pub descriptors: usize,
    /// Tests that take all of the machine are not to starve each other.
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    pub fn new(options: &WorldOptions) -> Result<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let world = World::new(options)?;
        let hostile = world.pod(Path::AfterPtp, "hostile")?;
        let other = world.pod(Path::AfterPtp, "other")?;
        let links = hostile.ip_json("link show type tun")?;
        let tun = links[0]["ifname"].as_str().context("the pod has no TUN")?.to_owned();
        let addresses = hostile.attachment().addresses();
        let find = |v4: bool| addresses.iter().copied().find(|ip| ip.is_ipv4() == v4).context("an address");
        let (v4, v6) = (find(true)?, find(false)?);
        works(&world, &other)?;
        let (memory, descriptors) = (world.agent().rss_kib()?, world.agent().open_descriptors()?);
        Ok(Self { hostile, other, world, tun, v4, v6, memory, descriptors, _turn: turn })
    }

    /// From now on the pod's own kernel says nothing: it would reset connections that it knows nothing of, and what the
    /// agent counts is to be ours alone. Packet sockets are past nftables.
    pub fn silence(&self) -> Result<()> {
        let quiet =
            "table inet quiet {\nchain out {\ntype filter hook output priority 0; policy drop;\n}\n}\n";
        let output = output_with_input(self.hostile.command("nft").args(["-f", "-"]), quiet.as_bytes())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    pub fn let_speak(&self) -> Result<()> {
        run(self.hostile.command("nft").args(["delete", "table", "inet", "quiet"])).map(drop)
    }

    pub fn own(&self, like: SocketAddr) -> IpAddr {
        if like.is_ipv4() { self.v4 } else { self.v6 }
    }

    /// An end of the pod and one outside, for each family.
    pub fn pairs(&self) -> [(SocketAddr, SocketAddr); 2] {
        [
            (SocketAddr::new(self.v4, 40_000), SocketAddr::new(Host::Web.v4().into(), 80)),
            (SocketAddr::new(self.v6, 40_000), SocketAddr::new(Host::Web.v6().into(), 80)),
        ]
    }

    pub fn counts(&self) -> Result<PodCounts> {
        self.world.agent().counts("hostile")
    }

    /// Sends, and gives what was counted from the first to the last of these packets. The other pod is used meanwhile: it
    /// must not notice, during the attack and not only after it. Of a flood the marks that end it are taken out again.
    pub fn send(&self, pace: Pace, packets: impl IntoIterator<Item = Vec<u8>> + Send) -> Result<PodCounts> {
        let before = self.counts()?;
        let sent = self.while_other_works(|| raw::send_all(&self.hostile, &self.tun, pace, packets))?;
        ensure!(sent.carried > 0, "nothing of {} packets got into the TUN", sent.offered);
        let marks = match pace {
            Pace::Flood => self.drain()?,
            Pace::AsTaken => 0,
        };
        // Each was read by the agent already, or stands before a mark that was; the last may not be counted yet.
        let mut counts = wait::until("all to be counted", LIMIT, || {
            let counts = self.counts().ok()?.since(&before);
            let enough = counts.total("packetsIn").is_ok_and(|packets| packets >= sent.carried + marks);
            enough.then_some(counts)
        })?;
        let packets = counts.total("packetsIn")? - marks;
        if pace == Pace::AsTaken {
            ensure!(packets == sent.offered, "{packets} of {} packets were counted", sent.offered);
        }
        counts.totals.insert("packetsIn".to_owned(), packets);
        if marks > 0 {
            let others = counts.dropped("land").checked_sub(marks).context("a mark is missing")?;
            counts.drops.insert("land".to_owned(), others);
            counts.drops.retain(|_, count| *count > 0);
        }
        println!("{sent:?}: {packets} counted, of those {:?}", counts.drops);
        Ok(counts)
    }

    fn while_other_works<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let prober = scope.spawn(|| -> Result<()> {
                loop {
                    works(&self.world, &self.other).context("the other pod, during the attack")?;
                    if over.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                }
            });
            let outcome = work();
            over.store(true, Ordering::Relaxed);
            prober.join().expect("the other pod's thread")?;
            outcome
        })
    }

    /// Waits until nothing of a flood waits in the TUN any more: each queue keeps its order, so what was sent before marks
    /// that arrived has arrived too. Returns how many marks arrived.
    fn drain(&self) -> Result<u64> {
        let marks = || (0..MARKS).map(|port| (SocketAddr::new(self.v4, 1_000 + port), (self.v4, 9).into()));
        let mut arrived = 0;
        loop {
            let (land, lost) = (self.counts()?.dropped("land"), raw::dropped(&self.hostile, &self.tun)?);
            let packets = marks().map(|(from, to)| packet::udp(from, to, b"mark"));
            raw::send_all(&self.hostile, &self.tun, Pace::AsTaken, packets)?;
            let lost = raw::dropped(&self.hostile, &self.tun)? - lost;
            let taken = u64::from(MARKS) - lost;
            let counted = || self.counts().is_ok_and(|counts| counts.dropped("land") >= land + taken);
            wait::until_true("the marks to arrive", LIMIT, counted)?;
            arrived += taken;
            if lost == 0 {
                return Ok(arrived);
            }
        }
    }

    /// Sends; exactly `expected` must be counted as dropped; then the agent must live, be bounded, and serve the other pod.
    pub fn attack(&self, expected: &[(&str, u64)], packets: Vec<Vec<u8>>) -> Result<()> {
        let mut counts = self.send(Pace::AsTaken, packets)?;
        // Counts answers that were not sent, not packets that came.
        counts.drops.remove("error-rate");
        let expected = expected.iter().map(|&(reason, count)| (reason.to_owned(), count)).collect();
        ensure!(counts.drops == expected, "dropped: {:?} instead of {expected:?}", counts.drops);
        self.survived()
    }

    pub fn survived(&self) -> Result<()> {
        works(&self.world, &self.other).context("the other pod")?;
        let grown = self.world.agent().rss_kib()?.saturating_sub(self.memory);
        ensure!(grown < MEMORY_KIB, "the agent grew by {grown} KiB");
        Ok(())
    }

    /// How the pod's flows to `destination` ended, by the flow log.
    pub fn ends(&self, destination: SocketAddr) -> Vec<String> {
        let destination = destination.to_string();
        let ours = |flow: &Value| flow["pod"]["name"] == "hostile" && flow["destination"] == *destination;
        let flows = self.world.agent().flows();
        flows
            .iter()
            .filter(|flow| ours(flow))
            .filter_map(|flow| Some(flow["close"].as_str()?.to_owned()))
            .collect()
    }

    /// Records that the flow log's queue had no room for.
    pub fn unlogged(&self) -> Result<u64> {
        let status: Value = serde_json::from_str(&self.world.agent().admin("/status")?)?;
        status["flowLog"]["dropped"].as_u64().with_context(|| format!("no dropped in {}", status["flowLog"]))
    }
}

pub fn works(world: &World, pod: &Pod) -> Result<()> {
    for family in ["-4", "-6"] {
        let text = pod.run(&world.curl(&format!("{family} https://allowed.test/")))?;
        ensure!(text.starts_with("allowed.test"), "{text}");
    }
    Ok(())
}
