//! What may happen next.

use arbitrary::Arbitrary;
use tunproxy_datapath::{Cx, DialFailure, Duration, FlowId};
use tunproxy_policy::NodeDefault;

use crate::pod::CONNECTIONS;
use crate::wire::{self, flag};
use crate::{Dial, World};

#[derive(Arbitrary, Clone, Debug)]
pub enum Step {
    /// A segment that is right but for what the offsets say.
    Segment(SegmentStep),
    /// A SYN with the options a real stack sends, and the ACK of its SYN|ACK.
    Connect {
        connection: u8,
        shift: u8,
        mss: u16,
        options: u8,
        window: u16,
    },
    /// The honest acknowledgment of all that was seen.
    Acknowledge {
        connection: u8,
        window: u16,
    },
    /// The honest next octets, and perhaps the FIN.
    Send {
        connection: u8,
        len: u16,
        fin: bool,
    },
    Raw(Vec<u8>),
    /// An error of ICMP about a segment of ours.
    TooBig {
        connection: u8,
        seq: Offset,
        mtu: u16,
    },
    Advance {
        millis: u16,
        long: bool,
    },
    Upstream {
        pick: u8,
        event: UpstreamStep,
    },
    Dial(DialStep),
    /// A connect that waits is answered.
    Answer(DialStep),
    Policy {
        allow: bool,
    },
}

#[derive(Arbitrary, Clone, Debug)]
pub struct SegmentStep {
    connection: u8,
    flags: u8,
    seq: Offset,
    ack: Offset,
    window: u16,
    len: u16,
    options: OptionStep,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Offset {
    None,
    Near(i16),
    Far(u32),
}

#[derive(Arbitrary, Clone, Debug)]
enum OptionStep {
    None,
    Raw(Vec<u8>),
    Timestamp(u32, u32),
    /// Offsets from what the pod has acknowledged.
    Sack(Vec<(i16, u16)>),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum UpstreamStep {
    Send(u16),
    Close,
    Reset,
    Stall,
    Read,
    Take(u16),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum DialStep {
    Connect,
    Refuse,
    Unreachable,
    TimeOut,
    Wait,
}

impl Offset {
    fn apply(self, base: u32) -> u32 {
        match self {
            Self::None => base,
            Self::Near(offset) => base.wrapping_add_signed(i32::from(offset)),
            Self::Far(offset) => base.wrapping_add(offset),
        }
    }
}

impl OptionStep {
    fn octets(&self, acked: u32) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Raw(octets) => octets.clone(),
            Self::Timestamp(value, echo) => {
                [&[1, 1, 8, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat()
            }
            Self::Sack(blocks) => {
                let blocks = &blocks[..blocks.len().min(4)];
                let mut octets = vec![1, 1, 5, (2 + 8 * blocks.len()) as u8];
                for &(offset, len) in blocks {
                    let start = acked.wrapping_add_signed(i32::from(offset));
                    octets.extend(start.to_be_bytes());
                    octets.extend(start.wrapping_add(u32::from(len)).to_be_bytes());
                }
                octets
            }
        }
    }
}

impl From<DialStep> for Dial {
    fn from(step: DialStep) -> Self {
        match step {
            DialStep::Connect => Self::Connect,
            DialStep::Refuse => Self::Fail(DialFailure::Refused),
            DialStep::Unreachable => Self::Fail(DialFailure::HostUnreachable),
            DialStep::TimeOut => Self::Fail(DialFailure::TimedOut),
            DialStep::Wait => Self::Wait,
        }
    }
}

impl World {
    pub fn step(&mut self, step: Step) {
        match step {
            Step::Segment(segment) => self.segment(&segment),
            Step::Connect { connection, shift, mss, options, window } => {
                self.connect(connection, shift, mss, options, window);
            }
            Step::Acknowledge { connection, window } => self.honest(connection, window, 0, false),
            Step::Send { connection, len, fin } => self.honest(connection, u16::MAX, len % 3_000, fin),
            Step::Raw(octets) => {
                self.raw(&octets);
            }
            Step::TooBig { connection, seq, mtu } => {
                let connection = &self.connections[usize::from(connection % CONNECTIONS as u8)];
                let packet = wire::too_big(connection.port, seq.apply(connection.acked), mtu);
                self.raw(&packet);
            }
            Step::Advance { millis, long } => {
                let factor = if long { 1_000 } else { 1 };
                self.advance(Duration::from_millis(u64::from(millis) * factor));
            }
            Step::Upstream { pick, event } => self.upstream_step(pick, event),
            Step::Dial(dial) => self.dial = dial.into(),
            Step::Answer(dial) => {
                if let Some(flow) = self.waiting.pop() {
                    self.answer(flow, dial.into());
                    self.settle();
                }
            }
            Step::Policy { allow } => {
                self.set_policy(if allow { NodeDefault::Allow } else { NodeDefault::Deny });
            }
        }
    }

    /// Opens a connection with any options; returns those of the answer.
    pub fn handshake(&mut self, options: &[u8]) -> Vec<u8> {
        let (port, irs) = (self.connections[0].port, self.connections[0].irs);
        self.raw(&wire::tcp(port, irs, 0, flag::SYN, u16::MAX, options, &[]));
        self.honest(0, u16::MAX, 0, false);
        std::mem::take(&mut self.connections[0].offered)
    }

    /// Lets the upstream of the only connection send, and the pod acknowledge it.
    pub fn download(&mut self, octets: u16) {
        self.upstream_step(0, UpstreamStep::Send(octets));
        self.honest(0, u16::MAX, 0, false);
    }

    fn segment(&mut self, step: &SegmentStep) {
        let connection = &self.connections[usize::from(step.connection % CONNECTIONS as u8)];
        let syn = step.flags & flag::SYN != 0;
        // Only one SYN number: which stream an octet belongs to would be anybody's guess otherwise.
        let seq = if syn { connection.irs } else { step.seq.apply(connection.next) };
        let ack = step.ack.apply(connection.acked);
        let len = usize::from(step.len % 2_000);
        let first = if syn { seq.wrapping_add(1) } else { seq };
        let payload = connection.octets(first, len);
        let options = step.options.octets(connection.acked);
        let packet = wire::tcp(connection.port, seq, ack, step.flags, step.window, &options, payload);
        self.raw(&packet);
    }

    fn connect(&mut self, connection: u8, shift: u8, mss: u16, options: u8, window: u16) {
        let index = usize::from(connection % CONNECTIONS as u8);
        let mut octets = Vec::new();
        if options & 1 != 0 {
            octets.extend([2, 4]);
            octets.extend(mss.to_be_bytes());
        }
        if options & 2 != 0 {
            octets.extend([1, 1, 4, 2]);
        }
        if options & 4 != 0 {
            octets.extend([1, 3, 3, shift]);
        }
        if options & 8 != 0 {
            octets.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0]);
        }
        let connection = &mut self.connections[index];
        connection.next = connection.irs.wrapping_add(1);
        let (port, irs) = (connection.port, connection.irs);
        self.raw(&wire::tcp(port, irs, 0, flag::SYN, window, &octets, &[]));
        self.honest(index as u8, window, 0, false);
    }

