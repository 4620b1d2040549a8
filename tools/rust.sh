# shellcheck shell=bash
# Sees to it that there is a Rust toolchain as new as the workspace asks for. Sourced, after packages.sh.

rust_is_enough() {
    local version
    version=$(rustc --version 2>/dev/null | cut -d ' ' -f 2)
    [[ -n $version ]] && at_least "$version" "$wanted_rust" && cargo --version >/dev/null 2>&1
}

# The version of a package that apt would install, without epoch and Debian revision.
apt_candidate() {
    command -v apt-cache >/dev/null || return 0
    LC_ALL=C apt-cache policy "$1" | sed -n 's/^ *Candidate: *\([0-9]*:\)\{0,1\}\([0-9.]*\).*/\2/p'
}

# Puts a Rust toolchain on the PATH: the one that is there, or else the distribution's, where new enough.
need_rust() {
    local path=$PATH candidate
    wanted_rust=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    # rustup's folder is not on the PATH before the next login; a distribution's may be newer than rustup's.
    for PATH in "$path" "${CARGO_HOME:-${HOME:-}/.cargo}/bin:$path" "/usr/bin:$path"; do
        rust_is_enough && return
    done
    candidate=$(apt_candidate rustc)
    if [[ -n $candidate ]] && at_least "$candidate" "$wanted_rust"; then
        apt_install rustc cargo
        rust_is_enough && return
    fi
    PATH=$path
    fail "tcptide needs Rust $wanted_rust or newer, this machine has $(rustc --version 2>/dev/null || echo none): get it with rustup (https://rustup.rs; \`rustup update stable\` where rustup is there already)."
}

# Rust's formatter and linter, which a minimal toolchain lacks.
need_lints() {
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return
    if command -v rustup >/dev/null; then
        rustup component add rustfmt clippy >&2
    elif [[ $(command -v cargo) == /usr/bin/cargo && -n $(apt_candidate rust-clippy) ]]; then
        apt_install rustfmt rust-clippy
    else
        fail "cargo fmt and cargo clippy are missing: install rustfmt and clippy of your Rust toolchain"
    fi
}
