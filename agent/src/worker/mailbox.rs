//! The way of commands to a worker.
//!
//! A waker tells of an edge once. So a command is in the queue before the worker is woken for it, and a worker that may
//! leave some there wakes itself.

use std::io;
use std::sync::Arc;

use crate::sync::mpsc::{Receiver, Sender};

/// Commands, packets from other workers among them, before the pods have their turn.
const ROUND: usize = if cfg!(tunproxy_loom) { 1 } else { 64 };

/// Ends the wait of a worker, or its next one.
pub(super) trait Wake {
    fn wake(&self) -> io::Result<()>;
}

impl Wake for mio::Waker {
    fn wake(&self) -> io::Result<()> {
        mio::Waker::wake(self)
    }
}

/// The near end; its clones belong to all who have something to say to the worker.
pub(super) struct Handle<C = super::Command, W = mio::Waker> {
    pub(super) commands: Sender<C>,
    pub(super) waker: Arc<W>,
}

impl<C, W> Clone for Handle<C, W> {
    fn clone(&self) -> Self {
        Self { commands: self.commands.clone(), waker: self.waker.clone() }
    }
}

impl<C, W: Wake> Handle<C, W> {
    /// A worker that has ended takes no commands; whoever waits for an answer sees its channel close.
    pub(super) fn send(&self, command: C) {
        if self.commands.send(command).is_ok() {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "a worker cannot be woken");
        }
    }
}

/// The far end.
pub(super) struct Inbox<C> {
    commands: Receiver<C>,
    /// Commands that this round still has room for.
    left: usize,
}

impl<C> Inbox<C> {
    pub(super) fn new(commands: Receiver<C>) -> Self {
        Self { commands, left: ROUND }
    }

    /// The next command of the round, and `None` once at its end. `own` leads to this inbox.
    pub(super) fn next<W: Wake>(&mut self, own: &Handle<C, W>) -> Option<C> {
        if self.left == 0 {
            own.wake();
        } else if let Ok(command) = self.commands.try_recv() {
            self.left -= 1;
            return Some(command);
        }
        self.left = ROUND;
        None
    }
}

#[cfg(all(test, tunproxy_loom))]
mod loom_tests {
    use loom::sync::Notify;

    use super::*;
    use crate::sync::mpsc::channel;

    impl Wake for Notify {
        fn wake(&self) -> io::Result<()> {
            self.notify();
            Ok(())
        }
    }

    /// A command that no wake-up tells of leaves the worker waiting for ever, which loom reports.
    #[test]
    fn every_command_wakes_the_worker() {
        loom::model(|| {
            let (commands, receiver) = channel();
            let own = Handle { commands, waker: Arc::new(Notify::new()) };
            let mut inbox = Inbox::new(receiver);
            for name in 0..2 {
                let handle = own.clone();
                loom::thread::spawn(move || handle.send(name));
            }
            let mut seen = Vec::new();
            while seen.len() < 2 {
                own.waker.wait();
                seen.extend(std::iter::from_fn(|| inbox.next(&own)));
            }
            seen.sort_unstable();
            assert_eq!(seen, [0, 1]);
        });
    }
}
