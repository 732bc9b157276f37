//! The task between the TUN and the engine: the only place that does IO and asks the clock.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::device::TunDevice;
use crate::error::{Ended, StackError};
use crate::link::Outbox;
use crate::offload;
use crate::stack::Shared;

/// A super-segment and the virtio-net header.
const FRAME: usize = 65_535 + offload::PLAIN.len();
/// Packets that are read before the sockets get a turn; the replies to one batch fit the outbox.
const BATCH: usize = 64;
/// A deadline that has passed though nothing was to be sent is not asked about again before.
const BREATH: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(crate) struct Driver {
    shared: Arc<Shared>,
    tun: AsyncFd<OwnedFd>,
    vnet_header: bool,
    frame: Vec<u8>,
    outbox: Outbox,
    /// The last field: dropped when the TUN is closed.
    farewell: Farewell,
}

/// What to wait for.
enum Step {
    Until(Option<Instant>),
    Finished,
}

impl Driver {
    pub fn new(shared: Arc<Shared>, device: TunDevice) -> Result<Self, StackError> {
        let TunDevice { name, fd, vnet_header, mtu: _ } = device;
        let tun = watched(fd).map_err(|source| StackError::Runtime { device: name, source })?;
        let farewell = Farewell { shared: Arc::clone(&shared), reason: Ended::Driver };
        Ok(Self { shared, tun, vnet_header, frame: vec![0; FRAME], outbox: Outbox::default(), farewell })
    }

    pub async fn run(mut self) {
        self.farewell.reason = match self.drive().await {
            Ok(()) => Ended::Closed,
            Err(errno) => Ended::Device(errno),
        };
    }

    /// Until nothing is left to do for anybody, or the TUN is gone.
    async fn drive(&mut self) -> Result<(), Errno> {
        loop {
            let deadline = match self.step()? {
                Step::Until(deadline) => deadline,
                Step::Finished => return Ok(()),
            };
            let due = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let readable = tokio::select! {
                ready = self.tun.readable() => {
                    // The guard keeps the readiness; reading clears it when there is nothing more.
                    ready.map_err(|_| Errno::BADF)?.retain_ready();
                    true
                }
                () = self.shared.wake.notified() => false,
                () = due => false,
            };
            if readable {
                self.read()?;
            }
        }
    }

    /// Lets the engine work and writes what comes out.
    fn step(&mut self) -> Result<Step, Errno> {
        let now = self.shared.now();
        let closing = *self.shared.closing.borrow();
        let mut engine = self.shared.engine();
        if closing {
            engine.end(now, Ended::Closed);
        }
        engine.poll(now);
        let finished = closing && engine.is_drained() && !engine.outbox().is_full();
        let due = engine.poll_at(now);
        std::mem::swap(engine.outbox(), &mut self.outbox);
        drop(engine);
        let idle = self.outbox.is_empty();
        self.write()?;
        if finished {
            return Ok(Step::Finished);
        }
        let breath = if idle { Instant::now() + BREATH } else { Instant::now() };
        Ok(Step::Until(due.map(|due| self.shared.to_tokio(due).max(breath))))
    }

    /// A batch of packets into the engine.
    fn read(&mut self) -> Result<(), Errno> {
        for _ in 0..BATCH {
            let read =
                self.tun.try_io(Interest::READABLE, |tun| Ok(rustix::io::read(tun, &mut self.frame[..])?));
            let length = match read {
                Ok(length) => length,
                Err(error) => {
                    return match Errno::from_io_error(&error) {
                        _ if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                        Some(Errno::INTR) => continue,
                        Some(errno) => Err(errno),
                        None => Err(Errno::IO),
                    };
                }
            };
            self.take(length);
        }
        Ok(())
    }

    fn take(&mut self, length: usize) {
        let now = self.shared.now();
        let frame = &mut self.frame[..length];
        let mut engine = self.shared.engine();
        if !self.vnet_header {
            engine.handle_packet(now, frame);
        } else if offload::packets_of(frame, |packet| engine.handle_packet(now, packet)).is_err() {
            tracing::trace!(length, "a frame with a bad virtio-net header was dropped");
        }
    }

    /// Everything in the outbox. What the kernel has no room for, or cannot take while the device is down, is lost as on
    /// any link.
    fn write(&mut self) -> Result<(), Errno> {
        let (tun, vnet_header) = (self.tun.get_ref(), self.vnet_header);
        let result = self.outbox.packets().try_for_each(|packet| {
            let header = if vnet_header { &offload::PLAIN[..] } else { &[] };
            let written = rustix::io::retry_on_intr(|| {
                rustix::io::writev(tun, &[IoSlice::new(header), IoSlice::new(packet)])
            });
            match written {
                Err(errno @ (Errno::BADF | Errno::BADFD | Errno::NODEV)) => Err(errno),
                Err(errno) => {
                    tracing::trace!(%errno, length = packet.len(), "a packet was lost");
                    Ok(())
                }
                Ok(_) => Ok(()),
            }
        });
        self.outbox.clear();
        result
    }
}

/// An `OwnedFd` has one descriptor from its making to its end, which is what `AsyncFd::register_with_interest` asks its
/// caller to promise in exchange for the deprecation's concern. `unsafe` has one home, and it is not here.
#[expect(deprecated, reason = "sound for a type that keeps its descriptor; the replacement is unsafe")]
fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// Tells everybody that the stack has ended; also when the task was cancelled or has panicked.
#[derive(Debug)]
struct Farewell {
    shared: Arc<Shared>,
    reason: Ended,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let now = self.shared.now();
        let mut engine = self.shared.engine();
        engine.end(now, self.reason);
        tracing::debug!(device = engine.device(), reason = ?self.reason, "stack ended");
        drop(engine);
        self.shared.ended.send_replace(true);
    }
}
