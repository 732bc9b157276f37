//! Waiting for something that another process or the kernel does: asked again and again until a deadline.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `probe` every few milliseconds until it gives a value; the error names `what` did not come.
pub fn until<T>(what: impl Display, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut nap = Duration::from_millis(1);
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(nap);
        nap = (nap * 2).min(Duration::from_millis(20));
    }
}

/// As [`until`], for a condition.
pub fn until_true(what: impl Display, limit: Duration, mut probe: impl FnMut() -> bool) -> Result<()> {
    until(what, limit, || probe().then_some(()))
}
