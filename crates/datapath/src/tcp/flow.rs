//! One connection's state machine (RFC 9293 3.10), seen from the side that stands in for the remote end.

mod delayed;
mod silence;
mod transmit;

use smoltcp::time::{Duration, Instant};

use self::delayed::Acknowledging;
use super::recv::{Accepted, Receiver};
use super::segment::{Options, Outgoing, Segment, TIMESTAMP_LEN};
use super::send::{Expiry, Heard, Sender, Settings};
use super::seq::Seq;
use super::time_wait::Record;
use super::{MIN_MSS, WINDOW_SCALE};
use crate::buffer::{PacketBuf, Pool};
use crate::counters::DropReason;
use crate::limits::Keepalive;
use crate::timer::Moment;
use crate::too_big::TooBig;

/// SYN|ACKs sent again before the half-open flow is given up (Linux: tcp_synack_retries).
const SYN_ACK_RETRIES: u8 = 5;
const SYN_ACK_TIMEOUT: Duration = Duration::from_secs(1);

/// One answer to segments outside the window per flow and this time (Linux: tcp_invalid_ratelimit).
const INVALID_ACK_INTERVAL: Duration = Duration::from_millis(500);

/// RFC 7323 5.5: a timestamp older than this no longer says anything about order.
const TIMESTAMP_VALID: Duration = Duration::from_secs(24 * 24 * 3_600);

/// Our clock in timestamps: milliseconds behind an offset of the flow's own (RFC 7323 5.4).
pub(crate) fn timestamp_value(now: Instant, offset: u32) -> u32 {
    (now.total_millis() as u32).wrapping_add(offset)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    TimeWait,
    Closed,
}

/// What the pod's SYN asked for; kept while it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Syn {
    pub(crate) seq: Seq,
    pub(crate) window: u16,
    pub(crate) options: Options,
}

/// What is known of the link the flow runs over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    /// Octets of TCP payload that fit the link's MTU without options.
    pub(crate) mss: u16,
    /// The MSS of a pod that names none (RFC 9293 3.7.1).
    pub(crate) default_mss: u16,
    pub(crate) receive_buffer: usize,
    pub(crate) keepalive: Option<Keepalive>,
    pub(crate) user_timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Timestamps {
    /// TS.Recent and when it was taken.
    recent: u32,
    recent_at: Instant,
    offset: u32,
}

/// What a segment or a timer led to. The stack acts on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Events {
    pub(crate) established: bool,
    /// Octets for the upstream arrived.
    pub(crate) data: bool,
    /// The pod closed its direction.
    pub(crate) fin: bool,
    /// The pod reset the connection.
    pub(crate) reset: bool,
    /// The pod does not answer.
    pub(crate) silent: bool,
    /// The window may have opened.
    pub(crate) acked: bool,
    /// The segment deserves a challenge ACK, if the limit allows one.
    pub(crate) challenge: bool,
    /// The segment is answered with a RST that bears this sequence number.
    pub(crate) answer_reset: Option<u32>,
    pub(crate) dropped: Option<DropReason>,
}

impl Events {
    fn dropped(reason: DropReason) -> Self {
        Self { dropped: Some(reason), ..Self::default() }
    }
}

#[derive(Debug)]
pub(crate) struct Flow {
    state: State,
    iss: Seq,
    irs: Seq,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    timestamps: Option<Timestamps>,
    sack: bool,
    scaled: bool,
    our_mss: u16,
    last_ack_sent: Seq,
    ack_now: bool,
    acknowledging: Acknowledging,
    probe_now: bool,
    syn_ack_now: bool,
    syn_acks: u8,
    /// The SYN|ACK went out more than once: its acknowledgment measures nothing (Karn).
    syn_ack_again: bool,
    syn_ack_at: Option<Moment>,
    heard: Instant,
    keepalive: Option<Keepalive>,
    /// Probes since then.
    keepalives: u16,
    invalid_ack_at: Option<Moment>,
}

