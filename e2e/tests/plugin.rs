//! The real plugin and the real agent together: many pods at once, a plugin killed in the middle, an agent that cannot serve.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tunproxy_e2e::{Path, Report, World, WorldOptions, rows};
use tunproxy_testkit::cni::CniError;
use tunproxy_testkit::{Attachment, CniNetwork, Host, Namespace, PodIdentity, root_or_skip, wait};

const LIMIT: Duration = Duration::from_mins(1);
const PATHS: [Path; 2] = [Path::AfterPtp, Path::Standalone];

/// Everything that pods could leave on the node and with the agent.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    pods: usize,
    descriptors: usize,
    /// Below the directories of the agent and of the plugin.
    files: Vec<PathBuf>,
    links: BTreeSet<String>,
    processes: usize,
}

impl Traces {
    fn of(world: &World) -> Result<Self> {
        let node = &world.topology.node;
        Ok(Self {
            pods: world.agent().pods()?.len(),
            descriptors: world.agent().open_descriptors()?,
            files: world.agent().state_files(),
            links: node.links()?,
            processes: node.pids().len(),
        })
    }

    /// Some of it (a descriptor of an ended flow, a veth's other end) goes a moment after the call that ended it.
    fn come_back(&self, world: &World) -> Result<()> {
        wait::until_true("nothing left", LIMIT, || Self::of(world).is_ok_and(|now| now == *self))
            .with_context(|| format!("before: {self:?}\nnow: {:?}", Self::of(world)))
    }
}

/// Links, routing rules and routes (of every table but the kernel's own) as text, to compare.
fn network_of(pod: &Namespace) -> Result<(BTreeSet<String>, Vec<String>)> {
    let mut lines = rules(pod)?;
    for family in ["-4", "-6"] {
        let routes = pod.ip(&format!("{family} route show table all"))?;
        lines.extend(routes.lines().filter(|line| !line.contains("table local")).map(ToOwned::to_owned));
    }
    Ok((pod.links()?, lines))
}

fn code(error: &anyhow::Error) -> Option<(&str, i64)> {
    error.downcast_ref::<CniError>().map(|error| (error.plugin.as_str(), error.code))
}

/// One pod of a crowd: ADD, a real page by name over both families, and its network, to be DELed.
fn join(world: &World, network: &Arc<CniNetwork>, number: usize) -> Result<Attachment> {
    let name = format!("crowd-{number}");
    let namespace = world.topology.pod_namespace(&name)?;
    let identity = PodIdentity::new("default", &name, &[("app", "crowd")]);
    let attachment = network
        .attach(&world.topology.node, &namespace, &identity)
        .with_context(|| format!("ADD of {name}"))?;
    for family in ["-4", "-6"] {
        let text = namespace.run(&world.curl(&format!("{family} https://allowed.test/")))?;
        ensure!(text.starts_with("allowed.test over HTTP/2"), "{name}: {text}");
    }
    Ok(attachment)
}

/// All results of `work` on a thread for each number; the first failure of all.
fn at_once<T: Send, I: Send>(items: Vec<I>, work: impl Fn(I) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        let outcomes: Vec<Result<T>> =
            threads.into_iter().map(|thread| thread.join().expect("a pod's thread")).collect();
        outcomes.into_iter().collect()
    })
}

#[test]
fn thirty_pods_at_once() {
    const PODS: usize = 30;
    if !root_or_skip() {
        return;
    }
    let world = World::new(&WorldOptions::for_path(Path::AfterPtp)).unwrap();
    let networks = PATHS.map(|path| Arc::new(world.network(path).unwrap()));
    let before = Traces::of(&world).unwrap();
    let mut report = Report::default();
    let mut pods = Vec::new();
    report.row("30 ADDs at once, each pod fetches a page by name", || {
        pods = at_once((0..PODS).collect(), |number| join(&world, &networks[number % 2], number))?;
        Ok(())
    });
    report.row("the agent serves each of them, with addresses of its own", || {
        let served = world.agent().pods()?;
        ensure!(served.len() == PODS, "{} pods", served.len());
        ensure!(served.iter().all(|pod| pod["served"] == true), "{served:?}");
        let addresses: BTreeSet<_> = pods.iter().flat_map(Attachment::addresses).collect();
        ensure!(addresses.len() == 2 * PODS, "{} addresses", addresses.len());
        Ok(())
    });
    report.row("30 DELs at once leave the pods' namespaces empty", || {
        at_once(std::mem::take(&mut pods), |mut pod| {
            pod.detach()?;
            let left = pod.pod().links()?;
            ensure!(left.len() == 1, "{left:?} in {}", pod.container());
            Ok(())
        })
        .map(drop)
    });
    report.row("nothing is left on the node or with the agent", || before.come_back(&world));
    report.row("every address is given back", || no_leases(&networks));
    report.row("no leak", || rows::no_leak(&world, Path::AfterPtp));
    report.finish();
}

