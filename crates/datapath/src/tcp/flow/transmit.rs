//! What a connection sends: SYN|ACKs, probes, data, acknowledgments.

use smoltcp::time::Instant;

use super::{Flow, SYN_ACK_TIMEOUT, State, timestamp_value};
use crate::tcp::WINDOW_SCALE;
use crate::tcp::segment::{Options, Outgoing, Timestamp};
use crate::tcp::send::Piece;
use crate::tcp::seq::Seq;

impl Flow {
    /// The next segment, if any; its payload is [`Sender::piece_bytes`] of the piece.
    pub(crate) fn poll(&mut self, now: Instant, limit: usize) -> Option<(Outgoing, Option<Piece>)> {
        match self.state {
            State::SynReceived => return self.poll_half_open(now).map(|outgoing| (outgoing, None)),
            State::Closed => return None,
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => {}
        }
        if self.probe_now {
            self.probe_now = false;
            let seq = Seq(self.sender.una().0.wrapping_sub(1));
            return Some((self.outgoing(now, seq), None));
        }
        // What data would carry is no duplicate ACK to the pod, and has no room for SACK blocks: the ACK goes first.
        if self.ack_now && self.receiver.has_report() {
            return Some((self.acknowledgment(now), None));
        }
        if let Some(piece) = self.sender.next_piece(now, limit) {
            if piece.fin {
                self.fin_sent();
            }
            let mut outgoing = self.outgoing(now, piece.seq);
            self.acknowledging.sent(now, piece.len > 0);
            outgoing.psh = piece.psh;
            outgoing.fin = piece.fin;
            outgoing.payload_len = piece.len;
            outgoing.mss = self.sender.mss();
            return Some((outgoing, Some(piece)));
        }
        self.ack_now.then(|| (self.acknowledgment(now), None))
    }

    pub(super) fn acknowledgment(&mut self, now: Instant) -> Outgoing {
        let mut outgoing = self.outgoing(now, self.sender.sent_up_to());
        let blocks = self.receiver.take_report();
        if self.sack {
            outgoing.options.sack = blocks;
        }
        outgoing
    }

    pub(super) fn fin_sent(&mut self) {
        self.state = match self.state {
            State::Established => State::FinWait1,
            State::CloseWait => State::LastAck,
            other => other,
        };
    }

    pub(super) fn poll_half_open(&mut self, now: Instant) -> Option<Outgoing> {
        if self.syn_ack_now {
            return Some(self.syn_ack(now));
        }
        self.ack_now.then(|| self.outgoing(now, self.iss + 1))
    }

    pub(super) fn syn_ack(&mut self, now: Instant) -> Outgoing {
        self.syn_ack_now = false;
        match self.syn_ack_at {
            None => self.syn_ack_at = Some((now + SYN_ACK_TIMEOUT).into()),
            Some(_) => self.syn_ack_again = true,
        }
        let mut outgoing =
            Outgoing::new(self.iss, Some(self.receiver.nxt()), self.receiver.advertise_unscaled());
        outgoing.syn = true;
        outgoing.options = Options {
            mss: Some(self.our_mss),
            window_scale: self.scaled.then_some(WINDOW_SCALE),
            sack_permitted: self.sack,
            timestamp: self.timestamp(now),
            ..Options::NONE
        };
        outgoing
    }

    pub(super) fn outgoing(&mut self, now: Instant, seq: Seq) -> Outgoing {
        self.ack_now = false;
        self.acknowledging.sent(now, false);
        self.last_ack_sent = self.receiver.nxt();
        let window = self.receiver.advertise(self.our_mss);
        let mut outgoing = Outgoing::new(seq, Some(self.receiver.nxt()), window);
        outgoing.options.timestamp = self.timestamp(now);
        outgoing
    }

    pub(super) fn timestamp(&self, now: Instant) -> Option<Timestamp> {
        self.timestamps.map(|ts| Timestamp { value: timestamp_value(now, ts.offset), echo: ts.recent })
    }
}
