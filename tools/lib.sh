# shellcheck shell=bash
# What the other scripts share. Sourced, in the repository's root.

say() { printf '%s\n' "$@" >&2; }

fail() {
    say "error: $*"
    exit 1
}

# How tests are built: as the programs are with TESTS_AS_RELEASED, so that what both need is built once; else as cargo does.
# shellcheck disable=SC2034
built_as=()
[[ -z ${TESTS_AS_RELEASED:-} ]] || built_as=(--release)

# Each set of packages that cargo is asked for has features of its own in what the packages share, and has that built again:
# everything is asked for at once, wherever it will be built anyway.
# shellcheck disable=SC2034
just_tcptide=(-p tcptide)
[[ -z ${TESTS_AS_RELEASED:-} ]] || just_tcptide=(--workspace)

is_root() { [[ $(id -u) == 0 ]]; }

# Runs a command as root: as it is, or through sudo.
as_root() {
    if is_root; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "this needs root, and there is no sudo: $*"
    fi
}

# Whether version $1 is $2 or newer.
at_least() { [[ $(printf '%s\n' "$1" "$2" | sort -V | head -n 1) == "$2" ]]; }
