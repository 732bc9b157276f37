//! The retransmission timer (RFC 6298) and the persist timer (RFC 9293 3.8.6.1), of which only one runs at a time, and what
//! comes before the former (RFC 8985).

use smoltcp::time::{Duration, Instant};

use super::{Early, Expiry, Fin, MAX_ORPHAN_RETRIES, MAX_PROBE_INTERVAL, MAX_RETRIES, Sender, Timer};

impl Sender {
    pub(super) fn arm_persist(&mut self, now: Instant) {
        let waiting = self.max.before(self.end());
        if waiting && self.una == self.max && matches!(self.timer, Timer::Off) {
            self.since = now;
            self.timer = Timer::Persist(self.no_later_than_patience(now + self.probe_interval()));
        }
    }

    pub(super) fn retransmit_timer(&self, now: Instant) -> Timer {
        Timer::Retransmit(self.no_later_than_patience(now + self.rtt.rto()))
    }

    /// The user time-out is kept to the moment.
    fn no_later_than_patience(&self, at: Instant) -> Instant {
        self.user_timeout().map_or(at, |limit| at.min(self.since + limit))
    }

    /// Whether the pod has had its time: `tries` were in vain.
    fn is_given_up(&self, now: Instant, tries: u8) -> bool {
        match self.user_timeout() {
            Some(limit) => now - self.since >= limit,
            None => tries >= if self.is_orphan() { MAX_ORPHAN_RETRIES } else { MAX_RETRIES },
        }
    }

    /// Both ends have closed, and only acknowledgments are missing.
    fn is_orphan(&self) -> bool {
        self.orphan && self.fin == Fin::Queued
    }

    pub(super) fn probe_interval(&self) -> Duration {
        self.rtt.rto().min(MAX_PROBE_INTERVAL)
    }

    pub(crate) fn poll_at(&self) -> Option<Instant> {
        let regular = match self.timer {
            Timer::Off => None,
            Timer::Retransmit(at) | Timer::Persist(at) => Some(at),
        };
        let early = self.early.map(|(_, at)| at);
        [regular, early].into_iter().flatten().min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Expiry {
        if let Some((early, _)) = self.early.take_if(|&mut (_, at)| at <= now) {
            match early {
                Early::Reorder => self.find_losses(now),
                Early::Probe => self.probe_timeout(now),
            }
            return Expiry::Transmit;
        }
        match self.timer {
            Timer::Retransmit(at) if at <= now => self.retransmission_timeout(now),
            Timer::Persist(at) if at <= now => self.persist_timeout(now),
            Timer::Off | Timer::Retransmit(_) | Timer::Persist(_) => Expiry::None,
        }
    }

    pub(super) fn retransmission_timeout(&mut self, now: Instant) -> Expiry {
        if self.is_given_up(now, self.rtt.backoff()) {
            return Expiry::GiveUp;
        }
        let first = self.rtt.backoff() == 0;
        self.rtt.back_off();
        self.lose_after_timeout(now, first);
        // A closed window now means that the pod dropped what it had no room for: ask, do not send.
        if self.window == 0 {
            self.timer = Timer::Persist(self.no_later_than_patience(now + self.probe_interval()));
            self.unanswered_probes = self.unanswered_probes.saturating_add(1);
            return Expiry::Probe;
        }
        self.timer = self.retransmit_timer(now);
        Expiry::Transmit
    }

    pub(super) fn persist_timeout(&mut self, now: Instant) -> Expiry {
        // Nobody waits for an orphan's octets: that its probes are answered does not keep it (Linux: tcp_probe_timer).
        let tries = if self.is_orphan() { self.rtt.backoff() } else { self.unanswered_probes };
        if self.is_given_up(now, tries) {
            return Expiry::GiveUp;
        }
        if self.is_idle() {
            self.timer = Timer::Off;
            return Expiry::None;
        }
        self.unanswered_probes = self.unanswered_probes.saturating_add(1);
        self.rtt.back_off();
        self.timer = Timer::Persist(self.no_later_than_patience(now + self.probe_interval()));
        if self.window > 0 {
            self.override_silly_window = true;
            self.timer = Timer::Off;
            return Expiry::Transmit;
        }
        Expiry::Probe
    }
}
