#!/bin/sh
# Runs the test suite of the etcd-client crate, as published, against the server on localhost:2379.
#
#   etcd-client-suite.sh DIR [TEST...]
#
# DIR, outside of this repository, keeps the source and the build for the next time. The suite wants an empty
# single-node server and names that address itself. Its build script wants protoc: without one in $PROTOC or $PATH,
# protox is installed into DIR, which understands the same command line.
#
# Left out: what needs the services for authentication, locks and elections, which the suite does not keep apart by
# itself. What needs several members or etcd 3.7 is ignored by the suite.
set -eu
version=0.21.1
test $# -ge 1 || { echo "usage: $0 DIR [TEST...]" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
shift

source=$dir/etcd-client-$version
if ! test -d "$source"; then
    mkdir -p "$dir/fetch/src"
    printf '[package]\nname = "fetch"\nedition = "2021"\n[dependencies]\netcd-client = "=%s"\n' "$version" >"$dir/fetch/Cargo.toml"
    : >"$dir/fetch/src/lib.rs"
    (cd "$dir/fetch" && cargo fetch)
    found=$(find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -maxdepth 2 -name "etcd-client-$version" | head -n 1)
    test -n "$found" || { echo "cargo fetch left no source of etcd-client $version" >&2; exit 1; }
    cp -R "$found" "$source.new"
    mv "$source.new" "$source"
fi

if test -z "${PROTOC:-}" && ! command -v protoc >/dev/null; then
    test -x "$dir/bin/protox" || cargo install --locked --root "$dir" --version 0.10.0 --features bin protox
    PROTOC=$dir/bin/protox
    export PROTOC
fi

cd "$source"
CARGO_TARGET_DIR=$dir/target
export CARGO_TARGET_DIR
if test $# -eq 0; then
    # Whatever touches users, roles or tokens has auth, role or user in its name.
    set -- --skip test_auth --skip test_role --skip test_user --skip test_lock --skip test_election
fi
exec cargo test --locked --test client --test namespace -- "$@"
