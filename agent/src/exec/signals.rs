//! Signals on their way to the command.
//!
//! The command stays in our process group, so that the terminal's job control works as if we were not there: what a
//! key sends, the kernel sends to both, and a stop stops both. Only what somebody sends to us alone is passed on; the
//! kernel says which it is.

use std::io;
use std::process::{Child, ExitStatus};

use nix::libc::SI_KERNEL;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::Pid;

const FORWARDED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// Takes the signals in the place of their default actions.
#[derive(Debug)]
pub struct Forwarder(SignalFd);

impl Forwarder {
    /// Blocks the signals in this thread and in the threads and programs that it starts from now on.
    pub fn block() -> io::Result<Self> {
        let mut set = SigSet::empty();
        FORWARDED.into_iter().chain([Signal::SIGCHLD]).for_each(|signal| set.add(signal));
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?))
    }

    /// Passes signals on until `child` ends.
    pub fn supervise(&mut self, child: &mut Child) -> io::Result<ExitStatus> {
        loop {
            // First, as the child may have ended before the first signal was read.
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            let Some(received) = self.0.read_signal()? else { continue };
            let Ok(signal) = Signal::try_from(received.ssi_signo as i32) else { continue };
            if signal != Signal::SIGCHLD && received.ssi_code != SI_KERNEL {
                forward(signal, child);
            }
        }
    }
}

/// A child that has just ended is no error: the next look finds its status.
fn forward(signal: Signal, child: &Child) {
    if let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) {
        let _ = rustix::process::kill_process(Pid::from_child(child), signal);
    }
}
