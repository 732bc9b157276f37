//! What a readiness event is about, packed into the number that epoll gives back.

use mio::Token;

/// The command channel's waker.
pub(super) const WAKER: Token = Token(usize::MAX);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Tun(u16),
    Tcp(u32),
    Udp(u32),
    Echo(u32),
}

/// Bits: 2 kind, 30 pod, 32 slot.
pub(super) fn pack(pod: usize, source: Source) -> Token {
    let (kind, slot) = match source {
        Source::Tun(queue) => (0, u32::from(queue)),
        Source::Tcp(slot) => (1, slot),
        Source::Udp(slot) => (2, slot),
        Source::Echo(slot) => (3, slot),
    };
    Token(kind << 62 | (pod & 0x3fff_ffff) << 32 | slot as usize)
}

pub(super) fn unpack(token: Token) -> (usize, Source) {
    let slot = token.0 as u32;
    let source = match token.0 >> 62 {
        0 => Source::Tun(slot as u16),
        1 => Source::Tcp(slot),
        2 => Source::Udp(slot),
        _ => Source::Echo(slot),
    };
    (token.0 >> 32 & 0x3fff_ffff, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_were() {
        for source in [Source::Tun(3), Source::Tcp(u32::MAX), Source::Udp(0), Source::Echo(7)] {
            for pod in [0, 1, 0x3fff_fffe] {
                let token = pack(pod, source);
                assert_ne!(token, WAKER);
                assert_eq!(unpack(token), (pod, source));
            }
        }
    }
}
