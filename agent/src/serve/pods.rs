//! The pods of this node: what is attached, on disk and in the datapath, from the plugin's first word to the last.
//!
//! One lock covers every change. It is held for about a millisecond at worst (one fsync), and it makes the order of
//! disk, datapath and table the same for all.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tunproxy_ipc::{
    AttachRequest, Attachment, AttachmentKey, Checked, ErrorCode, Failure, GcRequest, InterfaceAddress,
    PodIdentity, PrepareRequest, Request, Response, Settings, Status, Tombstones,
};
use tunproxy_linux_net::naming::Owner;
use tunproxy_linux_net::steering;
use tunproxy_policy::Workload;

use super::presence::{Presence, check_descriptors, namespace_of, reopen};
use super::store::{Store, StoreError};
use crate::config::Networks;
use crate::policies::Policies;
use crate::worker::{PodConfig, PodId, PodSnapshot, Workers};

/// How pods are plumbed and bounded.
#[derive(Clone, Debug)]
pub struct PodSettings {
    pub networks: Networks,
    /// Queues of each TUN.
    pub queues: u16,
    /// Attached interfaces.
    pub limit: usize,
}

/// Marks, inside the pod, the replies to connections from outside; they leave by the main interface.
const REPLY_MARK: u32 = 0x7470;

/// Everything attached.
#[derive(Debug)]
pub struct Pods {
    workers: Workers,
    store: Store,
    tombstones: Tombstones,
    policies: Arc<Policies>,
    settings: PodSettings,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    pods: BTreeMap<AttachmentKey, Pod>,
    next_id: u64,
}

#[derive(Debug)]
struct Pod {
    attachment: Attachment,
    workload: Arc<Workload>,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Served(PodId),
    /// Kept from before a restart, and its TUN cannot be opened; nothing leaves the pod. Tried again by the sweep.
    Broken(String),
}

/// What the plugin is told, and what to hand to [`Pods::abandon`] where it cannot be told.
#[derive(Debug)]
pub struct Answer {
    pub response: Response,
    pub unconfirmed: Option<Unconfirmed>,
}

/// An attachment that was not there before and that its plugin has not heard of.
#[derive(Debug)]
pub struct Unconfirmed {
    key: AttachmentKey,
    id: PodId,
}

/// One attachment for the status page.
#[derive(Debug)]
pub struct PodStatus {
    pub attachment: Attachment,
    /// Absent where the pod is not served; then `problem` says why.
    pub snapshot: Option<PodSnapshot>,
    pub problem: Option<String>,
}

impl Pods {
    pub fn new(
        workers: Workers,
        store: Store,
        tombstones: Tombstones,
        policies: Arc<Policies>,
        settings: PodSettings,
    ) -> Self {
        Self { workers, store, tombstones, policies, settings, table: Mutex::default() }
    }

