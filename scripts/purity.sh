#!/bin/sh
# Proves that the pure crates are pure: no runtime, kernel or cluster crate in their tree, and clippy's list of
# disallowed methods in place (clippy itself enforces it).
set -eu

cd "$(dirname "$0")/.."
banned='tokio|kube|kube-.*|k8s-openapi|nix|libc|mio|rustix|socket2|tun-rs|rtnetlink|netlink-.*|notify|getrandom|rand|fastrand|async-.*'
status=0

for crate in policy datapath; do
    tree=$(cargo tree --quiet --edges normal --package "tunproxy-$crate" --prefix none --format '{p}')
    found=$(echo "$tree" | awk '{print $1}' | sort -u | grep -Ex "$banned" || true)
    if [ -n "$found" ]; then
        echo "purity: tunproxy-$crate depends on $(echo "$found" | tr '\n' ' ')" >&2
        for dependency in $found; do
            cargo tree --quiet --edges normal --package "tunproxy-$crate" --invert "$dependency" >&2 || true
        done
        status=1
    fi
    for method in std::time::Instant::now std::time::SystemTime::now std::env::var std::env::var_os \
        std::fs::read std::fs::File::open std::net::UdpSocket::bind std::process::Command::new std::thread::spawn; do
        grep -qs "$method" "crates/$crate/clippy.toml" || {
            echo "purity: crates/$crate/clippy.toml must disallow $method" >&2
            status=1
        }
    done
done

# Unsafe code has one home.
for manifest in cni-plugin agent crates/policy crates/datapath crates/ipc crates/testkit e2e benches; do
    if ! grep -q '^workspace = true' "$manifest/Cargo.toml"; then
        echo "purity: $manifest does not take the workspace's lints (unsafe_code = forbid)" >&2
        status=1
    fi
done
exit $status
