//! `tunproxy-agent serve` with pods that are really attached: the test plays the plugin.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use rustix::process::Signal;
use serde_json::Value;
use tunproxy_ipc::{
    AttachRequest, Attachment, AttachmentKey, Client, ClientError, Connection, ErrorCode, GcRequest, Mode,
    NamespaceId, PodIdentity, PrepareRequest, Request, Response, Tombstones,
};
use tunproxy_linux_net::naming::Owner;
use tunproxy_linux_net::tun::{self, TunSpec};
use tunproxy_linux_net::{NetNs, Netlink};
use tunproxy_testkit::process::Background;
use tunproxy_testkit::{Host, Namespace, Topology, Wire, root_or_skip, wait};

const AGENT: &str = env!("CARGO_BIN_EXE_tunproxy-agent");
const LIMIT: Duration = Duration::from_secs(20);
const WEB_PORT: u16 = 7000;

const DENY_WEB: &str = "\
apiVersion: tunproxy.io/v1alpha1
kind: ClusterEgressPolicy
metadata: {name: no-web}
spec:
  subject: {namespaces: {}}
  tier: Admin
  rules:
  - {name: web, action: Deny, ports: [{protocol: TCP, port: 7000}]}
";

/// A node with an agent, and a web server outside.
struct Lab {
    topology: Topology,
    files: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let topology = Topology::new(Wire::Veth).unwrap();
        let listener = topology.outside.tcp_listen(web()).unwrap();
        std::thread::spawn(move || answer_all(&listener));
        let files = tempfile::tempdir().unwrap();
        fs::create_dir(files.path().join("policies")).unwrap();
        let here = files.path().display();
        let config = format!(
            "cniSocket: {here}/cni.sock\nstateDir: {here}/state\npluginStateDir: {here}/plugin\nworkers: 2\n\
             policy: [{here}/policies]\nflowLog: {{path: {here}/flows.jsonl}}\n\
             admin: {{socket: {here}/admin.sock, metrics: none}}\n"
        );
        fs::write(files.path().join("agent.yaml"), config).unwrap();
        Self { topology, files }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Starts an agent and waits until it serves its admin socket.
    fn agent(&self) -> Background {
        let mut command = self.topology.node.command_with_resolver(AGENT);
        command.args(["serve", "--config"]).arg(self.path("agent.yaml"));
        let mut agent = Background::spawn(&mut command, "agent", &self.path("agent.log")).unwrap();
        agent.wait_ready(LIMIT, || self.get("/status").is_some_and(|(_, body)| started(&body))).unwrap();
        agent
    }

    fn write_policy(&self, text: &str) {
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path("policies/policy.yaml")).unwrap();
    }

    fn get(&self, page: &str) -> Option<(u16, String)> {
        let mut stream = UnixStream::connect(self.path("admin.sock")).ok()?;
        stream
            .write_all(format!("GET {page} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes())
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split_whitespace().nth(1)?.parse().ok()?, body.to_owned()))
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status").unwrap().1).unwrap()
    }

    fn ask(&self, request: &Request) -> Result<Response, ClientError> {
        Client::connect(&self.path("cni.sock"), Instant::now() + LIMIT)?.call(request, &[])
    }

    fn kept(&self) -> usize {
        fs::read_dir(self.path("state/attachments")).unwrap().count()
    }
}

fn started(status: &str) -> bool {
    !status.contains("the agent is starting")
}

fn web() -> SocketAddr {
    SocketAddr::new(Host::Web.v4().into(), WEB_PORT)
}

fn answer_all(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        // Only who asks is answered.
        if stream.read_exact(&mut [0]).is_ok() {
            let _ = stream.write_all(b"hello");
        }
    }
}

