//! The datapath's time: microseconds of CLOCK_MONOTONIC since the process began to ask.

use std::sync::OnceLock;
use std::time::Instant as Monotonic;

use tunproxy_datapath::Instant;

pub(crate) fn now() -> Instant {
    Instant::from_micros(epoch().elapsed().as_micros() as i64)
}

fn epoch() -> Monotonic {
    static EPOCH: OnceLock<Monotonic> = OnceLock::new();
    *EPOCH.get_or_init(Monotonic::now)
}
