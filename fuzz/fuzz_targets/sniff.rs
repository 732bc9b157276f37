//! First octets of a client: a verdict, once there, does not change with what follows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tunproxy_datapath::sniff::{LIMIT, Sniffed, sniff};

fuzz_target!(|octets: &[u8]| {
    let whole = sniff(octets);
    if octets.len() >= LIMIT {
        assert_ne!(whole, Sniffed::More, "a first flight without end");
    }
    let cut = octets.len() / 2;
    let part = sniff(&octets[..cut]);
    if part != Sniffed::More && cut < LIMIT {
        assert_eq!(part, whole, "the verdict on {cut} octets did not last");
    }
});