fn ask_for_greeting(mut stream: TcpStream) -> std::io::Result<String> {
    stream.write_all(b"?")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// A connection to the agent that is nobody's client: it need not wait for an answer.
fn seqpacket(path: &Path) -> Connection {
    let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    Connection::from(socket)
}

/// A pod whose only interface is a TUN, plumbed with `ip`.
struct Pod {
    namespace: Arc<Namespace>,
    attachment: Attachment,
}

impl Pod {
    fn create(lab: &Lab, id: &str) -> Self {
        let namespace = lab.topology.pod_namespace(id).unwrap();
        let netns = NetNs::open(&namespace.path()).unwrap();
        let attachment = Attachment {
            key: AttachmentKey { container_id: id.into(), ifname: "eth0".into() },
            network: "net".into(),
            mode: Mode::Standalone,
            tun_name: "eth0".into(),
            queues: 2,
            mtu: 1500,
            netns_path: namespace.path(),
            netns: NamespaceId { device: netns.id().device, inode: netns.id().inode },
            addresses: vec![tunproxy_ipc::InterfaceAddress("10.244.0.9/32".parse().unwrap())],
            pod: PodIdentity {
                namespace: "shop".into(),
                name: id.into(),
                uid: "u".into(),
                labels: BTreeMap::new(),
            },
        };
        Self { namespace, attachment }
    }

    fn key(&self) -> AttachmentKey {
        self.attachment.key.clone()
    }

    /// What the plugin does on ADD: ask, plumb, attach.
    fn add(&self, lab: &Lab) -> Result<Response, ClientError> {
        let Attachment { key, pod, network, .. } = self.attachment.clone();
        let prepare =
            PrepareRequest { key, netns_path: self.namespace.path(), pod, mode: Mode::Standalone, network };
        let mut client = Client::connect(&lab.path("cni.sock"), Instant::now() + LIMIT)?;
        let Response::Settings(settings) = client.call(&Request::Prepare(prepare), &[])? else { panic!() };
        assert_eq!((settings.enrolled, settings.queues), (true, 2));
        let fds = self.plumb();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        client.call(&Request::Attach(AttachRequest { attachment: self.attachment.clone() }), &fds)
    }

    /// An ADD that is killed when it has sent its Attach: the agent is stopped meanwhile, so that it cannot have answered.
    fn add_and_die(&self, lab: &Lab, agent: &Background) {
        let fds = self.plumb();
        agent.signal(Signal::STOP).unwrap();
        let plugin = seqpacket(&lab.path("cni.sock"));
        let request = Request::Attach(AttachRequest { attachment: self.attachment.clone() });
        plugin.send_request(&request, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>()).unwrap();
        drop(plugin);
        agent.signal(Signal::CONT).unwrap();
    }

    /// The namespace and the queues of its TUN.
    fn plumb(&self) -> Vec<OwnedFd> {
        let netns = NetNs::open(&self.namespace.path()).unwrap();
        let tun = netns.run(|| self.open_tun()).unwrap();
        [netns.as_fd().try_clone_to_owned().unwrap()].into_iter().chain(tun.queues).collect()
    }

    fn open_tun(&self) -> tunproxy_linux_net::Tun {
        let mut netlink = Netlink::open().unwrap();
        if netlink.link("eth0").unwrap().is_some() {
            return tun::reopen(&mut netlink, "eth0", 2).unwrap();
        }
        let owner = Owner { container_id: self.attachment.key.container_id.clone(), ifname: "eth0".into() };
        let spec = TunSpec { name: "eth0", queues: 2, mtu: 1500, persistent: Some(&owner) };
        let tun = tun::create(&mut netlink, &spec).unwrap();
        for line in ["link set eth0 up", "addr add 10.244.0.9/32 dev eth0", "route add default dev eth0"] {
            self.namespace.ip(line).unwrap();
        }
        tun
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = self.namespace.tcp_connect(web(), LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(stream)
    }

    /// What the pod's program sees of the web server.
    fn fetch(&self) -> std::io::Result<String> {
        ask_for_greeting(self.connect()?)
    }

    fn is_refused(&self) -> bool {
        self.fetch().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    }
}

#[test]
fn a_pod_is_served_over_restarts_until_it_is_detached() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let mut agent = lab.agent();
    let pod = Pod::create(&lab, "c1");
    assert_eq!(pod.add(&lab).unwrap(), Response::Attached);
    assert_eq!(pod.fetch().unwrap(), "hello");
    assert_eq!(lab.kept(), 1);
    assert_eq!(pod.add(&lab).unwrap(), Response::Attached, "the same ADD again converges");
    assert_eq!(pod.fetch().unwrap(), "hello");

    agent.kill().unwrap();
    assert!(
        pod.namespace.tcp_connect(web(), Duration::from_millis(300)).is_err(),
        "nothing passes without an agent"
    );
    agent = lab.agent();
    assert_eq!(pod.fetch().unwrap(), "hello", "served again without the plugin");
    let check = lab.ask(&Request::Check(pod.key())).unwrap();
    assert!(matches!(check, Response::Checked(checked) if checked.ok));

    for _ in 0..2 {
        assert_eq!(lab.ask(&Request::Detach(pod.key())).unwrap(), Response::Detached);
    }
    assert_eq!(lab.kept(), 0);
    assert!(lab.status()["pods"].as_array().unwrap().is_empty());
    let check = lab.ask(&Request::Check(pod.key())).unwrap();
    assert!(matches!(check, Response::Checked(checked) if !checked.ok));

    agent.signal(Signal::TERM).unwrap();
    assert!(agent.wait(LIMIT).unwrap().success());
    assert!(!lab.path("cni.sock").exists() && !lab.path("admin.sock").exists());
    let flows = fs::read_to_string(lab.path("flows.jsonl")).unwrap();
    let flow: Value = serde_json::from_str(flows.lines().next().unwrap()).unwrap();
    assert_eq!((&flow["pod"]["name"], &flow["verdict"]), (&"c1".into(), &"allowed".into()));
}

#[test]
fn a_repeated_attach_takes_over_the_queues_and_leaves_the_flows() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let agent = lab.agent();
    let pod = Pod::create(&lab, "c1");
    pod.add(&lab).unwrap();
    let stream = pod.connect().unwrap();
    // More often than the kernel has queues for: the old ones are really closed.
    for _ in 0..200 {
        assert_eq!(pod.add(&lab).unwrap(), Response::Attached);
    }
    assert_eq!(ask_for_greeting(stream).unwrap(), "hello", "the flow of before goes on");
    assert_eq!(pod.fetch().unwrap(), "hello");
    assert_eq!(lab.status()["pods"].as_array().unwrap().len(), 1);

    pod.add_and_die(&lab, &agent);
    wait::until_true("the repeated attach", LIMIT, || agent.log().matches("attached again").count() == 201)
        .unwrap();
    assert_eq!(pod.fetch().unwrap(), "hello", "a repeated ADD that is killed leaves the pod as it was");

    // What the pod is has changed: its flows belong to another pod now, and end.
    let stream = pod.connect().unwrap();
    let mut renamed = pod;
    renamed.attachment.pod.name = "c1b".into();
    renamed.add(&lab).unwrap();
    assert!(ask_for_greeting(stream).is_err(), "the flow of another identity ends");
    assert_eq!(renamed.fetch().unwrap(), "hello");
}

