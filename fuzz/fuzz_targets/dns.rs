//! Resolvers' answers: any octets, and what is read of them stays within bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tunproxy_datapath::dns;

fuzz_target!(|message: &[u8]| {
    if let Some(answer) = dns::read_answer(message) {
        assert!(!answer.addresses.is_empty());
        assert!(answer.addresses.len() <= message.len() / 12, "more addresses than fit");
        assert!(answer.name.as_str().len() <= 253);
    }
});
