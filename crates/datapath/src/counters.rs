//! Counters of one pod: everything dropped or refused has a reason here.

/// Why a packet of the pod was not acted upon. Each is a counter; most also cause an error to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum DropReason {
    Truncated,
    BadHeader,
    BadChecksum,
    ForeignSource,
    /// Source and destination are the same, or the destination is the pod itself.
    Land,
    Fragment,
    SourceRoute,
    HopLimit,
    UnknownProtocol,
    Multicast,
    /// A TCP segment of no known flow (answered with RST).
    NoFlow,
    /// Beyond the window, or with a RST or SYN that is not exactly right (RFC 5961).
    OutOfWindow,
    /// Octets that were acknowledged already, and keepalives: answered, and nothing new.
    OldSegment,
    /// PAWS: the timestamp is older than one already seen.
    OldTimestamp,
    BadAck,
    PendingLimit,
    HalfOpenLimit,
    FlowLimit,
    MappingLimit,
    EchoLimit,
    /// The buffers' memory budget is spent.
    Memory,
    /// More out-of-order ranges than a flow may keep.
    Reassembly,
    UnsolicitedReply,
    ErrorRate,
    /// An ICMP message other than echo request, or than news of a smaller MTU.
    IcmpType,
    /// Policy refused the flow.
    Policy,
    /// A socket had no room for a datagram or an echo request.
    SendFailed,
    /// The node gave no socket for it.
    NoSocket,
    /// A super-segment of more datagrams than the kernel itself would cut.
    Segments,
    /// A datagram or echo request that asks not to be cut, and is larger than the path outside takes.
    TooBig,
    /// A packet that another worker is to have, and that has more of them than it can take.
    Handover,
    /// A packet to the pod that its device did not take: it is down, say.
    TunWrite,
}

impl DropReason {
    pub const ALL: [Self; 32] = [
        Self::Truncated,
        Self::BadHeader,
        Self::BadChecksum,
        Self::ForeignSource,
        Self::Land,
        Self::Fragment,
        Self::SourceRoute,
        Self::HopLimit,
        Self::UnknownProtocol,
        Self::Multicast,
        Self::NoFlow,
        Self::OutOfWindow,
        Self::OldSegment,
        Self::OldTimestamp,
        Self::BadAck,
        Self::PendingLimit,
        Self::HalfOpenLimit,
        Self::FlowLimit,
        Self::MappingLimit,
        Self::EchoLimit,
        Self::Memory,
        Self::Reassembly,
        Self::UnsolicitedReply,
        Self::ErrorRate,
        Self::IcmpType,
        Self::Policy,
        Self::SendFailed,
        Self::NoSocket,
        Self::Segments,
        Self::TooBig,
        Self::Handover,
        Self::TunWrite,
    ];

    /// The fixed label of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::BadHeader => "bad-header",
            Self::BadChecksum => "bad-checksum",
            Self::ForeignSource => "foreign-source",
            Self::Land => "land",
            Self::Fragment => "fragment",
            Self::SourceRoute => "source-route",
            Self::HopLimit => "hop-limit",
            Self::UnknownProtocol => "unknown-protocol",
            Self::Multicast => "multicast",
            Self::NoFlow => "no-flow",
            Self::OutOfWindow => "out-of-window",
            Self::OldSegment => "old-segment",
            Self::OldTimestamp => "old-timestamp",
            Self::BadAck => "bad-ack",
            Self::PendingLimit => "pending-limit",
            Self::HalfOpenLimit => "half-open-limit",
            Self::FlowLimit => "flow-limit",
            Self::MappingLimit => "mapping-limit",
            Self::EchoLimit => "echo-limit",
            Self::Memory => "memory",
            Self::Reassembly => "reassembly",
            Self::UnsolicitedReply => "unsolicited-reply",
            Self::ErrorRate => "error-rate",
            Self::IcmpType => "icmp-type",
            Self::Policy => "policy",
            Self::SendFailed => "send-failed",
            Self::NoSocket => "no-socket",
            Self::Segments => "segments",
            Self::TooBig => "too-big",
            Self::Handover => "handover",
            Self::TunWrite => "tun-write",
        }
    }
}

/// Totals since the pod was attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
    pub tcp_opened: u64,
    pub tcp_retransmits: u64,
    pub challenge_acks: u64,
    pub resets_sent: u64,
    pub icmp_errors_sent: u64,
    pub dns_answers: u64,
    /// UDP peers that gave way to newer ones.
    pub udp_evictions: u64,
    /// Refusals that were told to the pod and not recorded: more came than the log has room for.
    pub refusals_unrecorded: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Counters {
    pub(crate) fn drop(&mut self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    pub(crate) fn drop_many(&mut self, reason: DropReason, packets: usize) {
        self.drops[reason as usize] += packets as u64;
    }

    /// Adds what another shard of the pod has counted.
    pub fn add(&mut self, other: &Self) {
        let Self {
            packets_in,
            bytes_in,
            packets_out,
            bytes_out,
            tcp_opened,
            tcp_retransmits,
            challenge_acks,
            resets_sent,
            icmp_errors_sent,
            dns_answers,
            udp_evictions,
            refusals_unrecorded,
            drops,
        } = other;
        self.packets_in += packets_in;
        self.bytes_in += bytes_in;
        self.packets_out += packets_out;
        self.bytes_out += bytes_out;
        self.tcp_opened += tcp_opened;
        self.tcp_retransmits += tcp_retransmits;
        self.challenge_acks += challenge_acks;
        self.resets_sent += resets_sent;
        self.icmp_errors_sent += icmp_errors_sent;
        self.dns_answers += dns_answers;
        self.udp_evictions += udp_evictions;
        self.refusals_unrecorded += refusals_unrecorded;
        self.drops.iter_mut().zip(drops).for_each(|(own, other)| *own += other);
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Every reason that occurred, with its count.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .into_iter()
            .map(|reason| (reason, self.dropped(reason)))
            .filter(|&(_, count)| count > 0)
    }
}
