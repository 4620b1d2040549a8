#!/usr/bin/env bash
# Installs tcptide with its manual pages, completions, unit and settings, or with the argument `uninstall` removes them.
#
# PREFIX (/usr/local) is where to, DESTDIR a folder that stands for the root, TCPTIDE the program, which else is built.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/lib.sh

root=${DESTDIR:-}
prefix=${PREFIX:-/usr/local}
[[ $prefix == /* ]] || fail "PREFIX has to begin with a slash, and is: $prefix"
[[ -z $root || $root == /* ]] || fail "DESTDIR has to begin with a slash, and is: $root"
share=$root$prefix/share
program=$root$prefix/bin/tcptide
unit=$root$prefix/lib/systemd/system/tcptide.service
settings=$root/etc/tcptide/tcptide.toml
bash=$share/bash-completion/completions/tcptide
zsh=$share/zsh/site-functions/_tcptide
fish=$share/fish/vendor_completions.d/tcptide.fish

install_all() {
    local built=${TCPTIDE:-${CARGO_TARGET_DIR:-target}/release/tcptide} made
    if [[ -z ${TCPTIDE:-} ]]; then
        # As root there may be no cargo: what somebody else built will do.
        if command -v cargo >/dev/null; then
            cargo build --locked --release -p tcptide
        elif [[ ! -x $built ]]; then
            fail "there is no $built, and no cargo to build it: cargo build --release -p tcptide"
        fi
    fi
    made=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$made'" EXIT
    tools/generate.sh "$built" "$made"
    sed "s|^ExecStart=/usr/bin/|ExecStart=$prefix/bin/|" packaging/systemd/tcptide.service >"$made/tcptide.service"
    install -D -m 755 "$built" "$program"
    install -d "$share/man/man1"
    install -m 644 "$made"/man/*.1 "$share/man/man1"
    install -D -m 644 "$made/completions/tcptide.bash" "$bash"
    install -D -m 644 "$made/completions/_tcptide" "$zsh"
    install -D -m 644 "$made/completions/tcptide.fish" "$fish"
    install -D -m 644 "$made/tcptide.service" "$unit"
    # What somebody has written there stays.
    [[ -e $settings ]] || install -D -m 644 packaging/tcptide.toml "$settings"
    say "installed below $root$prefix; systemctl daemon-reload && systemctl enable --now tcptide starts the agent"
}

uninstall_all() {
    rm -f "$program" "$unit" "$bash" "$zsh" "$fish" "$share"/man/man1/tcptide.1 "$share"/man/man1/tcptide-*.1
    if cmp -s packaging/tcptide.toml "$settings"; then
        rm "$settings"
    elif [[ -e $settings ]]; then
        say "kept, for it was changed: $settings"
    fi
    if [[ -d $root/etc/tcptide ]]; then
        rmdir --ignore-fail-on-non-empty "$root/etc/tcptide"
    fi
    # Folders of the system itself stay, those of a folder that stands for it go.
    [[ -z $root || ! -d $root ]] || find "$root" -mindepth 1 -type d -empty -delete
}

case ${1:-install} in
    install) install_all ;;
    uninstall) uninstall_all ;;
    *) fail "what is $1? install or uninstall" ;;
esac