    /// Answers one request of the plugin. Blocks on the disk and on other namespaces.
    pub fn handle(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Answer, Failure> {
        let response = match request {
            Request::Prepare(request) => Response::Settings(self.prepare(&request)?),
            Request::Attach(AttachRequest { attachment }) => {
                let unconfirmed = self.attach(attachment, fds)?;
                return Ok(Answer { response: Response::Attached, unconfirmed });
            }
            Request::Detach(key) => {
                self.detach(&key).map_err(|error| from_store(&error))?;
                Response::Detached
            }
            Request::Gc(request) => Response::Collected { removed: self.collect(&request) },
            Request::Check(key) => Response::Checked(self.check(&key)),
            Request::Status => Response::Status(self.status()),
        };
        Ok(Answer { response, unconfirmed: None })
    }

    /// Takes back an attachment whose plugin is gone. The DEL that follows a killed ADD may have been answered already,
    /// over another connection; nobody else would ever come for this one.
    pub fn abandon(&self, unconfirmed: &Unconfirmed) {
        let Unconfirmed { key, id } = unconfirmed;
        let mut table = self.lock();
        let same = |pod: &Pod| matches!(pod.state, State::Served(served) if served == *id);
        if table.pods.get(key).is_some_and(same) {
            tracing::warn!(%key, "the plugin ended before it heard of its attachment: taken back");
            self.forget_quietly(&mut table, key);
        }
    }

    /// Serves every pod that was attached when the last agent ended. Those whose namespace is gone are forgotten.
    pub fn restore(&self) -> Result<(), StoreError> {
        let (attachments, unreadable) = self.store.load()?;
        for file in unreadable {
            tracing::error!(path = %file.path.display(), reason = file.reason,
                "an attachment cannot be read; its pod is not served (nothing leaves it); delete the file and the pod");
        }
        let mut table = self.lock();
        let buried = self.drain_tombstones(&mut table);
        for attachment in attachments.into_iter().filter(|attachment| !buried.contains(&attachment.key)) {
            self.restore_one(&mut table, attachment);
        }
        Ok(())
    }

    /// Forgets the pods whose namespace is gone without a DEL, and tries the broken ones again.
    pub fn sweep(&self) {
        let mut table = self.lock();
        self.drain_tombstones(&mut table);
        let all: Vec<Attachment> = table.pods.values().map(|pod| pod.attachment.clone()).collect();
        for attachment in all {
            let broken = matches!(table.pods[&attachment.key].state, State::Broken(_));
            match namespace_of(&attachment) {
                Presence::Gone => {
                    tracing::info!(key = %attachment.key, "the pod's namespace is gone without a DEL: forgotten");
                    self.forget_quietly(&mut table, &attachment.key);
                }
                Presence::There(_) if broken => self.restore_one(&mut table, attachment),
                Presence::There(_) | Presence::Unknown(_) => {}
            }
        }
    }

    /// Gives every pod what the current documents say; live flows are judged again.
    pub fn apply_policies(&self) {
        let table = self.lock();
        for pod in table.pods.values() {
            if let State::Served(id) = pod.state {
                self.workers.set_rules(id, &self.policies.rules_for(&pod.workload));
            }
        }
    }

    /// Detaches `key`; true if it was attached. One that is not is no error.
    pub fn detach(&self, key: &AttachmentKey) -> Result<bool, StoreError> {
        self.forget(&mut self.lock(), key)
    }

    pub fn status(&self) -> Status {
        let broken = self.lock().pods.values().filter(|pod| matches!(pod.state, State::Broken(_))).count();
        let resident = self.policies.current().is_some();
        let message = match (resident, broken) {
            (false, _) => no_policy(&self.policies),
            (true, 0) => String::new(),
            (true, count) => {
                format!("{count} pods that were attached before the agent's restart are not served")
            }
        };
        Status { ready: resident, degraded: !resident || broken > 0, message }
    }

    /// The served attachments of a pod, which is `NAMESPACE/NAME` or a container's id.
    pub fn find(&self, pod: &str) -> Vec<(PodId, Attachment)> {
        let named = |candidate: &Pod| match pod.split_once('/') {
            Some((namespace, name)) => {
                (namespace, name) == (&*candidate.workload.namespace, &*candidate.workload.name)
            }
            None => candidate.attachment.key.container_id == pod,
        };
        let table = self.lock();
        let found = table.pods.values().filter(|candidate| named(candidate));
        found
            .filter_map(|pod| match pod.state {
                State::Served(id) => Some((id, pod.attachment.clone())),
                State::Broken(_) => None,
            })
            .collect()
    }

    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Every attachment with its counters.
    pub fn list(&self) -> Vec<PodStatus> {
        let mut snapshots: BTreeMap<u64, PodSnapshot> =
            self.workers.snapshot().into_iter().map(|snapshot| (snapshot.id.0, snapshot)).collect();
        let table = self.lock();
        let status = |pod: &Pod| match &pod.state {
            State::Served(id) => PodStatus {
                attachment: pod.attachment.clone(),
                snapshot: snapshots.remove(&id.0),
                problem: None,
            },
            State::Broken(reason) => PodStatus {
                attachment: pod.attachment.clone(),
                snapshot: None,
                problem: Some(reason.clone()),
            },
        };
        table.pods.values().map(status).collect()
    }

    /// Ends every flow; the attachments stay on disk for the next agent.
    pub fn stop(&self) {
        let mut table = self.lock();
        for pod in std::mem::take(&mut table.pods).into_values() {
            if let State::Served(id) = pod.state {
                self.workers.detach(id);
            }
        }
    }

    fn prepare(&self, request: &PrepareRequest) -> Result<Settings, Failure> {
        if self.policies.current().is_none() {
            return Err(Failure { code: ErrorCode::NotReady, message: no_policy(&self.policies) });
        }
        refuse_surplus(&self.lock(), &request.key, self.settings.limit)?;
        Ok(Settings {
            enrolled: true,
            queues: self.settings.queues,
            mtu: None,
            mark: REPLY_MARK,
            pods: self.settings.networks.pods.clone(),
            services: self.settings.networks.services.clone(),
        })
    }

    /// Serves the pod. A repeated ADD leaves an attachment that stays whatever becomes of its plugin: the pod was running
    /// before.
    fn attach(&self, attachment: Attachment, mut fds: Vec<OwnedFd>) -> Result<Option<Unconfirmed>, Failure> {
        let queues = check_descriptors(&attachment, &mut fds)?;
        let mut table = self.lock();
        refuse_conflict(&table, &attachment)?;
        // Again: several plugins may have been told to go ahead for the last place.
        refuse_surplus(&table, &attachment.key, self.settings.limit)?;
        self.store.save(&attachment).map_err(|error| from_store(&error))?;
        // A removal that could not be told belongs to what was there before, not to this attachment.
        if let Err(error) = self.tombstones.remove(&attachment.key) {
            tracing::warn!(%error, "a stale tombstone stays");
        }
        let key = attachment.key.clone();
        if let Some((pod, id)) = served_alike(&mut table, &attachment) {
            self.workers.replace_queues(id, queues).map_err(|error| not_served(&error))?;
            pod.attachment = attachment;
            tracing::info!(%key, pod = %name_of(&pod.workload), "attached again; its flows go on");
            return Ok(None);
        }
        let repeated = table.pods.contains_key(&key);
        let id = match self.serve(&mut table, attachment, queues) {
            Ok(id) => id,
            Err(error) => {
                // Nothing may stay behind: the plugin takes the pod's plumbing down again.
                self.forget_quietly(&mut table, &key);
                return Err(not_served(&error));
            }
        };
        tracing::info!(%key, pod = %name_of(&table.pods[&key].workload), "attached");
        Ok((!repeated).then_some(Unconfirmed { key, id }))
    }

    /// Hands the queues to the datapath, in the place of what was served under the key before.
    fn serve(&self, table: &mut Table, attachment: Attachment, queues: Vec<OwnedFd>) -> io::Result<PodId> {
        let workload = Arc::new(workload_of(&attachment.pod));
        if let Some(Pod { state: State::Served(old), .. }) = table.pods.remove(&attachment.key) {
            self.workers.detach(old);
        }
        table.next_id += 1;
        let id = PodId(table.next_id);
        self.workers.attach(PodConfig {
            id,
            workload: workload.clone(),
            queues,
            vnet_header: true,
            addresses: attachment.addresses.iter().map(InterfaceAddress::ip).collect::<Vec<IpAddr>>(),
            broadcasts: attachment.addresses.iter().filter_map(InterfaceAddress::broadcast).collect(),
            mtu: u16::try_from(attachment.mtu).unwrap_or(u16::MAX),
            rules: self.policies.rules_for(&workload),
            dns_alias: None,
        })?;
        table.pods.insert(attachment.key.clone(), Pod { attachment, workload, state: State::Served(id) });
        Ok(id)
    }

    fn restore_one(&self, table: &mut Table, attachment: Attachment) {
        let key = attachment.key.clone();
        let problem = match namespace_of(&attachment) {
            Presence::Gone => {
                tracing::info!(%key, "the pod went away while the agent was down: forgotten");
                self.forget_quietly(table, &key);
                return;
            }
            Presence::Unknown(problem) => problem,
            Presence::There(namespace) => match reopen(&namespace, &attachment, self.settings.queues) {
                Ok(queues) => match self.serve(table, attachment.clone(), queues) {
                    Ok(_) => {
                        tracing::info!(%key, "served again");
                        return;
                    }
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            },
        };
        tracing::error!(%key, problem, "a pod cannot be served again; nothing leaves it; deleting the pod heals it");
        let workload = Arc::new(workload_of(&attachment.pod));
        table.pods.insert(key, Pod { attachment, workload, state: State::Broken(problem) });
    }

    /// Out of the datapath, the table and the disk, as far as it is there; true if it was attached.
    fn forget(&self, table: &mut Table, key: &AttachmentKey) -> Result<bool, StoreError> {
        let pod = table.pods.remove(key);
        if let Some(pod) = &pod {
            if let State::Served(id) = pod.state {
                self.workers.detach(id);
            }
            tracing::info!(%key, pod = %name_of(&pod.workload), "detached");
        }
        self.store.remove(key)?;
        Ok(pod.is_some())
    }

    /// [`forget`](Self::forget) where nobody waits for the outcome: what stays on disk is swept at the next start.
    fn forget_quietly(&self, table: &mut Table, key: &AttachmentKey) {
        if let Err(error) = self.forget(table, key) {
            tracing::warn!(%error, %key, "an attachment stays on disk");
        }
    }

    /// Carries out the removals of the time when no agent was there.
    fn drain_tombstones(&self, table: &mut Table) -> Vec<AttachmentKey> {
        let keys = self.tombstones.read().unwrap_or_else(|error| {
            tracing::warn!(%error, "removals that the plugin left cannot be read; dead pods are found by their namespaces");
            Vec::new()
        });
        for key in &keys {
            match self.forget(table, key) {
                Ok(_) => {
                    if let Err(error) = self.tombstones.remove(key) {
                        tracing::warn!(%error, %key, "a removal is carried out and stays noted");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, %key, "a removal could not be carried out; it is tried again");
                }
            }
        }
        keys
    }

    /// Drops what the runtime does not know any more. Where the pod's namespace lives on, its plumbing goes too: no DEL
    /// will come for it, and a TUN that nobody serves would keep the pod from every network it may be given next.
    fn collect(&self, request: &GcRequest) -> Vec<AttachmentKey> {
        let stale = self.forget_stale(request);
        // Not under the lock: taking a device down waits for the kernel.
        for attachment in &stale {
            if let Presence::There(namespace) = namespace_of(attachment)
                && let Err(error) = steering::unplumb(&namespace, &owner_of(&attachment.key))
            {
                tracing::warn!(%error, key = %attachment.key, "the plumbing of a stale attachment stays in its pod");
            }
        }
        stale.into_iter().map(|attachment| attachment.key).collect()
    }

    fn forget_stale(&self, request: &GcRequest) -> Vec<Attachment> {
        let mut table = self.lock();
        let is_stale = |attachment: &&Attachment| {
            attachment.network == request.network && !request.valid.contains(&attachment.key)
        };
        let stale: Vec<Attachment> =
            table.pods.values().map(|pod| &pod.attachment).filter(is_stale).cloned().collect();
        for attachment in &stale {
            self.forget_quietly(&mut table, &attachment.key);
        }
        stale
    }

    fn check(&self, key: &AttachmentKey) -> Checked {
        let mut problems = Vec::new();
        match self.lock().pods.get(key).map(|pod| &pod.state) {
            Some(State::Served(_)) => {}
            Some(State::Broken(reason)) => problems.push(format!("the agent does not serve it: {reason}")),
            None => problems.push(format!("the agent does not know {key}; delete and create the pod")),
        }
        if self.policies.current().is_none() {
            problems.push(no_policy(&self.policies));
        }
        Checked { ok: problems.is_empty(), problems }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pod that is attached already has its place, and so have those of before a restart: a limit that was lowered since
/// takes no pod's network away.
fn refuse_surplus(table: &Table, key: &AttachmentKey, limit: usize) -> Result<(), Failure> {
    if table.pods.contains_key(key) || table.pods.len() < limit {
        return Ok(());
    }
    let message = format!("{} pods are attached; raise limits.pods", table.pods.len());
    Err(Failure { code: ErrorCode::LimitReached, message })
}

/// A repeated ADD of one pod converges; another pod under the same key is somebody's mistake.
fn refuse_conflict(table: &Table, attachment: &Attachment) -> Result<(), Failure> {
    let Some(known) = table.pods.get(&attachment.key) else { return Ok(()) };
    let same = known.attachment.netns == attachment.netns;
    if same || matches!(namespace_of(&known.attachment), Presence::Gone) {
        return Ok(());
    }
    Err(Failure {
        code: ErrorCode::Conflict,
        message: format!(
            "{} is attached in {}; run DEL for it first",
            attachment.key,
            known.attachment.netns_path.display()
        ),
    })
}

/// The pod that is served under this key, if all but the queues is as `attachment` says.
fn served_alike<'a>(table: &'a mut Table, attachment: &Attachment) -> Option<(&'a mut Pod, PodId)> {
    let pod = table.pods.get_mut(&attachment.key)?;
    let State::Served(id) = pod.state else { return None };
    // Their number is the agent's own choice, which another configuration may have changed.
    let alike = Attachment { queues: attachment.queues, ..pod.attachment.clone() } == *attachment;
    alike.then_some((pod, id))
}

fn owner_of(key: &AttachmentKey) -> Owner {
    Owner { container_id: key.container_id.clone(), ifname: key.ifname.clone() }
}

fn not_served(error: &io::Error) -> Failure {
    Failure { code: ErrorCode::Internal, message: format!("the datapath cannot serve the pod: {error}") }
}

fn workload_of(pod: &PodIdentity) -> Workload {
    Workload {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        labels: pod.labels.clone(),
        ..Workload::default()
    }
}

fn name_of(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

fn no_policy(policies: &Policies) -> String {
    match policies.mistakes().as_slice() {
        [] => "the policy documents are not read yet; try again".to_owned(),
        [first, rest @ ..] => {
            format!("the policy documents are broken, {} mistakes, the first: {first}", rest.len() + 1)
        }
    }
}

fn from_store(error: &StoreError) -> Failure {
    let code = match error {
        StoreError::BadKey { .. } => ErrorCode::BadRequest,
        StoreError::Io { .. } | StoreError::InUse { .. } => ErrorCode::Internal,
    };
    Failure { code, message: error.to_string() }
}
