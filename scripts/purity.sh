#!/bin/sh
# Proves what architecture promises of the crates: who uses whom, no runtime, kernel or cluster crate below the pure
# ones, clippy's list of disallowed methods in place there (clippy itself enforces it), and one home for unsafe code.
set -eu

cd "$(dirname "$0")/.."
banned='tokio|kube|kube-.*|k8s-openapi|nix|libc|mio|rustix|socket2|tun-rs|rtnetlink|netlink-.*|notify|getrandom|rand|fastrand|async-.*'
status=0

complain() {
    echo "purity: $*" >&2
    status=1
}

# Package (without tunproxy-), then the packages of the workspace that its build may use. What is tested with is free.
may_use() {
    case "$1" in
    policy | ipc | linux-net | testkit) ;;
    datapath) echo policy ;;
    tun-stack) echo linux-net ;;
    cni-plugin) echo ipc linux-net ;;
    # tun-stack is the outside host of the self-test, and of nothing else: pods are served by datapath.
    agent) echo policy datapath ipc linux-net tun-stack ;;
    e2e | bench) echo testkit ;;
    *) echo unknown ;;
    esac
}

crates=$(cargo metadata --quiet --no-deps --locked --format-version 1 |
    grep -o '"name":"tunproxy-[a-z0-9-]*","version"' | cut -d'"' -f4 | sed 's/^tunproxy-//' | sort -u)
for crate in $crates; do
    allowed=" $(may_use "$crate") "
    [ "$allowed" != " unknown " ] || complain "scripts/purity.sh does not know whom tunproxy-$crate may use"
    used=$(cargo tree --quiet --locked --all-features --edges normal,build --depth 1 --prefix none --format '{p}' \
        --package "tunproxy-$crate" | awk 'NR > 1 { print $1 }' | sed -n 's/^tunproxy-//p' | sort -u)
    for other in $used; do
        case "$allowed" in
        *" $other "*) ;;
        *) complain "tunproxy-$crate must not use tunproxy-$other" ;;
        esac
    done
done

for crate in policy datapath; do
    tree=$(cargo tree --quiet --locked --all-features --edges normal --package "tunproxy-$crate" --prefix none --format '{p}')
    found=$(echo "$tree" | awk '{print $1}' | sort -u | grep -Ex "$banned" || true)
    for dependency in $found; do
        complain "tunproxy-$crate depends on $dependency"
        cargo tree --quiet --edges normal --package "tunproxy-$crate" --invert "$dependency" >&2 || true
    done
    for method in std::time::Instant::now std::time::SystemTime::now std::env::var std::env::var_os \
        std::fs::read std::fs::File::open std::net::UdpSocket::bind std::process::Command::new std::thread::spawn; do
        grep -qs "\"$method\"" "crates/$crate/clippy.toml" || complain "crates/$crate/clippy.toml must disallow $method"
    done
done

# Unsafe code has one home; what is fuzzed or measured with is checked like the rest.
for crate in $crates fuzz; do
    case "$crate" in
    bench) manifest=benches/Cargo.toml ;;
    policy | datapath | ipc | linux-net | testkit | tun-stack) manifest=crates/$crate/Cargo.toml ;;
    *) manifest=$crate/Cargo.toml ;;
    esac
    case "$crate" in
    linux-net) ;;
    fuzz) grep -q '^unsafe_code = "forbid"' "$manifest" || complain "$manifest does not forbid unsafe code" ;;
    *)
        awk '/^\[lints\]/ { on = 1 } on && /^workspace = true/ { found = 1 } END { exit !found }' "$manifest" ||
            complain "$manifest does not take the workspace's lints (unsafe_code = forbid)"
        ;;
    esac
done

# The home of unsafe code has lints of its own: clippy's are the workspace's, and one more.
clippy_lints() {
    awk -v table="[$2]" '/^\[/ { on = $0 == table; next } on && /^[a-z]/' "$1" | sort
}
wanted=$({
    clippy_lints Cargo.toml workspace.lints.clippy
    echo 'undocumented_unsafe_blocks = "deny"'
} | sort)
if [ "$(clippy_lints crates/linux-net/Cargo.toml lints.clippy)" != "$wanted" ]; then
    complain "crates/linux-net/Cargo.toml: [lints.clippy] must be Cargo.toml's [workspace.lints.clippy] and undocumented_unsafe_blocks"
fi
exit $status
