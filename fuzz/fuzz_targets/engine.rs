//! The TCP engine between a hostile pod and arbitrary upstreams: every octet that passes is the right one, and after
//! each step the stack's invariants hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tunproxy_fuzz::{Step, World};

fuzz_target!(|steps: Vec<Step>| {
    let mut world = World::new();
    for step in steps {
        world.step(step);
    }
    world.end();
});