fn no_leases(networks: &[Arc<CniNetwork>]) -> Result<()> {
    let leases: Vec<String> = networks.iter().flat_map(|network| network.leases()).collect();
    ensure!(leases.is_empty(), "{leases:?}");
    Ok(())
}

/// A place where the plugin is killed again and again.
struct Killing<'a> {
    world: &'a World,
    network: Arc<CniNetwork>,
    pod: Arc<Namespace>,
    identity: PodIdentity,
    /// Of the pod before any ADD and of the node.
    empty: (BTreeSet<String>, Vec<String>),
    before: Traces,
}

impl<'a> Killing<'a> {
    fn new(world: &'a World, path: Path) -> Result<Self> {
        let network = Arc::new(world.network(path)?);
        let pod = world.topology.pod_namespace("victim")?;
        let identity = PodIdentity::new("default", "victim", &[]);
        let (empty, before) = (network_of(&pod)?, Traces::of(world)?);
        Ok(Self { world, network, pod, identity, empty, before })
    }

    fn attachment(&self) -> Attachment {
        self.network.attachment(&self.world.topology.node, &self.pod, &self.identity)
    }

    /// The length of a whole ADD of our plugin.
    fn length(&self) -> Result<Duration> {
        let mut attachment = self.attachment();
        attachment.add()?;
        let took = attachment.calls().last().context("no call")?.took;
        attachment.detach()?;
        Ok(took)
    }

    /// Kills one ADD and takes it down. True when the kill came in the middle: after something was made in the pod and
    /// before the plugin had ended.
    fn strike(&self, after: Duration) -> Result<bool> {
        let mut attachment = self.attachment();
        let status = attachment.add_interrupted(after)?;
        let middle = status.signal() == Some(9) && pod_has_tun(&self.pod)?;
        attachment.detach().context("DEL")?;
        let left = network_of(&self.pod)?;
        ensure!(left == self.empty, "left in the pod: {left:?} instead of {:?}", self.empty);
        no_leases(std::slice::from_ref(&self.network))?;
        self.before.come_back(self.world)?;
        Ok(middle)
    }

    fn works(&self) -> Result<()> {
        let mut attachment = self.attachment();
        attachment.add()?;
        let text = self.pod.run(&self.world.curl("https://allowed.test/"))?;
        ensure!(text.starts_with("allowed.test"), "{text}");
        attachment.detach()
    }
}

fn pod_has_tun(pod: &Namespace) -> Result<bool> {
    Ok(pod.ip_json("link show type tun")?.as_array().is_some_and(|links| !links.is_empty()))
}

/// SIGKILL at moments spread over the length of an ADD, with more of them until one came in the middle.
fn killed(path: Path) {
    const MOMENTS: u32 = 40;
    if !root_or_skip() {
        return;
    }
    let world = World::new(&WorldOptions::for_path(path)).unwrap();
    let killing = Killing::new(&world, path).unwrap();
    let mut random = fastrand::Rng::with_seed(40);
    let mut report = Report::default();
    report.row("killed at 40 moments of ADD, DEL clears up", || {
        let length = killing.length()?;
        let (mut middle, mut struck) = (0, 0);
        while struck < MOMENTS || (middle == 0 && struck < 10 * MOMENTS) {
            let place = (f64::from(struck % MOMENTS) + random.f64()) / f64::from(MOMENTS);
            let after = length.mul_f64(place);
            let hit =
                killing.strike(after).with_context(|| format!("killed after {after:?} of {length:?}"))?;
            middle += u32::from(hit);
            struck += 1;
        }
        println!("{path:?}: {middle} of {struck} kills came in the middle of an ADD of {length:?}");
        ensure!(middle > 0, "none of {struck} kills came in the middle");
        Ok(())
    });
    report.row("ADD works as before", || killing.works());
    report.row("and leaves nothing", || killing.before.come_back(&world));
    report.finish();
}

#[test]
fn a_killed_chained_add_leaves_nothing_after_del() {
    killed(Path::AfterPtp);
}

#[test]
fn a_killed_standalone_add_leaves_nothing_after_del() {
    killed(Path::Standalone);
}

