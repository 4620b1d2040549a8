#!/usr/bin/env bash
# The kernel matrix: tcptide on Debian's kernels in virtual machines. Arguments go to the program in tests/vm.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/lib.sh
source tools/packages.sh
source tools/rust.sh

if [[ $(uname -m) != x86_64 ]] || ! command -v apt-get >/dev/null; then
    echo "the kernel matrix has kernels for x86-64 through apt: not on this machine" >&2
    exit 1
fi
build_needs | install_missing
need_rust
vm_needs | without_services install_missing
cargo build "${built_as[@]}" --locked --quiet --workspace
profile=debug
[[ ${#built_as[@]} == 0 ]] || profile=release
exec "${CARGO_TARGET_DIR:-target}/$profile/vm" "$@"
