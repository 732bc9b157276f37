//! One worker's loop: wait, note what is ready, give each pod with work a turn.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

use mio::{Events, Poll, Waker};
use slab::Slab;
use tunproxy_datapath::{Instant, Memory, PacketBuf, Pool};

use super::datagram_run::DatagramRun;
use super::mailbox::{Handle, Inbox};
use super::pod::{Env, Pod};
use super::token::{WAKER, unpack};
use super::{Command, Dialer, FlowSink, PodId, ShardConfig, WorkersConfig, clock};

const EVENTS: usize = 256;

/// A worker with nothing to do for so long lets go of its spare buffers.
const IDLE: std::time::Duration = std::time::Duration::from_millis(50);

pub(super) struct EventLoop {
    poll: Poll,
    commands: Inbox<Command>,
    pods: Slab<Pod>,
    by_id: HashMap<PodId, usize>,
    /// Pods that have work now, in turn.
    turn: VecDeque<usize>,
    /// One entry for each pod that waits for a time.
    timers: BTreeSet<(Instant, usize)>,
    pool: Pool,
    buffer: PacketBuf,
    run: DatagramRun,
    config: WorkersConfig,
    dialer: Arc<dyn Dialer>,
    sink: Arc<dyn FlowSink>,
}

impl EventLoop {
    pub(super) fn new(
        config: &WorkersConfig,
        memory: &Arc<Memory>,
        commands: Inbox<Command>,
        dialer: Arc<dyn Dialer>,
        sink: Arc<dyn FlowSink>,
    ) -> io::Result<(Self, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let mut pool = Pool::of(memory);
        let buffer = pool.take();
        let event_loop = Self {
            poll,
            commands,
            pods: Slab::new(),
            by_id: HashMap::new(),
            turn: VecDeque::new(),
            timers: BTreeSet::new(),
            pool,
            buffer,
            run: DatagramRun::new(),
            config: config.clone(),
            dialer,
            sink,
        };
        Ok((event_loop, waker))
    }

