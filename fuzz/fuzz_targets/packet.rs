//! Raw octets from the TUN: packets of any kind, one after another, into one stack.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tunproxy_datapath::view::{Datagram, Packet};
use tunproxy_fuzz::World;

fuzz_target!(|packets: Vec<Vec<u8>>| {
    let mut world = World::new();
    for mut packet in packets {
        // Most headers would end at the first field otherwise.
        if let Some(first) = packet.get_mut(10) {
            *first = if *first & 1 == 0 { 0x45 } else { 0x60 };
        }
        tunproxy_fuzz::fix_header(&mut packet);
        if let Ok(parsed) = Packet::parse(&packet) {
            assert!(parsed.transport.end <= packet.len());
            assert_eq!(parsed.network.end, parsed.transport.start);
            if let Ok(datagram) = Datagram::parse(&parsed, &packet) {
                assert!(datagram.payload.end <= parsed.transport.end);
            }
        }
        world.raw(&packet);
    }
    world.end();
});
