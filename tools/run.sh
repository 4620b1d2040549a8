#!/usr/bin/env bash
# Builds tcptide and shows this host's TCP connections. Only they go to stdout.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/lib.sh
source tools/packages.sh
source tools/rust.sh

build_needs | install_missing
need_rust
cargo build --locked --release "${just_tcptide[@]}"

tcptide=${CARGO_TARGET_DIR:-target}/release/tcptide
show() {
    say "" "\$ tcptide $*"
    if ! is_root && command -v sudo >/dev/null; then
        sudo "$tcptide" "$@"
    else
        "$tcptide" "$@"
    fi
}

# tcptide itself ends on Ctrl-C; what would come after it shall not begin then.
trap 'exit 0' INT
show conns
if [[ -t 1 ]]; then
    say "" "Connections as they open, fail and close, until Ctrl-C:"
    show trace
else
    say "" "Connections that open, fail or close in the next ten seconds; on a quiet host there may be none:"
    show trace --duration 10s
fi
