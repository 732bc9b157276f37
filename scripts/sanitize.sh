#!/bin/sh
# Runs the unit tests of what handles packets, descriptors and threads under a sanitizer, with a standard library that is
# instrumented too, and then a plugin and an agent of four workers built so under every program of the end-to-end rows.
#
#   scripts/sanitize.sh [address] [thread]      (default: both)
#
# A finding ends the program that has it: its test fails, and the output says where.
set -eu

cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
host=x86_64-unknown-linux-gnu
packages="--package tunproxy-datapath --package tunproxy-linux-net --package tunproxy-tun-stack --package tunproxy-ipc
    --package tunproxy-agent --package tunproxy-cni-plugin"
export CARGO_INCREMENTAL=0
export ASAN_OPTIONS=abort_on_error=1:detect_leaks=0
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1

# cargo with the sanitizer's flags; programs of the build itself are left as they are.
sanitized() {
    sanitizer=$1
    shift
    RUSTFLAGS="-Zsanitizer=$sanitizer" cargo +nightly "$@" -Zbuild-std --target $host \
        --target-dir "$target/sanitize-$sanitizer"
}

[ $# -gt 0 ] || set -- address thread
for name in "$@"; do
    programs=$target/sanitize-$name/$host/debug
    echo "sanitize: $name: unit tests"
    # shellcheck disable=SC2086 # a list of arguments
    sanitized "$name" test $packages --lib --bins --no-fail-fast
    # The datapath's tests of whole connections; pure, and so unit tests too.
    sanitized "$name" test --package tunproxy-datapath --tests --no-fail-fast
    echo "sanitize: $name: an agent in service"
    sanitized "$name" build --package tunproxy-agent --package tunproxy-cni-plugin
    TUNPROXY_WORKERS=4 TUNPROXY_BIN_DIR=$programs cargo test --package tunproxy-e2e --test programs --target-dir "$target"
done