/// ADD fails with `code` of our plugin, and leaves in the pod what the plugin before it made and no more.
fn refused_without_traces(world: &World, path: Path, code_wanted: i64) -> Result<CniError> {
    let network = Arc::new(world.network(path)?);
    let pod = world.topology.pod_namespace("refused")?;
    let mut attachment =
        network.attachment(&world.topology.node, &pod, &PodIdentity::new("default", "refused", &[]));
    let (links_before, rules_before) = (pod.links()?, rules(&pod)?);
    let error = attachment.add().err().context("ADD succeeded")?;
    ensure!(code(&error) == Some(("tunproxy", code_wanted)), "{error:#}");
    let mut left = pod.links()?;
    if path != Path::Standalone {
        left.remove("eth0");
    }
    ensure!(left == links_before, "{left:?} in the pod");
    ensure!(rules(&pod)? == rules_before, "rules: {:?}", rules(&pod)?);
    attachment.detach().context("the DEL after a failed ADD")?;
    no_leases(&[network])?;
    Ok(error.downcast::<CniError>().expect("checked above"))
}

fn rules(pod: &Namespace) -> Result<Vec<String>> {
    let all = [pod.ip("-4 rule")?, pod.ip("-6 rule")?];
    Ok(all.iter().flat_map(|text| text.lines()).map(ToOwned::to_owned).collect())
}

#[test]
fn without_an_agent_nothing_is_made() {
    if !root_or_skip() {
        return;
    }
    let mut world = World::new(&WorldOptions::for_path(Path::AfterPtp)).unwrap();
    world.agent.as_mut().unwrap().kill().unwrap();
    let before = world.topology.node.links().unwrap();
    let mut report = Report::default();
    for path in PATHS {
        report.row(format!("{path:?}: code 11, and no traces"), || {
            let error = refused_without_traces(&world, path, 11)?;
            ensure!(error.message.contains("cni.sock"), "it must name the socket: {error}");
            Ok(())
        });
    }
    report.row("no link is left on the node", || {
        wait::until_true("the links of before", LIMIT, || {
            world.topology.node.links().is_ok_and(|now| now == before)
        })
    });
    report.finish();
}

const BROKEN: &str = "apiVersion: tunproxy.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: p, namespace: default}\nspec:\n  rules:\n  \
                      - {name: x, action: Allow, to: [{networks: [10.0.0.0/33]}]}\n";
const OPEN: &str = "apiVersion: tunproxy.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: p, namespace: default}\nspec:\n  rules:\n  \
                    - {name: x, action: Allow, to: [{networks: [0.0.0.0/0, \"::/0\"]}]}\n";

/// An agent that starts with a broken policy refuses everything: pods that it has, and pods that want to come.
#[test]
fn an_agent_that_starts_with_a_broken_policy_takes_no_pod() {
    if !root_or_skip() {
        return;
    }
    let mut world = World::new(&WorldOptions::for_path(Path::AfterPtp).with_policy(OPEN)).unwrap();
    let pod = world.pod(Path::AfterPtp, "earlier").unwrap();
    let web = SocketAddr::new(Host::Web.v4().into(), 80);
    let reached = |pod: &Namespace| pod.tcp_connect(web, Duration::from_secs(30));
    reached(&pod).unwrap();
    let agent = world.agent.as_mut().unwrap();
    agent.kill().unwrap();
    agent.write_policy("00.yaml", BROKEN).unwrap();
    agent.start_again_unready().unwrap();
    let mut report = Report::default();
    report.row("it is not ready, and names the mistake's place", || {
        let (status, body) = world.agent().readiness()?;
        ensure!(status == 503, "{status} {body}");
        let page = world.agent().admin("/status")?;
        ensure!(page.contains("00.yaml:6"), "{page}");
        Ok(())
    });
    report.row("a pod that it has is refused at once", || {
        let error = reached(&pod).err().context("connected")?;
        ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "{error}");
        Ok(())
    });
    for path in PATHS {
        report.row(format!("{path:?}: ADD answers code 11, and leaves nothing"), || {
            refused_without_traces(&world, path, 11).map(drop)
        });
    }
    report.row("mended, it takes pods again", || {
        world.agent().write_policy("00.yaml", OPEN)?;
        wait::until_true("ready", LIMIT, || {
            world.agent().readiness().is_ok_and(|(status, _)| status == 200)
        })?;
        let later = world.pod(Path::AfterPtp, "later")?;
        reached(&later).context("a new pod")?;
        reached(&pod).context("the earlier pod").map(drop)
    });
    report.row("no leak", || rows::no_leak(&world, Path::AfterPtp));
    report.finish();
}
