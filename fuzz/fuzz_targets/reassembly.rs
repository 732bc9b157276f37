//! Fragments in any order, overlapping or not: a datagram that comes out is made of the octets that went in.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tunproxy_datapath::{Duration, Input};
use tunproxy_fuzz::{World, octet};

#[derive(Arbitrary, Debug)]
struct Piece {
    v6: bool,
    identification: u8,
    /// In units of eight octets.
    offset: u16,
    more: bool,
    length: u16,
    wait: u8,
}

fuzz_target!(|pieces: Vec<Piece>| {
    let mut world = World::new();
    for piece in pieces {
        world.advance(Duration::from_millis(u64::from(piece.wait) * 100));
        let offset = usize::from(piece.offset % 8_192) * 8;
        let octets: Vec<u8> = (offset..offset + usize::from(piece.length)).map(at).collect();
        let (input, bytes) = world.fragment(piece.v6, piece.identification, offset, piece.more, &octets);
        if let Input::Datagram { payload, .. } = input {
            for (index, &found) in bytes[payload].iter().enumerate() {
                assert_eq!(found, octet((index + 8) as u64), "octet {index} is none that was sent");
            }
        }
    }
    world.end();
});

/// The fragmentable part: a UDP header without a checksum in front of a pattern. Its length is left to say 0: the
/// datagram is as long as the packet.
fn at(offset: usize) -> u8 {
    match offset {
        0 | 2 => 0x30,
        1 | 3 => 0x39,
        4..8 => 0,
        _ => octet(offset as u64),
    }
}
