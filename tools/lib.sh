# shellcheck shell=bash
# What the other scripts share. Sourced, in the repository's root.

say() { printf '%s\n' "$@" >&2; }

fail() {
    say "error: $*"
    exit 1
}

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
