//! Tests that need root skip loudly on a laptop and fail in CI.

use std::io::Write as _;

/// Whether a test may be skipped where something is missing: not where `CI=true`.
pub fn may_skip() -> bool {
    std::env::var_os("CI").is_none_or(|value| value != "true")
}

/// True when the test may go on. Without root it says so and, where `CI=true`, panics instead of returning false.
///
/// ```no_run
/// if !tunproxy_testkit::root_or_skip() {
///     return;
/// }
/// ```
pub fn root_or_skip() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("this test");
    assert!(may_skip(), "{test} needs root, and CI=true forbids skipping");
    // Not `eprintln!`: libtest would capture it, and a skipped test would look like one that passed.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: it needs root (network namespaces)");
    false
}
