#!/usr/bin/env bash
# Fuzzes what bytes of others come into (crates/tcptide/src/fuzz.rs), as long as one likes: `--seconds 600 dns http`; without names
# all targets, for a minute each. Stops at the first failure. What it learns stays in target/fuzz. `--sanitizer address` looks for
# what unsafe code of libraries does, too.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/lib.sh
source tools/packages.sh
source tools/rust.sh

version=0.13.2
target=${CARGO_TARGET_DIR:-target}
export PATH=$PATH:$PWD/$target/tools/bin

seconds=60
sanitizer=none
targets=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --seconds) seconds=${2:?how many} && shift 2 ;;
        --sanitizer) sanitizer=${2:?which} && shift 2 ;;
        *) targets+=("$1") && shift ;;
    esac
done
all=()
for file in fuzz/fuzz_targets/*.rs; do
    all+=("$(basename "$file" .rs)")
done
[[ ${#targets[@]} != 0 ]] || targets=("${all[@]}")
for one in "${targets[@]}"; do
    [[ -f fuzz/fuzz_targets/$one.rs ]] || fail "there is no target $one; there are ${all[*]}"
done

build_needs | install_missing
need_rust
if [[ $(cargo-fuzz --version 2>/dev/null) != "cargo-fuzz ${version%.*}."* ]]; then
    CARGO_PROFILE_DEV_DEBUG=0 cargo install cargo-fuzz --version "$version" --locked --debug \
        --root "$target/tools" --target-dir "$target/tools/build"
    rm -rf "$target/tools/build"
fi

# The versions that are released, and what the fuzzer itself needs.
cp Cargo.lock fuzz/Cargo.lock
# What tells the fuzzer how far it came is no stable part of the compiler.
export RUSTC_BOOTSTRAP=1
cargo fuzz build --sanitizer "$sanitizer" --target-dir "$target/fuzz"
for one in "${targets[@]}"; do
    corpus=$target/fuzz/corpus/$one
    log=$target/fuzz/$one.log
    mkdir -p "$corpus"
    printf '%-12s ' "$one"
    cargo fuzz run --sanitizer "$sanitizer" --target-dir "$target/fuzz" "$one" "$corpus" "fuzz/corpus/$one" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 >"$log" 2>&1 || {
        tail -n 40 "$log" >&2
        fail "$one failed: see $log, and fuzz/artifacts/$one for the bytes"
    }
    # Runs, and what was reached: edges (cov), and edges with how often (ft).
    awk '$2 == "DONE" { reached = "cov " $4 ", ft " $6 ", corpus " $8 } $1 == "Done" { print $2 " runs in " $5 " s, " reached }' "$log"
done