    fn honest(&mut self, connection: u8, window: u16, len: u16, fin: bool) {
        let connection = &mut self.connections[usize::from(connection % CONNECTIONS as u8)];
        let payload = connection.octets(connection.next, usize::from(len));
        let flags = flag::ACK | if fin { flag::FIN } else { 0 };
        let packet =
            wire::tcp(connection.port, connection.next, connection.acked, flags, window, &[], payload);
        connection.next = connection.next.wrapping_add(u32::from(len));
        self.raw(&packet);
    }

    fn upstream_step(&mut self, pick: u8, event: UpstreamStep) {
        let mut flows: Vec<FlowId> =
            self.upstreams.keys().copied().filter(|flow| !self.waiting.contains(flow)).collect();
        flows.sort_unstable();
        let Some(&flow) = flows.get(usize::from(pick) % flows.len().max(1)) else { return };
        match event {
            UpstreamStep::Send(octets) => self.upstream(flow).to_send += usize::from(octets),
            UpstreamStep::Close => self.upstream(flow).closes = true,
            UpstreamStep::Reset => {
                self.upstream_reset(flow);
                return;
            }
            UpstreamStep::Stall => self.upstream(flow).stalled = true,
            UpstreamStep::Read => {
                self.upstream(flow).stalled = false;
                self.write_up(flow, usize::MAX);
            }
            UpstreamStep::Take(octets) => {
                self.write_up(flow, usize::from(octets));
            }
        }
        self.read_down(flow);
        self.settle();
    }

    fn upstream_reset(&mut self, flow: FlowId) {
        self.stack.upstream_reset(&mut Cx { now: self.now, pool: &mut self.pool }, flow);
        self.settle();
    }
}
