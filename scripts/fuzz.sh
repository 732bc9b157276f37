#!/bin/sh
# Runs each fuzz target, two at a time, one line each. Where one fails, its last words follow; a crash's input stays in
# fuzz/artifacts and is named there.
#
#   scripts/fuzz.sh [SECONDS]     for so long each (60), with AddressSanitizer
#   scripts/fuzz.sh runs COUNT    so many executions each, without it: what is fuzzed has no unsafe code of its own
set -eu

sanitizer=address
case ${1:-} in
runs)
    sanitizer=none
    limit=-runs=$2
    ;;
*) limit=-max_total_time=${1:-60} ;;
esac
cd "$(dirname "$0")/../fuzz"
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# They are built before the time runs, and not while another is.
cargo +nightly fuzz build --release --sanitizer "$sanitizer" >"$logs/build" 2>&1 || { tail -n 60 "$logs/build"; exit 1; }

start() {
    cargo +nightly fuzz run --release --sanitizer "$sanitizer" "$1" -- \
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
