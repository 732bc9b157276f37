//! The stack's handles.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{future, io};

use smoltcp::time::Instant;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::config::StackConfig;
use crate::device::TunDevice;
use crate::driver::Driver;
use crate::engine::Engine;
use crate::error::StackError;
use crate::listener::Listener;
use crate::stream::Stream;
use crate::udp::UdpSocket;

/// What the driver and the handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    engine: Mutex<Engine>,
    /// The engine has something to send, or a timer has changed.
    pub wake: Notify,
    /// smoltcp's time zero.
    epoch: tokio::time::Instant,
    pub closing: watch::Sender<bool>,
    pub ended: watch::Sender<bool>,
}

impl Shared {
    /// The engine's time begins now.
    pub fn new(engine: Engine) -> Self {
        Self {
            engine: Mutex::new(engine),
            wake: Notify::new(),
            epoch: tokio::time::Instant::now(),
            closing: watch::Sender::new(false),
            ended: watch::Sender::new(false),
        }
    }

    pub fn now(&self) -> Instant {
        Instant::from_micros(self.epoch.elapsed().as_micros() as i64)
    }

    pub fn to_tokio(&self, time: Instant) -> tokio::time::Instant {
        self.epoch + Duration::from_micros(time.total_micros().max(0) as u64)
    }

    /// The engine; a panic while it was held leaves it as it was, and every call checks what it needs.
    pub fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the stack's task alive. Every public handle has one.
#[derive(Debug)]
pub(crate) struct Handle {
    pub shared: Arc<Shared>,
}

impl Handle {
    /// A call that may have left something to be sent.
    pub fn change<T>(&self, call: impl FnOnce(&mut Engine, Instant) -> T) -> T {
        let now = self.shared.now();
        let result = call(&mut self.shared.engine(), now);
        self.shared.wake.notify_one();
        result
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.closing.send_replace(true);
        self.shared.wake.notify_one();
    }
}

/// A host on a TUN. Clones are cheap and are the same stack.
#[derive(Debug, Clone)]
pub struct Stack {
    handle: Arc<Handle>,
    dial_timeout: Duration,
    task: Arc<JoinHandle<()>>,
}

impl Stack {
    /// Starts the task that serves `device`. Needs a tokio runtime with IO and time around it.
    pub fn new(device: TunDevice, config: StackConfig) -> Result<Self, StackError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|error| StackError::Runtime {
            device: device.name.clone(),
            source: io::Error::other(error),
        })?;
        let dial_timeout = config.dial_timeout;
        let engine = Engine::new(&device.name, device.mtu, config, fastrand::u64(..))?;
        let shared = Arc::new(Shared::new(engine));
        let driver = Driver::new(Arc::clone(&shared), device)?;
        let task = Arc::new(runtime.spawn(driver.run()));
        Ok(Self { handle: Arc::new(Handle { shared }), dial_timeout, task })
    }

    /// Listens on one of the stack's addresses, or with an unspecified address on all of that family.
    pub fn listen(&self, address: SocketAddr) -> io::Result<Listener> {
        let ready = self.handle.change(|engine, _| engine.listen(address))?;
        Ok(Listener { handle: Arc::clone(&self.handle), address, ready })
    }

    /// A UDP socket on one of the stack's addresses, or with an unspecified address on all of that family. Port 0 takes
    /// one that is free.
    pub fn bind_udp(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let (socket, local) = self.handle.change(|engine, _| engine.bind(address))?;
        Ok(UdpSocket { handle: Arc::clone(&self.handle), socket, local })
    }

    /// Connects to `peer`, see [`Dialer::dial`].
    pub async fn dial(&self, peer: SocketAddr) -> io::Result<Stream> {
        self.dialer().dial(peer).await
    }

    /// A handle that can do nothing but dial.
    pub fn dialer(&self) -> Dialer {
        Dialer { handle: Arc::clone(&self.handle), within: self.dial_timeout }
    }

    /// Ends the stack: sockets that are still held are reset and give errors from now on, dropped ones deliver what was
    /// written to them, for [`StackConfig::linger`] at most. Returns when the TUN is closed.
    pub async fn close(&self) {
        self.handle.shared.closing.send_replace(true);
        let shared = &self.handle.shared;
        self.handle.change(|engine, now| engine.end(now, crate::error::Ended::Closed));
        let _ = shared.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Waits until the stack has ended, because it was closed or its TUN is gone.
    pub async fn ended(&self) {
        let _ = self.handle.shared.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Sockets in use, of [`StackConfig::sockets`]: TCP and UDP, with those that are being closed and those that no
    /// listener has handed out yet.
    pub fn sockets(&self) -> usize {
        self.handle.shared.engine().open()
    }

    /// False when the stack has ended.
    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }
}

/// Opens connections. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Dialer {
    handle: Arc<Handle>,
    within: Duration,
}

impl Dialer {
    /// The same with another limit than [`StackConfig::dial_timeout`].
    #[must_use]
    pub fn with_timeout(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// Connects to `peer` from a free ephemeral port. Fails with `ConnectionRefused` on a reset, with `TimedOut` when
    /// nobody answers in time. Dropping the future takes the attempt back.
    pub async fn dial(&self, peer: SocketAddr) -> io::Result<Stream> {
        let socket = self.handle.change(|engine, _| engine.connect(peer, self.within))?;
        let stream = Stream::new(Arc::clone(&self.handle), socket);
        let connected = future::poll_fn(|context| {
            self.handle.shared.engine().poll_connected(socket, self.within, context)
        });
        connected.await?;
        // Its timers are others from now on.
        self.handle.shared.wake.notify_one();
        Ok(stream)
    }
}