#[test]
fn an_attach_whose_plugin_was_killed_does_not_stay_behind_its_del() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let agent = lab.agent();
    let pod = Pod::create(&lab, "c1");
    // The DEL was faster: its connection was served before that of the ADD.
    assert_eq!(lab.ask(&Request::Detach(pod.key())).unwrap(), Response::Detached);
    pod.add_and_die(&lab, &agent);
    wait::until_true("the late attach to be taken back", LIMIT, || agent.log().contains("taken back"))
        .unwrap();
    let check = lab.ask(&Request::Check(pod.key())).unwrap();
    assert!(matches!(check, Response::Checked(checked) if !checked.ok));
    assert_eq!(lab.kept(), 0, "nor does it stay on disk");
    assert_eq!(pod.add(&lab).unwrap(), Response::Attached, "the next ADD is like any other");
    assert_eq!(pod.fetch().unwrap(), "hello");
}

#[test]
fn a_collected_pod_that_lives_on_loses_its_plumbing() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let _agent = lab.agent();
    let [stale, valid] = ["c1", "c2"].map(|id| Pod::create(&lab, id));
    for pod in [&stale, &valid] {
        pod.add(&lab).unwrap();
    }
    let request = Request::Gc(GcRequest { network: "net".into(), valid: vec![valid.key()] });
    assert_eq!(lab.ask(&request).unwrap(), Response::Collected { removed: vec![stale.key()] });
    assert!(!stale.namespace.ip("-o link").unwrap().contains("eth0"), "the TUN is gone with the attachment");
    assert!(valid.namespace.ip("-o link").unwrap().contains("eth0"));
    assert_eq!(valid.fetch().unwrap(), "hello");
}

