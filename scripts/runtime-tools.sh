#!/bin/sh
# Builds the Go programs that `make e2e` runs the plugin under, from the versions pinned in e2e/runtime/go.mod.
# Go's own build cache makes a second run take about a second.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
out=$root/.build/bin
mkdir -p "$out"

if ! command -v go >/dev/null 2>&1 && [ -x /usr/local/go/bin/go ]; then
    PATH=$PATH:/usr/local/go/bin
fi
command -v go >/dev/null 2>&1 || {
    echo "runtime-tools: 'go' is not installed; Go 1.26 or newer is needed for 'make e2e' (https://go.dev/dl)" >&2
    exit 1
}

cd "$root/e2e/runtime"
containerd=github.com/containerd/containerd/v2
version=$(go list -m -f '{{.Version}}' "$containerd")
# CGO off: the programs then run in any image. The snapshotters that need C libraries are left out.
CGO_ENABLED=0 nice -n 10 go build -trimpath -tags no_btrfs,no_zfs,no_devmapper,no_aufs \
    -ldflags "-s -w -X $containerd/version.Version=$version" -o "$out/" \
    "$containerd/cmd/containerd" "$containerd/cmd/containerd-shim-runc-v2" "$containerd/cmd/ctr" \
    github.com/containernetworking/cni/cnitool sigs.k8s.io/cri-tools/cmd/crictl
