//! An agent of the tests: it serves the protocol, keeps what it is given and can be told to misbehave.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use tunproxy_ipc::{
    Attachment, AttachmentKey, Checked, Connection, ErrorCode, Failure, Listener, Packet, Request, Response,
    Settings, Status,
};

/// What the agent holds of an attachment.
#[derive(Debug)]
pub struct Held {
    pub attachment: Attachment,
    pub netns: OwnedFd,
    pub queues: Vec<OwnedFd>,
}

/// What the agent does with a request of some type.
#[derive(Debug, Clone)]
pub enum Manner {
    Answer,
    Fail(ErrorCode),
    /// Takes the request and never answers.
    Hang,
    /// Answers in these bytes.
    Say(Vec<u8>),
}

#[derive(Debug)]
struct State {
    settings: Mutex<Settings>,
    status: Mutex<Status>,
    problems: Mutex<Vec<String>>,
    manners: Mutex<BTreeMap<&'static str, Manner>>,
    held: Mutex<BTreeMap<AttachmentKey, Held>>,
    seen: Mutex<Vec<Request>>,
    reached: Mutex<Sender<&'static str>>,
    stop: AtomicBool,
}

#[derive(Debug)]
pub struct FakeAgent {
    state: Arc<State>,
    /// Gets the name of each request that is left hanging.
    pub reached: Receiver<&'static str>,
    socket: std::path::PathBuf,
    thread: Option<JoinHandle<()>>,
}

pub fn settings() -> Settings {
    Settings {
        enrolled: true,
        queues: 2,
        mtu: None,
        mark: 0x7470,
        pods: ["10.77.0.0/16", "fd77::/48"].map(|n| n.parse().unwrap()).into(),
        services: vec!["10.96.0.0/12".parse().unwrap()],
    }
}

impl FakeAgent {
    pub fn start(socket: &Path) -> Self {
        let listener = Listener::bind(socket).unwrap();
        rustix::io::ioctl_fionbio(&listener, false).unwrap();
        let (sender, reached) = channel();
        let state = Arc::new(State {
            settings: Mutex::new(settings()),
            status: Mutex::new(Status { ready: true, ..Status::default() }),
            problems: Mutex::default(),
            manners: Mutex::default(),
            held: Mutex::default(),
            seen: Mutex::default(),
            reached: Mutex::new(sender),
            stop: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || {
            while let Ok((connection, peer)) = listener.accept() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                assert!(peer.is_trusted());
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(&shared, &connection));
            }
        });
        Self { state, reached, socket: socket.to_owned(), thread: Some(thread) }
    }

    pub fn set_settings(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.state.settings.lock().unwrap());
    }

    pub fn set_status(&self, status: Status) {
        *self.state.status.lock().unwrap() = status;
    }

    pub fn set_problems(&self, problems: &[&str]) {
        *self.state.problems.lock().unwrap() = problems.iter().map(ToString::to_string).collect();
    }

    pub fn set_manner(&self, request: &'static str, manner: Manner) {
        self.state.manners.lock().unwrap().insert(request, manner);
    }

    pub fn keys(&self) -> Vec<AttachmentKey> {
        self.state.held.lock().unwrap().keys().cloned().collect()
    }

    pub fn attachment(&self, id: &str, ifname: &str) -> Option<Attachment> {
        Some(self.state.held.lock().unwrap().get(&key(id, ifname))?.attachment.clone())
    }

    /// Takes the descriptors of an attachment out of the agent.
    pub fn take(&self, id: &str, ifname: &str) -> Held {
        self.state.held.lock().unwrap().remove(&key(id, ifname)).expect("it is attached")
    }

    pub fn seen(&self) -> Vec<Request> {
        self.state.seen.lock().unwrap().clone()
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(1);
        // Wakes the accept; fails when a successor has taken the path over, whose thread is not ours to join.
        if tunproxy_ipc::Client::connect(&self.socket, deadline).is_ok() {
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}

pub fn key(id: &str, ifname: &str) -> AttachmentKey {
    AttachmentKey { container_id: id.into(), ifname: ifname.into() }
}

fn serve(state: &State, connection: &Connection) {
    connection.set_nonblocking(false).unwrap();
    while let Ok(packet) = connection.recv() {
        if packet.is_end() {
            return;
        }
        let request = packet.request().unwrap();
        let name = name(&request);
        state.seen.lock().unwrap().push(request.clone());
        let manner = state.manners.lock().unwrap().get(name).cloned().unwrap_or(Manner::Answer);
        let sent = match manner {
            Manner::Answer => {
                let attached = match &request {
                    Request::Attach(attach) => Some(attach.attachment.key.clone()),
                    _ => None,
                };
                let sent = connection.send_response(&answer(state, request, packet));
                // As the protocol demands: whom nobody waits for is not attached.
                if let (Err(_), Some(key)) = (&sent, attached) {
                    state.held.lock().unwrap().remove(&key);
                }
                sent
            }
            Manner::Fail(code) => {
                let message = format!("{name} fails on purpose");
                connection.send_response(&Response::Error(Failure { code, message }))
            }
            Manner::Hang => state.reached.lock().unwrap().send(name).map_err(std::io::Error::other),
            Manner::Say(bytes) => connection.send(&bytes, &[]),
        };
        if sent.is_err() {
            return;
        }
    }
}

fn answer(state: &State, request: Request, packet: Packet) -> Response {
    let mut held = state.held.lock().unwrap();
    match request {
        Request::Prepare(_) => Response::Settings(state.settings.lock().unwrap().clone()),
        Request::Attach(attach) => {
            let mut fds = packet.fds.into_iter();
            let netns = fds.next().expect("a network namespace comes first");
            let queues: Vec<OwnedFd> = fds.collect();
            assert_eq!(queues.len(), usize::from(attach.attachment.queues));
            let key = attach.attachment.key.clone();
            held.insert(key, Held { attachment: attach.attachment, netns, queues });
            Response::Attached
        }
        Request::Detach(key) => {
            held.remove(&key);
            Response::Detached
        }
        Request::Gc(gc) => {
            let stale = |key: &&AttachmentKey| !gc.valid.contains(key);
            let removed: Vec<AttachmentKey> = held.keys().filter(stale).cloned().collect();
            held.retain(|key, _| gc.valid.contains(key));
            Response::Collected { removed }
        }
        Request::Check(key) => {
            let mut problems = state.problems.lock().unwrap().clone();
            if !held.contains_key(&key) {
                problems.push(format!("{key} is not attached"));
            }
            Response::Checked(Checked { ok: problems.is_empty(), problems })
        }
        Request::Status => Response::Status(state.status.lock().unwrap().clone()),
    }
}

fn name(request: &Request) -> &'static str {
    match request {
        Request::Prepare(_) => "prepare",
        Request::Attach(_) => "attach",
        Request::Detach(_) => "detach",
        Request::Gc(_) => "gc",
        Request::Check(_) => "check",
        Request::Status => "status",
    }
}
