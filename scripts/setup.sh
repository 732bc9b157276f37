#!/bin/sh
# Installs what the given groups need and is missing, saying what. Idempotent; changes nothing when all is there.
# Without root it prints the command to run and exits 1.
#
#   scripts/setup.sh [test] [e2e] [bench] [peers] [lint] [fuzz] [sanitize]      (default: test)
set -eu

cargo_deny_version=0.20.2
cargo_fuzz_version=0.13.2
tun2proxy_version=0.8.7
shadowsocks_version=1.25.0

# package:file pairs; the file tells whether the package is there without asking dpkg, so that a program installed by
# other means is good too.
test_packages="
iproute2:ip nftables:nft iputils-ping:ping util-linux:nsenter procps:ps coreutils:sha256sum
containernetworking-plugins:/usr/lib/cni/ptp
nginx:nginx dnsmasq-base:dnsmasq dante-server:danted microsocks:microsocks openssh-server:sshd iperf3:iperf3
curl:curl bind9-dnsutils:dig git:git openssh-client:scp netcat-openbsd:nc openssl:openssl ca-certificates:/etc/ssl/certs
tcpdump:tcpdump tshark:tshark traceroute:traceroute mtr-tiny:mtr man-db:man bsdutils:script
"
e2e_packages="runc:runc busybox-static:/bin/busybox"
bench_packages="iproute2:ip util-linux:nsenter containernetworking-plugins:/usr/lib/cni/ptp dante-server:danted"
peer_packages="passt:pasta"
lint_packages="shellcheck:shellcheck"

root=$(cd "$(dirname "$0")/.." && pwd)

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}

present() {
    case $1 in
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] ;;
    esac
}

missing_of() {
    for pair in $1; do
        present "${pair#*:}" || printf ' %s' "${pair%%:*}"
    done
}

# Debian starts a server when its package is installed; here they are only wanted as programs.
install_packages() {
    guard=/usr/sbin/policy-rc.d
    if [ ! -e "$guard" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$guard"
        chmod +x "$guard"
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT INT TERM
    fi
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list of package names
    apt-get install -y --no-install-recommends "$@" >/tmp/tunproxy-setup.log 2>&1 || {
        apt-get update >/dev/null && apt-get install -y --no-install-recommends "$@" >/tmp/tunproxy-setup.log 2>&1
    } || {
        tail -20 /tmp/tunproxy-setup.log >&2
        fail "apt-get could not install: $* (whole output in /tmp/tunproxy-setup.log)"
    }
}

packages() {
    missing=$(missing_of "$1")
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null 2>&1 || fail "missing:$missing (names of Debian packages; this system has no apt-get)"
    if [ "$(id -u)" -ne 0 ]; then
        fail "missing:$missing
setup: as root run: apt-get install -y --no-install-recommends$missing"
    fi
    say "installing Debian packages:$missing"
    # shellcheck disable=SC2086 # a list of package names
    install_packages $missing
}

rust() {
    command -v cargo >/dev/null 2>&1 || fail "cargo is not installed; install rustup from https://rustup.rs (Debian's own Rust is too old)"
    # With rustup this fetches the toolchain that rust-toolchain.toml names, once.
    (cd "$root" && cargo --version >/dev/null) || fail "the toolchain of rust-toolchain.toml cannot be installed"
    command -v cc >/dev/null 2>&1 || packages "gcc:cc libc6-dev:/usr/include/stdio.h"
}

nightly() {
    rustup run nightly cargo --version >/dev/null 2>&1 || {
        say "installing the nightly toolchain (the sanitizers need it)"
        rustup toolchain install nightly --profile minimal
    }
}

# libFuzzer, which the fuzz targets link, is C++.
cxx_compiler() {
    command -v c++ >/dev/null 2>&1 || packages "g++:c++"
}

# Only the kernel's own default leaves /dev/net/tun to root; udev gives 0666 on every distribution, and `exec` without
# root needs it. The kernel still asks for CAP_NET_ADMIN to make an interface.
tun_device() {
    if [ ! -e /dev/net/tun ]; then
        [ "$(id -u)" -eq 0 ] || fail "/dev/net/tun is missing; as root run: modprobe tun"
        say "making /dev/net/tun"
        mkdir -p /dev/net
        mknod /dev/net/tun c 10 200
        chmod 0666 /dev/net/tun
    fi
    if [ "$(stat -c %a /dev/net/tun)" != 666 ]; then
        [ "$(id -u)" -eq 0 ] || {
            say "/dev/net/tun is not 0666, so 'exec' works only as root; as root run: chmod 0666 /dev/net/tun"
            return 0
        }
        say "setting /dev/net/tun to 0666, as udev does, for 'exec' without root"
        chmod 0666 /dev/net/tun
    fi
}

go_compiler() {
    command -v go >/dev/null 2>&1 || [ -x /usr/local/go/bin/go ] ||
        fail "go is not installed; 'make e2e' needs Go 1.21 or newer (it fetches the version that e2e/runtime/go.mod names): https://go.dev/dl or golang-go of Debian's backports"
}

cargo_tool() {
    case $(cargo "$1" --version 2>/dev/null || true) in
    *"$2"*) return 0 ;;
    esac
    say "installing cargo-$1 $2 with cargo (a few minutes)"
    cargo install --quiet --locked "cargo-$1" --version "$2"
}

# Programs that `make bench-peers` measures beside ours: crate, version, then the rest of cargo's arguments. They stay
# below .build, away from what else is installed.
cargo_peer() {
    peer=$1 version=$2
    shift 2
    case $(cargo install --root "$root/.build/peers" --list 2>/dev/null || true) in
    *"$peer v$version:"*) return 0 ;;
    esac
    say "building $peer $version with cargo (some minutes)"
    cargo install --quiet --locked --root "$root/.build/peers" --target-dir "$root/.build/peers-target" \
        "$peer" --version "$version" "$@"
}

group() {
    case $1 in
    test)
        rust
        packages "$test_packages"
        tun_device
        ;;
    e2e)
        group test
        packages "$e2e_packages"
        go_compiler
        ;;
    bench)
        rust
        packages "$bench_packages"
        ;;
    peers)
        group bench
        packages "$peer_packages"
        cargo_peer tun2proxy "$tun2proxy_version" --bin tun2proxy-bin
        cargo_peer shadowsocks-rust "$shadowsocks_version" --bin sslocal --no-default-features \
            --features "logging local local-tun multi-threaded aead-cipher"
        ;;
    lint)
        rust
        cxx_compiler
        packages "$lint_packages"
        cargo_tool deny "$cargo_deny_version"
        ;;
    fuzz)
        rust
        cxx_compiler
        nightly
        cargo_tool fuzz "$cargo_fuzz_version"
        ;;
    sanitize)
        group test
        nightly
        # The standard library is built with the sanitizer too: what it does for us would be unseen otherwise.
        [ -e "$(rustc +nightly --print sysroot)/lib/rustlib/src/rust" ] || {
            say "adding the standard library's source to the nightly toolchain"
            rustup component add rust-src --toolchain nightly
        }
        ;;
    *) fail "unknown group '$1'; groups: test e2e bench peers lint fuzz sanitize" ;;
    esac
}

[ $# -gt 0 ] || set -- test
for name in "$@"; do
    group "$name"
done
