#!/bin/sh
# Builds the etcd and the etcdctl that tests compare with: `build.sh DIR` puts both there. The versions are those of
# go.mod, their contents those of go.sum; sources come from the Go module proxy. Needs a Go toolchain.
set -eu
test $# -eq 1 || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
cd "$(dirname "$0")"
CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -o "$dir/" ./etcd ./etcdctl
"$dir/etcd" --version
"$dir/etcdctl" version
