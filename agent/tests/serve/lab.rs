//! A node with an agent, a web server outside, and pods whose plugin is the test.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::Signal;
use serde_json::Value;
use tunproxy_ipc::{
    AttachRequest, Attachment, AttachmentKey, Client, ClientError, Connection, Mode, NamespaceId,
    PodIdentity, PrepareRequest, Request, Response,
};
use tunproxy_linux_net::naming::Owner;
use tunproxy_linux_net::tun::{self, TunSpec};
use tunproxy_linux_net::{NetNs, Netlink};
use tunproxy_testkit::process::Background;
use tunproxy_testkit::{Host, Namespace, Topology, Wire, wait};

pub const AGENT: &str = env!("CARGO_BIN_EXE_tunproxy-agent");
pub const LIMIT: Duration = Duration::from_mins(1);
pub const WEB_PORT: u16 = 7000;

/// A node with an agent, and a web server outside.
pub struct Lab {
    pub topology: Topology,
    files: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Starts an agent and waits until it serves its admin socket.
    pub fn agent(&self) -> Background {
        self.agent_with(&[])
    }

    /// The same with some settings as variables.
    pub fn agent_with(&self, settings: &[(&str, &str)]) -> Background {
        let mut command = self.topology.node.command_with_resolver(AGENT);
        command.args(["serve", "--config"]).arg(self.path("agent.yaml"));
        command.envs(settings.iter().copied());
        let mut agent = Background::spawn(&mut command, "agent", &self.path("agent.log")).unwrap();
        agent.wait_ready(LIMIT, || self.get("/status").is_some_and(|(_, body)| started(&body))).unwrap();
        agent
    }

    pub fn write_policy(&self, text: &str) {
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path("policies/policy.yaml")).unwrap();
    }

    pub fn get(&self, page: &str) -> Option<(u16, String)> {
        let mut stream = UnixStream::connect(self.path("admin.sock")).ok()?;
        stream
            .write_all(format!("GET {page} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes())
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split_whitespace().nth(1)?.parse().ok()?, body.to_owned()))
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status").unwrap().1).unwrap()
    }

    pub fn ask(&self, request: &Request) -> Result<Response, ClientError> {
        Client::connect(&self.path("cni.sock"), Instant::now() + LIMIT)?.call(request, &[])
    }

    /// The flow log so far.
    pub fn flows(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("flows.jsonl")).unwrap_or_default();
        // The last line may be half written.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    pub fn kept(&self) -> usize {
        fs::read_dir(self.path("state/attachments")).unwrap().count()
    }
}

pub fn started(status: &str) -> bool {
    !status.contains("the agent is starting")
}

pub fn web() -> SocketAddr {
    SocketAddr::new(Host::Web.v4().into(), WEB_PORT)
}

pub fn answer_all(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        // Only who asks is answered.
        if stream.read_exact(&mut [0]).is_ok() {
            let _ = stream.write_all(b"hello");
        }
    }
}

pub fn ask_for_greeting(mut stream: TcpStream) -> std::io::Result<String> {
    stream.write_all(b"?")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Returns when every thread stands still.
fn stop(agent: &Background) {
    agent.signal(Signal::STOP).unwrap();
    let stands = |task: std::io::Result<fs::DirEntry>| {
        let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    };
    let tasks = format!("/proc/{}/task", agent.pid());
    wait::until_true("the agent to stand still", LIMIT, || fs::read_dir(&tasks).unwrap().all(stands))
        .unwrap();
}

/// A connection to the agent that is nobody's client: it need not wait for an answer.
pub fn seqpacket(path: &Path) -> Connection {
    // Close-on-exec: a program that another test starts just now would keep the connection open.
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    Connection::from(socket)
}

/// A pod whose only interface is a TUN, plumbed with `ip`.
pub struct Pod {
    pub namespace: Arc<Namespace>,
    pub attachment: Attachment,
}

impl Pod {
    pub fn create(lab: &Lab, id: &str) -> Self {
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

    pub fn key(&self) -> AttachmentKey {
        self.attachment.key.clone()
    }

    /// What the plugin does on ADD: ask, plumb, attach.
    pub fn add(&self, lab: &Lab) -> Result<Response, ClientError> {
        let Attachment { key, pod, network, .. } = self.attachment.clone();
        let prepare =
            PrepareRequest { key, netns_path: self.namespace.path(), pod, mode: Mode::Standalone, network };
        let mut client = Client::connect(&lab.path("cni.sock"), Instant::now() + LIMIT)?;
        let Response::Settings(settings) = client.call(&Request::Prepare(prepare), &[])? else { panic!() };
        assert_eq!((settings.enrolled, settings.queues), (true, 2));
        self.attach(&mut client)
    }

    /// Plumbs and attaches without asking first, as one does that was told to go ahead a while ago.
    pub fn attach_unasked(&self, lab: &Lab) -> Result<Response, ClientError> {
        self.attach(&mut Client::connect(&lab.path("cni.sock"), Instant::now() + LIMIT)?)
    }

    fn attach(&self, client: &mut Client) -> Result<Response, ClientError> {
        let fds = self.plumb();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        client.call(&Request::Attach(AttachRequest { attachment: self.attachment.clone() }), &fds)
    }

    /// An ADD that is killed when it has sent its Attach: the agent is stopped meanwhile, so that it cannot have answered.
    pub fn add_and_die(&self, lab: &Lab, agent: &Background) {
        let fds = self.plumb();
        stop(agent);
        let plugin = seqpacket(&lab.path("cni.sock"));
        let request = Request::Attach(AttachRequest { attachment: self.attachment.clone() });
        plugin.send_request(&request, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>()).unwrap();
        drop(plugin);
        agent.signal(Signal::CONT).unwrap();
    }

    /// The namespace and the queues of its TUN.
    pub fn plumb(&self) -> Vec<OwnedFd> {
        let netns = NetNs::open(&self.namespace.path()).unwrap();
        let tun = netns.run(|| self.open_tun()).unwrap();
        [netns.as_fd().try_clone_to_owned().unwrap()].into_iter().chain(tun.queues).collect()
    }

    pub fn open_tun(&self) -> tunproxy_linux_net::Tun {
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

    pub fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = self.namespace.tcp_connect(web(), LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(stream)
    }

    /// What the pod's program sees of the web server.
    pub fn fetch(&self) -> std::io::Result<String> {
        ask_for_greeting(self.connect()?)
    }

    pub fn is_refused(&self) -> bool {
        self.fetch().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    }
}
