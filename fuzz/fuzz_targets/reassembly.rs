//! Fragments in any order, overlapping or not: a datagram that comes out is made of the octets that went in.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tunproxy_datapath::{Duration, Input};
use tunproxy_fuzz::{World, octets};

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
        let mut part = octets(offset as u64, piece.length.into()).to_vec();
        // A UDP header without a checksum. Its length is left to say 0: the datagram is as long as the packet.
        for (octet, header) in
            part.iter_mut().zip([0x30, 0x39, 0x30, 0x39, 0, 0, 0, 0].into_iter().skip(offset))
        {
            *octet = header;
        }
        let (input, bytes) = world.fragment(piece.v6, piece.identification, offset, piece.more, &part);
        if let Input::Datagram { payload, .. } = input {
            let found = &bytes[payload];
            assert!(found == octets(8, found.len()), "octets that nobody sent");
        }
    }
    world.end();
});
