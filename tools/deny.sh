#!/usr/bin/env bash
# Checks the dependencies against deny.toml. Installs cargo-deny inside the target folder where it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/lib.sh

version=0.20.2
tools=${CARGO_TARGET_DIR:-target}/tools
export PATH=$PATH:$PWD/$tools/bin

if [[ $(cargo-deny --version 2>/dev/null) != "cargo-deny ${version%.*}."* ]]; then
    # Without optimisation: a minute on two cores instead of many, for a tool that runs for a second.
    CARGO_PROFILE_DEV_DEBUG=0 cargo install cargo-deny --version "$version" --locked --debug \
        --root "$tools" --target-dir "$tools/build"
    rm -rf "$tools/build"
fi

cargo-deny --locked check bans licenses sources

# The advisory database is fetched with git. Without access to it, an earlier copy will do.
if GIT_TERMINAL_PROMPT=0 timeout 60 cargo-deny --locked fetch db 2>/dev/null; then
    cargo-deny --locked check advisories
elif compgen -G 'target/advisory-dbs/*/crates' >/dev/null; then
    say "The advisory database could not be fetched: checking against the copy in target/advisory-dbs."
    cargo-deny --locked --offline check advisories
else
    say "Security advisories: not checked, the database could not be fetched from here and there is no copy of it."
fi