#[test]
fn an_edit_is_in_force_at_once_and_a_broken_one_changes_nothing() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let _agent = lab.agent();
    let pod = Pod::create(&lab, "c1");
    pod.add(&lab).unwrap();
    assert_eq!(pod.fetch().unwrap(), "hello");

    let edited = Instant::now();
    lab.write_policy(DENY_WEB);
    wait::until_true("the refusal", LIMIT, || pod.is_refused()).unwrap();
    assert!(edited.elapsed() < Duration::from_secs(2), "{:?}", edited.elapsed());

    lab.write_policy(&DENY_WEB.replace("action: Deny", "action: Denny"));
    wait::until_true("the mistake on the status page", LIMIT, || {
        lab.status()["policies"]["mistakes"].to_string().contains("policy.yaml:8: ")
    })
    .unwrap();
    assert!(pod.is_refused(), "the last good policies stay");
    assert_eq!(lab.get("/readyz").unwrap().0, 200);

    fs::remove_file(lab.path("policies/policy.yaml")).unwrap();
    wait::until_true("the end of the refusal", LIMIT, || pod.fetch().is_ok()).unwrap();
    let metrics = lab.get("/metrics").unwrap().1;
    for line in [
        "tunproxy_ready 1",
        "tunproxy_pods 1",
        "tunproxy_policy_mistakes 0",
        "tunproxy_flows_total{verdict=\"denied\"",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn without_a_good_policy_no_pod_starts_and_running_ones_are_refused() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let mut agent = lab.agent();
    let pod = Pod::create(&lab, "c1");
    pod.add(&lab).unwrap();
    agent.kill().unwrap();
    lab.write_policy("kind: Nonsense\n");
    let _agent = lab.agent();
    assert!(pod.is_refused(), "it fails closed");
    assert_eq!(lab.get("/readyz").unwrap().0, 503);
    let error = Pod::create(&lab, "c2").add(&lab).unwrap_err();
    let ClientError::Refused(failure) = error else { panic!("{error}") };
    assert_eq!(failure.code, ErrorCode::NotReady);
    assert!(failure.message.contains("policy.yaml:1: "), "{}", failure.message);
    let Response::Status(status) = lab.ask(&Request::Status).unwrap() else { panic!() };
    assert!(!status.ready && status.degraded);

    lab.write_policy("");
    fs::remove_file(lab.path("policies/policy.yaml")).unwrap();
    wait::until_true("service after the mending", LIMIT, || pod.fetch().is_ok()).unwrap();
}

#[test]
fn what_went_away_is_forgotten_however_it_went() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let mut agent = lab.agent();
    let [buried, vanished, collected] = ["c1", "c2", "c3"].map(|id| Pod::create(&lab, id));
    for pod in [&buried, &vanished, &collected] {
        pod.add(&lab).unwrap();
    }
    let valid = vec![buried.key(), vanished.key()];
    let other = GcRequest { network: "other".into(), valid: Vec::new() };
    assert_eq!(lab.ask(&Request::Gc(other)).unwrap(), Response::Collected { removed: Vec::new() });
    let removed = vec![collected.key()];
    let request = Request::Gc(GcRequest { network: "net".into(), valid });
    assert_eq!(lab.ask(&request).unwrap(), Response::Collected { removed });

    agent.kill().unwrap();
    Tombstones::new(&lab.path("plugin")).write(&buried.key()).unwrap();
    drop(vanished);
    let _agent = lab.agent();
    assert_eq!(lab.kept(), 0);
    assert_eq!(Tombstones::new(&lab.path("plugin")).read().unwrap(), []);
}

#[test]
fn another_pod_under_a_living_key_and_foreign_descriptors_are_refused() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let _agent = lab.agent();
    let pod = Pod::create(&lab, "c1");
    pod.add(&lab).unwrap();
    let mut other = Pod::create(&lab, "c2");
    other.attachment.key = pod.key();
    let ClientError::Refused(failure) = other.add(&lab).unwrap_err() else { panic!() };
    assert_eq!(failure.code, ErrorCode::Conflict);
    assert_eq!(pod.fetch().unwrap(), "hello", "the first is not disturbed");

    let mut client = Client::connect(&lab.path("cni.sock"), Instant::now() + LIMIT).unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    let request = Request::Attach(AttachRequest { attachment: other.attachment.clone() });
    for fds in [&[][..], &[file.as_fd()], &[file.as_fd(), file.as_fd(), file.as_fd()]] {
        let Err(ClientError::Refused(failure)) = client.call(&request, fds) else { panic!("{fds:?}") };
        assert_eq!(failure.code, ErrorCode::BadRequest, "{}", failure.message);
    }
}

#[test]
fn a_second_agent_is_refused_and_the_first_goes_on() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let _agent = lab.agent();
    let mut second = lab.topology.node.command_with_resolver(AGENT);
    let output = second.args(["serve", "--config"]).arg(lab.path("agent.yaml")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("is in use by another agent"), "{said}");
    assert!(Path::exists(&lab.path("cni.sock")));
    assert_eq!(lab.get("/readyz").unwrap().0, 200);
}
