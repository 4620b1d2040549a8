#!/usr/bin/env bash
# Tests everything that this machine can test; with the argument `check`, what needs no root. Stops at the first
# step that fails. What could not be run is named at the end, and is a failure where CI=true.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/lib.sh
source tools/packages.sh
source tools/rust.sh

durations=()
not_run=()
second_try=()
current=
installing=
packages_log=${CARGO_TARGET_DIR:-target}/packages.log

# Runs a command under a name, with its time.
step() {
    current=$1
    shift
    local begin=$SECONDS
    printf '\n== %s: %s\n' "$current" "$*"
    "$@"
    durations+=("$(printf '%5d s  %s' $((SECONDS - begin)) "$current")")
    current=
}

summary() {
    local status=$?
    [[ -z $installing ]] || wait "$installing" || true
    [[ ${#durations[@]} == 0 ]] || printf '\n%s\n' "$(printf '%s\n' "${durations[@]}")"
    [[ -z $current ]] || printf 'FAILED: %s\n' "$current"
    [[ ${#not_run[@]} == 0 ]] || printf 'not run: %s\n' "${not_run[@]}"
    [[ ${#second_try[@]} == 0 ]] || printf 'held only at the second try: %s\n' "${second_try[@]}"
    printf '%5d s  in all\n' "$SECONDS"
    exit "$status"
}
trap summary EXIT

prepare() {
    build_needs | install_missing
    need_rust
    need_lints
    web_tools
}

check() {
    step "format" cargo fmt --all --check
    step "lints" cargo clippy "${built_as[@]}" --locked --workspace --all-targets -- -D warnings
    step "API documentation" env RUSTDOCFLAGS="-D warnings" cargo doc "${built_as[@]}" --locked --workspace --no-deps
    step "dependencies" tools/deny.sh
    step "types of the web page" npm --prefix web run --silent check
    step "unit tests of the web page" npm --prefix web run --silent test
    step "unit tests" cargo test "${built_as[@]}" --locked --no-fail-fast --workspace --lib --bins --test dashboards
}

# Namespaces, containers, BPF: as root only.
functional() {
    local target=${CARGO_TARGET_DIR:-target}
    step "release build" cargo build --locked --release --workspace
    is_root && step "tools of the functional tests" install_test_tools
    # Without optimization: it is built for seconds.
    step "fuzz" env CARGO_PROFILE_RELEASE_OPT_LEVEL=0 tools/fuzz.sh --seconds 2
    if ! is_root; then
        not_run+=("the functional tests and \`make run\`, which need root")
        return
    fi
    step "build of the functional tests" cargo test "${built_as[@]}" --locked --workspace --test '*' --no-run
    TCPTIDE=$(realpath "$target/release/tcptide")
    export TCPTIDE
    step "functional tests" stories "$target/stories.log"
    step "make run" run_unattended
    if [[ $(uname -m) == x86_64 ]] && command -v apt-get >/dev/null; then
        step "kernel matrix" tools/vm.sh
    else
        not_run+=("the kernel matrix, which has kernels for x86-64 through apt")
    fi
}

# How many stories may need a second try.
readonly most_again=3

# One story at a time: some count what happens on the whole host. A few are told again if they fail, and named at the
# end: a machine that stands still for longer than a story expects, or a kernel that runs no BPF program on top of some
# tasks (ARCHITECTURE.md, known limits), breaks a story once; what is broken is broken twice.
stories() {
    local log=$1 failed file story
    cargo test "${built_as[@]}" --locked --no-fail-fast --workspace --test '*' -- --test-threads=1 2>&1 | tee "$log" && return
    failed=$(awk '$1 == "Running" { file = $2; sub(".*/", "", file); sub("[.]rs$", "", file) }
        $1 == "test" && $NF == "FAILED" { print file, $2 }' "$log")
    [[ -n $failed && $(wc -l <<<"$failed") -le $most_again ]] || return 1
    while read -r file story; do
        printf '\n== again: %s in %s.rs\n' "$story" "$file"
        cargo test "${built_as[@]}" --locked --workspace --test "$file" -- --exact "$story" </dev/null || return 1
        second_try+=("$story in $file.rs")
    done <<<"$failed"
}

# Packages come while other things are built.
begin_to_install() {
    mkdir -p "$(dirname "$packages_log")"
    test_needs | without_services install_missing >"$packages_log" 2>&1 &
    installing=$!
}

install_test_tools() {
    wait "$installing" || { cat "$packages_log" >&2 && return 1; }
    installing=
    cat "$packages_log"
    python_tools "${CARGO_TARGET_DIR:-target}/python"
}

# As it runs where nobody watches: stdout is no terminal.
run_unattended() { tools/run.sh </dev/null | cat; }

step "what building needs" prepare
[[ ${1:-} == check ]] || ! is_root || begin_to_install
check
[[ ${1:-} == check ]] || functional
if [[ ${#not_run[@]} != 0 && ${CI:-} == true ]]; then
    current="CI has to run everything"
    exit 1
fi
