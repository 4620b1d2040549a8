#!/usr/bin/env bash
# Makes a package for Debian in target/debian and looks into it; with the argument `test` lintian does, too, and it is installed, run
# and removed in a container, as root. Installs cargo-deb inside the target folder where it is missing. TCPTIDE is the program,
# which else is built.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/lib.sh
source tools/packages.sh

version=3.8.0
target=${CARGO_TARGET_DIR:-target}
tools=$target/tools
made=$PWD/target/package
export PATH=$PATH:$PWD/$tools/bin
command -v dpkg-deb dpkg-shlibdeps >/dev/null || fail "packages are made with dpkg: apt-get install dpkg-dev"

if [[ $(cargo-deb --version 2>/dev/null) != "cargo-deb $version" ]]; then
    # Without optimisation, as cargo-deny is.
    CARGO_PROFILE_DEV_DEBUG=0 cargo install cargo-deb --version "$version" --locked --debug \
        --root "$tools" --target-dir "$tools/build"
    rm -rf "$tools/build"
fi

# Debian's own, which tells of packages; CHANGELOG.md is beside it.
changelog() {
    local maintainer when
    maintainer=$(sed -n 's/^maintainer = "\(.*\)"$/\1/p' crates/tcptide/Cargo.toml)
    when=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
    printf 'tcptide (%s-1) unstable; urgency=medium\n\n' "$("$made/release/tcptide" --version | cut -d ' ' -f 2)"
    printf '  * What is new is told by changelog.gz, in the same folder.\n\n'
    printf ' -- %s  %s\n' "$maintainer" "$(LC_ALL=C date -R --date="@$when")"
}

[[ -n ${TCPTIDE:-} ]] || cargo build --locked --release -p tcptide
# crates/tcptide/Cargo.toml says what of this goes where; the program is looked for as if it was built there.
rm -rf "$made"
install -D "${TCPTIDE:-$target/release/tcptide}" "$made/release/tcptide"
tools/generate.sh "$made/release/tcptide" "$made"
changelog >"$made/changelog"
rm -rf target/debian
CARGO_TARGET_DIR=$made cargo-deb --quiet --locked --no-build --compress-system -p tcptide --output target/debian/
package=$(echo target/debian/*.deb)
say "made $package"

# What has to be in it, and nothing that anybody may write to.
contents=$(dpkg-deb --contents "$package")
for file in usr/bin/tcptide etc/tcptide/tcptide.toml usr/share/man/man1/tcptide.1.gz usr/share/man/man1/tcptide-agent.1.gz \
    usr/share/bash-completion/completions/tcptide usr/share/zsh/vendor-completions/_tcptide \
    usr/share/fish/vendor_completions.d/tcptide.fish lib/systemd/system/tcptide.service \
    usr/share/doc/tcptide/copyright usr/share/doc/tcptide/configuration.md; do
    grep -qE " \./(usr/)?$file$" <<<"$contents" || fail "$package has no $file"
done
others=$(awk '$2 != "0/0" && $2 != "root/root"' <<<"$contents")
[[ -z $others ]] || fail "not root's: $others"
writable=$(grep -E '^.{5}w|^.{8}w' <<<"$contents" || true)
[[ -z $writable ]] || fail "others than root may write to: $writable"
control=$(mktemp -d)
trap 'rm -rf "$control"' EXIT
dpkg-deb --control "$package" "$control/DEBIAN"
[[ $(<"$control/DEBIAN/conffiles") == /etc/tcptide/tcptide.toml ]] || fail "its settings are no conffile"
grep -q '^Depends: .*libc6' "$control/DEBIAN/control" || fail "it depends on no libc6"
for script in postinst prerm postrm; do
    grep -q 'tcptide\.service' "$control/DEBIAN/$script" || fail "its $script does nothing about the unit"
    sh -n "$control/DEBIAN/$script"
done
# What it has works as it is.
dpkg-deb --extract "$package" "$control/root"
"$control/root/usr/bin/tcptide" agent --check-config --config.file "$control/root/etc/tcptide/tcptide.toml"

if [[ ${1:-} == test ]]; then
    is_root || fail "as root: a container is booted"
    # What it says as an error or a warning is mended, or has its reason in packaging/debian/lintian-overrides.
    install_missing <<<"program lintian lintian lintian lintian lintian lintian"
    lintian --no-cfg --allow-root --fail-on error,warning "$package"
    TCPTIDE_DEB=$(realpath "$package") TCPTIDE=$(realpath "$control/root/usr/bin/tcptide") \
        cargo test --locked -p functional --test packaging -- --ignored --exact the_package_is_installed_run_and_removed
fi
