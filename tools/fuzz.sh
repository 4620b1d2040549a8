#!/usr/bin/env bash
# Fuzzes what bytes of others come into (crates/tcptide/src/fuzz.rs) with libFuzzer, as long as one likes: `--seconds 600 dns http`;
# without names all targets, for a minute each, as many side by side as there are CPUs (or `--jobs`). After a failure no more are
# begun. What it learns stays in target/fuzz. `--sanitizer address` looks for what unsafe code of libraries does, too.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/lib.sh
source tools/packages.sh
source tools/rust.sh

target=${CARGO_TARGET_DIR:-target}
made=$target/fuzz
seconds=60
jobs=$(nproc)
sanitizer=none
targets=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --seconds) seconds=${2:?how many} && shift 2 ;;
        --jobs) jobs=${2:?how many} && shift 2 ;;
        --sanitizer) sanitizer=${2:?which} && shift 2 ;;
        *) targets+=("$1") && shift ;;
    esac
done
all=()
for folder in fuzz/corpus/*; do
    all+=("$(basename "$folder")")
done
[[ ${#targets[@]} != 0 ]] || targets=("${all[@]}")
for one in "${targets[@]}"; do
    [[ -d fuzz/corpus/$one ]] || fail "there is no target $one; there are ${all[*]}"
done

# Builds the one program that has all targets, as cargo-fuzz would, which takes longer to build than to do without.
build() {
    local triple flags
    triple=$(rustc -vV | sed -n 's/^host: //p')
    flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
    flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
    flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0"
    if [[ $sanitizer != none ]]; then
        # Not yet a stable part of the compiler.
        export RUSTC_BOOTSTRAP=1
        flags+=" -Zsanitizer=$sanitizer"
    fi
    # The versions that are released, and what the fuzzer itself needs.
    cp Cargo.lock fuzz/Cargo.lock
    # With a target the flags are not for what runs while building, which may be there from building the rest.
    RUSTFLAGS=$flags cargo build --release --bin fuzz --manifest-path fuzz/Cargo.toml --target "$triple" --target-dir "$target"
    program=$target/$triple/release/fuzz
}

# Runs one target; what the fuzzer says goes to a file.
try() {
    local one=$1 log=$made/$1.log
    mkdir -p "$made/corpus/$one" "$made/artifacts/$one"
    TARGET=$one "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -artifact_prefix="$made/artifacts/$one/" \
        "$made/corpus/$one" "fuzz/corpus/$one" >"$log" 2>&1 || {
        tail -n 40 "$log" >&2
        say "$one failed: see $log; TARGET=$one $program $made/artifacts/$one/FILE tries the bytes again"
        return 1
    }
    # Runs, and what was reached: edges (cov), and edges with how often (ft).
    awk -v name="$one" '$2 == "DONE" { reached = "cov " $4 ", ft " $6 ", corpus " $8 }
        $1 == "Done" { printf "%-12s %d runs in %d s, %s\n", name, $2, $5, reached }' "$log"
}

build_needs | install_missing
fuzz_needs | install_missing
need_rust
build
running=0
failed=0
for one in "${targets[@]}"; do
    if ((running == jobs)); then
        wait -n || failed=1
        ((running -= 1)) || true
    fi
    [[ $failed == 0 ]] || break
    try "$one" &
    ((running += 1))
done
while ((running > 0)); do
    wait -n || failed=1
    ((running -= 1)) || true
done
exit "$failed"
