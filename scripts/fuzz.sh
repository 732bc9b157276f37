#!/bin/sh
# Runs each fuzz target for the given number of seconds. A crash's input stays in fuzz/artifacts and is named.
set -eu

seconds=${1:-60}
cd "$(dirname "$0")/../fuzz"
for target in $(cargo +nightly fuzz list); do
    echo "fuzz: $target for $seconds s"
    cargo +nightly fuzz run --release "$target" -- -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1
done
