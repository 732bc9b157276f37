//! What a readiness event is about, packed into the number that epoll gives back.

use mio::Token;
use tunproxy_datapath::FlowId;

/// The command channel's waker.
pub(super) const WAKER: Token = Token(usize::MAX);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Tun(u16),
    Tcp(u32),
    Udp(u32),
    Echo(u32),
}

/// Which of the sockets that a slot has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation(u16);

impl Generation {
    /// Of what is never replaced.
    pub(super) const NONE: Self = Self(0);
}

impl From<FlowId> for Generation {
    fn from(flow: FlowId) -> Self {
        Self(flow.generation as u16)
    }
}

const POD: usize = 0x3f_ffff;
const SLOT: usize = 0xff_ffff;

/// Bits: 2 kind, 22 pod, 24 slot, 16 generation. The limits of flows and pods are far below.
pub(super) fn pack(pod: usize, source: Source, generation: Generation) -> Token {
    let (kind, slot) = match source {
        Source::Tun(queue) => (0, u32::from(queue)),
        Source::Tcp(slot) => (1, slot),
        Source::Udp(slot) => (2, slot),
        Source::Echo(slot) => (3, slot),
    };
    Token(kind << 62 | (pod & POD) << 40 | (slot as usize & SLOT) << 16 | usize::from(generation.0))
}

pub(super) fn unpack(token: Token) -> (usize, Source, Generation) {
    let slot = (token.0 >> 16 & SLOT) as u32;
    let source = match token.0 >> 62 {
        0 => Source::Tun(slot as u16),
        1 => Source::Tcp(slot),
        2 => Source::Udp(slot),
        _ => Source::Echo(slot),
    };
    (token.0 >> 40 & POD, source, Generation(token.0 as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_were() {
        for source in [Source::Tun(3), Source::Tcp(0xff_ffff), Source::Udp(0), Source::Echo(7)] {
            for pod in [0, 1, POD - 1] {
                for generation in [Generation::NONE, Generation(u16::MAX)] {
                    let token = pack(pod, source, generation);
                    assert_ne!(token, WAKER);
                    assert_eq!(unpack(token), (pod, source, generation));
                }
            }
        }
    }
}