    pub(super) fn run(mut self, own: &Handle) {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let timeout = self.timeout();
            // With buffers to spare the first wait is short: if nothing comes in it, they go.
            let spare = self.pool.has_spare();
            let timeout = if spare { Some(timeout.map_or(IDLE, |wait| wait.min(IDLE))) } else { timeout };
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "a worker cannot wait for events; the agent ends");
                    std::process::abort();
                }
            }
            if spare && events.is_empty() && self.turn.is_empty() {
                self.pool.trim();
            }
            let now = clock::now();
            for event in &events {
                if event.token() == WAKER {
                    if !self.handle_commands(own) {
                        self.close_all(own, now);
                        return;
                    }
                    continue;
                }
                self.handle_event(own, now, event);
            }
            self.handle_timers(own, now);
            self.take_turns(own);
        }
    }

    fn timeout(&self) -> Option<std::time::Duration> {
        if !self.turn.is_empty() {
            return Some(std::time::Duration::ZERO);
        }
        let &(at, _) = self.timers.first()?;
        let now = clock::now();
        if at <= now {
            return Some(std::time::Duration::ZERO);
        }
        // Rounded up: waking before the deadline would only spin.
        Some(std::time::Duration::from_micros((at - now).total_micros() + 999))
    }

    fn handle_event(&mut self, own: &Handle, now: Instant, event: &mio::event::Event) {
        let (index, source, generation) = unpack(event.token());
        self.with_pod(own, now, index, |pod, env, _| pod.handle_event(env, source, generation, event));
        self.enqueue(index);
    }

    fn enqueue(&mut self, index: usize) {
        if let Some(pod) = self.pods.get_mut(index).filter(|pod| !pod.queued) {
            pod.queued = true;
            self.turn.push_back(index);
        }
    }

    /// One turn for each pod that had work when the round began.
    fn take_turns(&mut self, own: &Handle) {
        for _ in 0..self.turn.len() {
            let Some(index) = self.turn.pop_front() else { break };
            let now = clock::now();
            let mut more = false;
            self.with_pod(own, now, index, |pod, env, buffer| {
                pod.queued = false;
                more = pod.service(env, buffer);
            });
            self.arm(index);
            if more {
                self.enqueue(index);
            }
            if self.pods.get(index).is_some_and(Pod::is_closed) {
                self.pods.remove(index).tell_closed();
            }
        }
    }

    fn handle_timers(&mut self, own: &Handle, now: Instant) {
        while let Some(&(at, index)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            self.with_pod(own, now, index, |pod, env, _| {
                pod.armed = None;
                pod.handle_timeout(env);
            });
            self.arm(index);
            // A timer may have opened the way for octets whose edge is long past.
            self.enqueue(index);
        }
    }

    fn arm(&mut self, index: usize) {
        let Some(pod) = self.pods.get_mut(index) else { return };
        let at = pod.poll_at();
        if at == pod.armed {
            return;
        }
        if let Some(armed) = pod.armed {
            self.timers.remove(&(armed, index));
        }
        pod.armed = at;
        self.timers.extend(at.map(|at| (at, index)));
    }

    fn with_pod(
        &mut self,
        own: &Handle,
        now: Instant,
        index: usize,
        work: impl FnOnce(&mut Pod, &mut Env<'_>, &mut PacketBuf),
    ) {
        let Some(pod) = self.pods.get_mut(index) else { return };
        let mut env = Env {
            now,
            pool: &mut self.pool,
            run: &mut self.run,
            registry: self.poll.registry(),
            dialer: &self.dialer,
            sink: &self.sink,
            mark: self.config.mark,
            limits: &self.config.limits,
            worker: own,
        };
        env.pool.switch(&mut pod.account);
        work(pod, &mut env, &mut self.buffer);
        env.pool.switch(&mut pod.account);
    }

    // --- commands ---

    /// Carries out what was asked; `false`: the worker is to end.
    fn handle_commands(&mut self, own: &Handle) -> bool {
        while let Some(command) = self.commands.next(own) {
            let now = clock::now();
            match command {
                // Who asked may have gone; the work is done all the same.
                Command::Attach(config, answer) => {
                    let _ = answer.send(self.attach(*config));
                }
                Command::Detach(id, answer) => self.detach(own, now, id, answer),
                Command::ReplaceQueues(id, queues, answer) => {
                    let mut result = Err(io::Error::other("the pod is not served"));
                    self.with_pod_by_id(own, now, id, |pod, env, _| result = pod.replace_queues(env, queues));
                    let _ = answer.send(result);
                }
                Command::SetRules(id, rules) => {
                    self.with_pod_by_id(own, now, id, |pod, env, _| pod.set_rules(env, *rules));
                }
                Command::Snapshot(answer) => {
                    let _ = answer.send(self.pods.iter().map(|(_, pod)| pod.snapshot()).collect());
                }
                Command::Handover(id, packet, _place) => {
                    self.with_pod_by_id(own, now, id, |pod, env, _| pod.handle_handover(env, packet));
                }
                Command::Dialed(dialed) => {
                    self.with_pod_by_id(own, now, dialed.pod, |pod, env, _| pod.dialed(env, dialed));
                }
                Command::Capture(id, probe, answer) => {
                    if let Some(pod) = self.by_id.get(&id).and_then(|&index| self.pods.get_mut(index)) {
                        pod.taps.add(*probe);
                    }
                    let _ = answer.send(());
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn with_pod_by_id(
        &mut self,
        own: &Handle,
        now: Instant,
        id: PodId,
        work: impl FnOnce(&mut Pod, &mut Env<'_>, &mut PacketBuf),
    ) {
        if let Some(&index) = self.by_id.get(&id) {
            self.with_pod(own, now, index, work);
            self.enqueue(index);
        }
    }

    fn attach(&mut self, config: ShardConfig) -> io::Result<()> {
        let id = config.id;
        let entry = self.pods.vacant_entry();
        let index = entry.key();
        entry.insert(Pod::new(index, config, self.poll.registry())?);
        self.by_id.insert(id, index);
        // Packets may wait in the TUN already.
        self.enqueue(index);
        Ok(())
    }

    /// Its place stays taken until nothing is left of the pod: events of its sockets may be under way.
    fn detach(&mut self, own: &Handle, now: Instant, id: PodId, closed: Sender<()>) {
        let Some(index) = self.by_id.remove(&id) else { return };
        self.with_pod(own, now, index, |pod, env, _| pod.close(env, closed));
        self.arm(index);
        self.enqueue(index);
    }

    fn close_all(&mut self, own: &Handle, now: Instant) {
        let ids: Vec<_> = self.by_id.keys().copied().collect();
        for id in ids {
            let (closed, _) = mpsc::channel();
            self.detach(own, now, id, closed);
        }
        while !self.turn.is_empty() {
            self.take_turns(own);
        }
    }
}
