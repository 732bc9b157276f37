//! Keepalives: a pod of which nothing was heard is asked (RFC 9293 3.8.4).

use smoltcp::time::{Duration, Instant};

use super::{Events, Flow};

impl Flow {
    /// When the pod is asked, or given up.
    pub(super) fn keepalive_due(&self) -> Option<Instant> {
        let keepalive = self.keepalive?;
        let wait = u64::from(keepalive.idle) + u64::from(keepalive.interval) * u64::from(self.keepalives);
        Some(self.heard + Duration::from_secs(wait))
    }

    pub(super) fn ask_if_silent(&mut self, now: Instant) -> Events {
        let Some(keepalive) = self.keepalive.filter(|_| self.keepalive_due().is_some_and(|due| due <= now))
        else {
            return Events::default();
        };
        if !self.sender.is_idle() {
            // What is under way, or waits, asks already, and has patience of its own.
            self.heard = now;
            return Events::default();
        }
        // A user time-out takes the place of the number of probes, as with Linux.
        let over = match self.sender.user_timeout() {
            Some(limit) => self.keepalives > 0 && now - self.heard >= limit,
            None => self.keepalives >= u16::from(keepalive.probes),
        };
        // Beyond the last number the next time would stand still, and be due for ever.
        if over || self.keepalives == u16::MAX {
            return Events { silent: true, ..Events::default() };
        }
        self.keepalives += 1;
        self.probe_now = true;
        Events::default()
    }
}
