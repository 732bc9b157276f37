//! The options of a SYN, whatever they are: each is answered just when it was asked, and the connection works.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tunproxy_fuzz::{Options, World};

fuzz_target!(|octets: &[u8]| {
    let mut world = World::new();
    let mut octets = octets[..octets.len().min(40)].to_vec();
    octets.resize(octets.len().next_multiple_of(4), 0);
    let (asked, answered) = (Options::read(&octets), Options::read(&world.handshake(&octets)));
    assert_eq!(answered.mss, Some(1_460));
    assert_eq!((answered.scale.is_some(), answered.sack), (asked.scale.is_some(), asked.sack));
    assert_eq!(answered.timestamp.map(|(_, echo)| echo), asked.timestamp.map(|(value, _)| value));
    world.download(5_000);
    world.end();
});
