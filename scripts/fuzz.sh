#!/bin/sh
# Runs each fuzz target, two at a time, one line each. Where one fails, its last words follow; a crash's input stays in
# fuzz/artifacts and is named there.
#
#   scripts/fuzz.sh [SECONDS]     for so long each (60), with AddressSanitizer
#   scripts/fuzz.sh runs COUNT    so many executions each, as fast as they go: without it, for what is fuzzed has no unsafe
#                                 code of its own, and without the tracing of comparisons, which takes more time than
#                                 the engine does
set -eu

build="--release --sanitizer address"
runs=
case ${1:-} in
runs)
    build="--release --sanitizer none --no-trace-compares"
    runs=$2
    limit=-runs=$2
    ;;
*) limit=-max_total_time=${1:-60} ;;
esac
cd "$(dirname "$0")/../fuzz"
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# They are built before the time runs, and not while another is.
# shellcheck disable=SC2086 # a list of arguments
cargo +nightly fuzz build $build >"$logs/build" 2>&1 || { tail -n 60 "$logs/build"; exit 1; }

# Where a count is given, inputs that take long are kept short: more of them are worth more.
longest() {
    case $1 in
    engine) echo 1024 ;;
    reassembly) echo 160 ;;
    *) echo 4096 ;;
    esac
}

start() {
    # shellcheck disable=SC2046,SC2086 # lists of arguments
    cargo +nightly fuzz run $build "$1" -- $([ -z "$runs" ] || echo "-max_len=$(longest "$1")") \
        "$limit" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 >"$logs/$1" 2>&1
}

finish() {
    if ! wait "$2" || ! grep -q '^Done ' "$logs/$1"; then
        tail -n 60 "$logs/$1"
        echo "fuzz: $1 failed" >&2
        failed=1
        return
    fi
    echo "fuzz: $1: $(grep '^Done ' "$logs/$1")"
}

failed=0
# Names of targets have no spaces.
# shellcheck disable=SC2046
set -- $(cargo +nightly fuzz list)
while [ $# -gt 0 ]; do
    first=$1 second=${2:-}
    start "$first" & first_pid=$!
    [ -z "$second" ] || { start "$second" & second_pid=$!; }
    finish "$first" "$first_pid"
    [ -z "$second" ] || finish "$second" "$second_pid"
    shift "$(($# > 1 ? 2 : 1))"
done
exit "$failed"
