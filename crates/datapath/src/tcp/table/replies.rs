//! Segments that stand alone: resets, and acknowledgments of connections that are over.

use smoltcp::time::Instant;
use tunproxy_policy::{Protocol, Refusal};

use crate::emit::Head;
use crate::key::Ends;
use crate::stack::Shared;
use crate::tcp::segment::{Outgoing, Segment};
use crate::tcp::seq::Seq;

/// RFC 9293 3.10.7.3: the reset that answers a SYN.
pub(super) fn reset_for_syn(seq: Seq) -> Outgoing {
    let mut outgoing = Outgoing::new(Seq(0), Some(seq + 1), 0);
    outgoing.rst = true;
    outgoing
}

/// Not limited in rate: it is one answer to one question of the pod, and silence would cost the pod a second.
pub(super) fn refuse_syn(sh: &mut Shared, ends: &Ends, seq: Seq) {
    sh.counters.resets_sent += 1;
    send_alone(sh, ends, &reset_for_syn(seq));
}

pub(super) fn refuse(sh: &mut Shared, now: Instant, ends: &Ends, segment: &Segment, refusal: Refusal) {
    refuse_syn(sh, ends, segment.seq);
    sh.record_refusal(now, Protocol::Tcp, ends.pod(), ends.remote(), refusal);
}

/// The reset for a segment of no connection (RFC 9293 3.10.7.1).
pub(super) fn reset_stray(sh: &mut Shared, now: Instant, ends: &Ends, segment: &Segment) {
    let mut outgoing = match segment.ack {
        Some(ack) => Outgoing::new(ack, None, 0),
        None => Outgoing::new(Seq(0), Some(segment.end()), 0),
    };
    outgoing.rst = true;
    send_reset(sh, now, ends, &outgoing);
}

pub(super) fn send_reset(sh: &mut Shared, now: Instant, ends: &Ends, outgoing: &Outgoing) {
    if sh.allow_error(now) {
        sh.counters.resets_sent += 1;
        send_alone(sh, ends, outgoing);
    }
}

/// Sends a segment without payload that belongs to no flow, or to one that ends with it.
pub(super) fn send_alone(sh: &mut Shared, ends: &Ends, outgoing: &Outgoing) {
    let head = head_alone(sh, ends, outgoing);
    sh.send_control(head.bytes().to_vec());
}

pub(super) fn head_alone(sh: &Shared, ends: &Ends, outgoing: &Outgoing) -> Head {
    let mut head = outgoing.head(ends.remote(), ends.pod());
    if !sh.config.offload {
        head.complete(&[]);
    }
    head
}