impl Flow {
    /// The upstream has connected: answers `syn`. `iss` is ours, `offset` hides the clock in our timestamps.
    pub(crate) fn accept(now: Instant, syn: &Syn, link: Link, iss: Seq, offset: u32) -> Self {
        let options = &syn.options;
        let timestamps = options.timestamp.map(|ts| Timestamps { recent: ts.value, recent_at: now, offset });
        let scaled = options.window_scale.is_some();
        let asked = options.mss.filter(|&mss| mss > 0).unwrap_or(link.default_mss).max(MIN_MSS);
        let taken = if timestamps.is_some() { TIMESTAMP_LEN } else { 0 };
        let mss = asked.min(link.mss).saturating_sub(taken).max(1);
        let settings = Settings {
            mss,
            scale: options.window_scale.unwrap_or(0),
            window: syn.window,
            sack: options.sack_permitted,
            user_timeout: link.user_timeout,
        };
        Self {
            state: State::SynReceived,
            iss,
            irs: syn.seq,
            sender: Sender::new(now, iss + 1, syn.seq, settings),
            receiver: Receiver::new(syn.seq + 1, if scaled { WINDOW_SCALE } else { 0 }, link.receive_buffer),
            timestamps,
            sack: options.sack_permitted,
            scaled,
            our_mss: link.mss,
            last_ack_sent: syn.seq + 1,
            ack_now: false,
            acknowledging: Acknowledging::NEW,
            probe_now: false,
            syn_ack_now: true,
            syn_acks: 0,
            syn_ack_again: false,
            syn_ack_at: None,
            heard: now,
            keepalive: link.keepalive,
            keepalives: 0,
            invalid_ack_at: None,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// The last acknowledgment of a connection that goes to TIME-WAIT, and what is kept to repeat it.
    pub(crate) fn leave(&mut self, now: Instant) -> Record {
        let acknowledgment = self.outgoing(now, self.sender.sent_up_to());
        Record { acknowledgment, timestamp_offset: self.timestamps.map_or(0, |timestamps| timestamps.offset) }
    }

    /// A challenge ACK was allowed, or an acknowledgment is due.
    pub(crate) fn acknowledge_now(&mut self) {
        self.ack_now = true;
    }

    /// The upstream took octets: tell the pod of the room, if it matters. Returns whether there is something to send.
    pub(crate) fn uplink_drained(&mut self, pool: &mut Pool, octets: usize) -> bool {
        self.receiver.drain(pool, octets);
        if self.receiver.wants_update(self.our_mss) && self.state != State::SynReceived {
            self.ack_now = true;
        }
        self.ack_now
    }

    /// Segments as large as the one that `error` speaks of do not pass. Returns whether it is one that is under way, and
    /// smaller ones go from now on.
    pub(crate) fn packet_too_big(&mut self, now: Instant, error: &TooBig) -> bool {
        let options = if self.timestamps.is_some() { TIMESTAMP_LEN } else { 0 };
        let headers = if error.pod.is_ipv4() { 40 } else { 60 };
        let mss = error.mtu.saturating_sub(headers).max(MIN_MSS) - options;
        self.sender.lower_mss(now, error.seq, mss)
    }

    // --- segments ---

    pub(crate) fn handle(
        &mut self,
        now: Instant,
        pool: &mut Pool,
        buffer: &mut PacketBuf,
        segment: &Segment,
    ) -> Events {
        if let Some(events) = self.screen(now, segment) {
            return events;
        }
        let Some(ack) = segment.ack else {
            return Events::dropped(DropReason::BadAck);
        };
        let mut events = match self.check_ack(now, segment, ack) {
            Ok(events) => events,
            Err(events) => return events,
        };
        self.heard = now;
        self.keepalives = 0;
        self.take_timestamp(now, segment);
        self.take_ack(now, pool, segment, ack, &mut events);
        self.take_payload(now, pool, buffer, segment, &mut events);
        events
    }

    /// RFC 9293 3.10.7.4 up to the ACK: PAWS, sequence, RST, SYN. `Some`: the segment goes no further.
    fn screen(&mut self, now: Instant, segment: &Segment) -> Option<Events> {
        if self.is_old_timestamp(now, segment) {
            self.acknowledge_invalid(now, segment);
            return Some(Events::dropped(DropReason::OldTimestamp));
        }
        let syn_again = segment.syn && !segment.rst && segment.ack.is_none() && segment.seq == self.irs;
        if self.state == State::SynReceived && syn_again {
            // Our SYN|ACK was lost or is late.
            self.syn_ack_now = true;
            return Some(Events::default());
        }
        if !self.receiver.is_acceptable(segment) {
            if segment.syn && !segment.rst {
                return Some(self.challenge(now, DropReason::OutOfWindow));
            }
            if !segment.rst {
                self.note_duplicate(segment);
                self.acknowledge_invalid(now, segment);
                if self.receiver.is_old(segment) {
                    return Some(Events::dropped(DropReason::OldSegment));
                }
            }
            return Some(Events::dropped(DropReason::OutOfWindow));
        }
        if segment.rst {
            // RFC 5961 3.2: only the exact sequence number resets.
            return Some(if segment.seq == self.receiver.nxt() {
                self.state = State::Closed;
                Events { reset: true, ..Events::default() }
            } else {
                self.challenge(now, DropReason::OutOfWindow)
            });
        }
        // RFC 5961 4.2.
        segment.syn.then(|| self.challenge(now, DropReason::OutOfWindow))
    }

    /// Drops the segment and asks for a challenge ACK, within the flow's limit; the stack has one of its own.
    fn challenge(&mut self, now: Instant, reason: DropReason) -> Events {
        Events { challenge: self.may_answer_invalid(now), ..Events::dropped(reason) }
    }

    fn may_answer_invalid(&mut self, now: Instant) -> bool {
        if self.invalid_ack_at.is_some_and(|at| now - at.get() < INVALID_ACK_INTERVAL) {
            return false;
        }
        self.invalid_ack_at = Some(now.into());
        true
    }

    fn is_old_timestamp(&self, now: Instant, segment: &Segment) -> bool {
        let (Some(ours), Some(theirs)) = (&self.timestamps, segment.options.timestamp) else { return false };
        let older = (theirs.value.wrapping_sub(ours.recent) as i32) < 0;
        older && !segment.rst && now - ours.recent_at < TIMESTAMP_VALID
    }

    fn note_duplicate(&mut self, segment: &Segment) {
        if self.sack && !segment.payload.is_empty() && segment.end().at_or_before(self.receiver.nxt()) {
            self.receiver.report_duplicate(segment.seq, segment.seq + segment.payload.len() as u32);
        }
    }

    /// Answers a segment that was not acceptable: with data at once (its sender waits for the ACK), else at most twice
    /// a second, so that two ends that disagree do not answer each other for ever.
    fn acknowledge_invalid(&mut self, now: Instant, segment: &Segment) {
        if !segment.payload.is_empty() || segment.fin || self.may_answer_invalid(now) {
            self.ack_now = true;
        }
    }

    /// RFC 9293 3.10.7.4, fifth, with RFC 5961 5.2.
    fn check_ack(&mut self, now: Instant, segment: &Segment, ack: Seq) -> Result<Events, Events> {
        if self.state == State::SynReceived {
            return if ack == self.iss + 1 {
                self.establish(now, segment);
                Ok(Events { established: true, ..Events::default() })
            } else {
                Err(Events { answer_reset: Some(ack.0), ..Events::dropped(DropReason::BadAck) })
            };
        }
        if ack.after(self.sender.sent_up_to()) || ack.before(self.sender.oldest_ack()) {
            return Err(self.challenge(now, DropReason::BadAck));
        }
        Ok(Events::default())
    }

    fn establish(&mut self, now: Instant, segment: &Segment) {
        self.state = State::Established;
        if let Some(due) = self.syn_ack_at.take()
            && !self.syn_ack_again
        {
            self.sender.measured(now, SYN_ACK_TIMEOUT - (due.get() - now).min(SYN_ACK_TIMEOUT));
        }
        if self.syn_acks > 0 {
            self.sender.handshake_repeated();
        }
        self.syn_ack_now = false;
        // RFC 9293: the window of this segment is the first scaled one.
        self.sender.first_window(segment);
    }

    fn take_timestamp(&mut self, now: Instant, segment: &Segment) {
        let (Some(ours), Some(theirs)) = (&mut self.timestamps, segment.options.timestamp) else { return };
        if segment.seq.at_or_before(self.last_ack_sent) {
            ours.recent = theirs.value;
            ours.recent_at = now;
        }
    }

    /// When the segment's echo left us: milliseconds of our clock.
    fn echo(&self, segment: &Segment) -> Option<u32> {
        let (ours, theirs) = (self.timestamps.as_ref()?, segment.options.timestamp?);
        Some(theirs.echo.wrapping_sub(ours.offset))
    }

    fn take_ack(&mut self, now: Instant, pool: &mut Pool, segment: &Segment, ack: Seq, events: &mut Events) {
        let same_window = self.sender.is_same_window(segment);
        let pure = segment.payload.is_empty() && !segment.fin && same_window;
        let heard = Heard { now, echo: self.echo(segment) };
        let progress = self.sender.acknowledge(heard, pool, ack, segment, pure);
        events.acked = progress.freed || (!same_window && ack.at_or_after(self.sender.una()));
        self.sender.update_window(segment, ack, progress.advanced);
        if self.sender.is_fin_acked() {
            self.state = match self.state {
                State::FinWait1 => State::FinWait2,
                State::Closing => State::TimeWait,
                State::LastAck => State::Closed,
                other => other,
            };
        }
    }

    fn take_payload(
        &mut self,
        now: Instant,
        pool: &mut Pool,
        buffer: &mut PacketBuf,
        segment: &Segment,
        events: &mut Events,
    ) {
        if segment.payload.is_empty() && !segment.fin {
            return;
        }
        // Whatever does not simply go on is answered at once (RFC 5681 4.2).
        let was_due = std::mem::replace(&mut self.ack_now, true);
        match self.state {
            State::Established | State::FinWait1 | State::FinWait2 => {}
            // The pod had closed this direction; nothing more can be in order.
            State::SynReceived
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait
            | State::Closed => {
                return;
            }
        }
        let gap = self.receiver.has_report();
        let accepted = self.receiver.accept(pool, buffer, segment);
        match accepted {
            Accepted::InOrder(_) => events.data = true,
            Accepted::OutOfOrder | Accepted::Duplicate => {}
            Accepted::Refused(reason) => events.dropped = Some(reason),
        }
        let plain = matches!(accepted, Accepted::InOrder(_)) && !gap && !segment.fin;
        self.ack_now = was_due || !self.may_hold_ack(now, plain);
        if self.receiver.is_closed() {
            events.fin = true;
            self.sender.set_orphan();
            self.state = match self.state {
                State::Established => State::CloseWait,
                State::FinWait1 => State::Closing,
                State::FinWait2 => State::TimeWait,
                other => other,
            };
        }
    }

    /// The segment that resets the pod's end.
    pub(crate) fn reset(&mut self, now: Instant, pool: &mut Pool) -> Outgoing {
        self.state = State::Closed;
        self.sender.clear(pool);
        let mut outgoing = Outgoing::new(self.sender.sent_up_to(), Some(self.receiver.nxt()), 0);
        outgoing.rst = true;
        // RFC 7323 3.2.
        outgoing.options.timestamp = self.timestamp(now);
        outgoing
    }

    /// Octets of buffers the flow holds.
    pub(crate) fn held(&self) -> usize {
        self.sender.held() + self.receiver.held()
    }

    /// What holds between calls; `dirty`: the flow may still have something to transmit.
    pub(crate) fn check(&self, dirty: bool) -> Result<(), String> {
        let relaying = !matches!(self.state, State::SynReceived | State::Closed | State::TimeWait);
        self.sender.check(relaying && !dirty)?;
        self.receiver.check()
    }

    /// Nothing is left to do for it until the pod or the upstream says something.
    pub(crate) fn may_sleep(&self) -> bool {
        self.state != State::SynReceived && self.keepalive.is_none() && self.sender.is_idle()
    }

    pub(crate) fn clear(&mut self, pool: &mut Pool) {
        self.sender.clear(pool);
        self.receiver.clear(pool);
    }

    // --- time ---

    pub(crate) fn poll_at(&self) -> Option<Instant> {
        if self.state == State::SynReceived {
            return self.syn_ack_at.map(Moment::get);
        }
        let times = [self.sender.poll_at(), self.acknowledging.due(), self.keepalive_due()];
        times.into_iter().flatten().min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Events {
        let silent = Events { silent: true, ..Events::default() };
        if self.state == State::SynReceived {
            if self.syn_ack_at.is_some_and(|at| at.get() <= now) {
                self.syn_acks += 1;
                if self.syn_acks > SYN_ACK_RETRIES {
                    return silent;
                }
                self.syn_ack_now = true;
                self.syn_ack_at = Some((now + SYN_ACK_TIMEOUT * (1 << self.syn_acks)).into());
            }
            return Events::default();
        }
        if self.acknowledging.is_overdue(now) {
            self.ack_now = true;
        }
        match self.sender.handle_timeout(now) {
            Expiry::None | Expiry::Transmit => {}
            Expiry::Probe => self.probe_now = true,
            Expiry::GiveUp => return silent,
        }
        self.ask_if_silent(now)
    }
}
