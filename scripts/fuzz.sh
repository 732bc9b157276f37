#!/bin/sh
# Runs each fuzz target for the given number of seconds, one line each. Where one fails, its last words follow; a
# crash's input stays in fuzz/artifacts and is named there.
set -eu

seconds=${1:-60}
cd "$(dirname "$0")/../fuzz"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for target in $(cargo +nightly fuzz list); do
    echo "fuzz: $target for $seconds s"
    if ! cargo +nightly fuzz run --release "$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 >"$log" 2>&1; then
        tail -n 60 "$log"
        echo "fuzz: $target failed" >&2
        exit 1
    fi
    grep '^Done ' "$log" || { tail -n 20 "$log"; exit 1; }
done
