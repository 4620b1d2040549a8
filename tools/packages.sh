# shellcheck shell=bash
# Installs the programs and libraries that are missing: through apt, or else names their packages. Sourced.

# How to tell that something is there, then its package for apt, dnf, pacman, apk and zypper. From autoreconf on:
# for libelf, which is built from source and linked in, as few distributions have a static one that links; protoc is for
# the messages of CRI, made from their definition; Node.js and npm for the web page, which --no-default-features leaves out.
build_needs() {
    cat <<'EOF'
program clang       clang       clang                  clang       clang         clang
program cc          gcc         gcc                    gcc         gcc           gcc
program make        make        make                   make        make          make
program pkg-config  pkg-config  pkgconf-pkg-config     pkgconf     pkgconf       pkg-config
header  stdio.h     libc6-dev   glibc-devel            glibc       musl-dev      glibc-devel
header  libelf.h    libelf-dev  elfutils-libelf-devel  libelf      elfutils-dev  libelf-devel
header  zlib.h      zlib1g-dev  zlib-devel             zlib        zlib-dev      zlib-devel
program autoreconf  autoconf    autoconf               autoconf    autoconf      autoconf
program automake    automake    automake               automake    automake      automake
program autopoint   autopoint   gettext-devel          gettext     gettext-dev   gettext-tools
program flex        flex        flex                   flex        flex          flex
program bison       bison       bison                  bison       bison         bison
program gawk        gawk        gawk                   gawk        gawk          gawk
program protoc      protobuf-compiler protobuf-compiler protobuf   protoc        protobuf-devel
program node        nodejs      nodejs                 nodejs      nodejs        nodejs
program npm         npm         nodejs-npm             npm         npm           npm
EOF
}

# What the fuzzer, which is C++, is built with.
fuzz_needs() {
    cat <<'EOF'
program c++         g++         gcc-c++                gcc         g++           gcc-c++
EOF
}

# What the functional tests start.
test_needs() {
    cat <<'EOF'
program ip          iproute2        iproute                       iproute2  iproute2         iproute2
program ss          iproute2        iproute                       iproute2  iproute2-ss      iproute2
program nsenter     util-linux      util-linux                    util-linux util-linux      util-linux
program ps          procps          procps-ng                     procps-ng procps           procps
program bpftool     bpftool         bpftool                       bpf       bpftool          bpftool
program script      bsdutils        util-linux-script             util-linux util-linux-misc util-linux
program python3     python3-minimal python3                       python    python3          python3
module  ensurepip   python3-venv    python3-pip                   python    python3          python3
program curl        curl            curl                          curl      curl             curl
program openssl     openssl         openssl                       openssl   openssl          openssl
program iptables    iptables        iptables                      iptables  iptables         iptables
program tshark      tshark          wireshark-cli                 wireshark-cli tshark       wireshark
program dumpcap     wireshark-common wireshark-cli                wireshark-cli wireshark-common wireshark
program dockerd     docker.io       moby-engine                   docker    docker           docker
program docker      docker.io       moby-engine                   docker    docker-cli       docker
program podman      podman          podman                        podman    podman           podman
program containerd  containerd      containerd                    containerd containerd      containerd
program ctr         containerd      containerd                    containerd containerd-ctr  containerd-ctr
program runc        runc            runc                          runc      runc             runc
program lxc-start   lxc             lxc                           lxc       lxc              lxc
program systemd-nspawn systemd-container systemd-container        systemd   systemd-container systemd-container
file /usr/lib/cni/bridge containernetworking-plugins containernetworking-plugins cni-plugins cni-plugins cni-plugins
static  busybox     busybox-static  busybox                       busybox   busybox-static   busybox-static
program nginx       nginx-light     nginx                         nginx     nginx            nginx
program prometheus  prometheus      prometheus                    prometheus prometheus      golang-github-prometheus-prometheus
program chromium    chromium        chromium                      chromium  chromium         chromium
program promtool    prometheus      prometheus                    prometheus prometheus      golang-github-prometheus-prometheus
EOF
}

# What the kernel matrix starts, also inside its guests. It has its kernels through apt: apt's names are enough.
vm_needs() {
    cat <<'EOF'
program qemu-system-x86_64 qemu-system-x86
file /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
static  busybox     busybox-static
program cpio        cpio
program depmod      kmod
program strip       binutils
program bash        bash
program ip          iproute2
program ss          iproute2
program tc          iproute2
program nsenter     util-linux
program unshare     util-linux
program setpriv     util-linux
program prlimit     util-linux
program script      bsdutils
program bpftool     bpftool
program tcplife     libbpf-tools
EOF
}

has() {
    # Debian keeps daemons in sbin, which is not on every user's PATH.
    local PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
    case $1 in
        program) command -v "$2" ;;
        file) [[ -e $2 ]] ;;
        module) python3 -c "import $2" ;;
        static) command -v "$2" && ! ldd "$(command -v "$2")" ;;
        header) printf '#include <%s>\n' "$2" | cc -E - ;;
    esac >/dev/null 2>&1
}

# The packages, as manager number $1 calls them, of those of the needs on stdin that are not there.
missing_packages() {
    local need
    while read -ra need; do
        has "${need[0]}" "${need[1]}" || printf '%s\n' "${need[$1 + 1]}"
    done | sort -u
}

# Sees to it that the needs on stdin are there.
install_missing() {
    local managers=(apt-get dnf pacman apk zypper) number needs packages
    needs=$(cat)
    for number in "${!managers[@]}"; do
        command -v "${managers[number]}" >/dev/null || continue
        mapfile -t packages < <(missing_packages $((number + 1)) <<<"$needs")
        if [[ ${#packages[@]} == 0 ]]; then
            return
        elif [[ ${managers[number]} == apt-get ]]; then
            apt_install "${packages[@]}"
            return
        fi
        fail "these packages are missing, install them with ${managers[number]}: ${packages[*]}"
    done
    mapfile -t packages < <(missing_packages 1 <<<"$needs")
    [[ ${#packages[@]} == 0 ]] || fail "these are missing (by the names of Debian's packages): ${packages[*]}"
}

apt_install() {
    local apt=(as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120)
    local install=("${apt[@]}" install -y --no-install-recommends "$@")
    say "installing through apt: $*"
    if compgen -G '/var/lib/apt/lists/*Packages*' >/dev/null && "${install[@]}" >/dev/null; then
        return
    fi
    # No package lists, or lists so old that the mirror no longer has what they name.
    "${apt[@]}" update >/dev/null
    "${install[@]}" >/dev/null || fail "apt could not install: $*"
}

# The client that reads the API's own document, for the tests: in the folder $1, and on the PATH.
python_tools() {
    if [[ ! -x $1/bin/schemathesis ]]; then
        python3 -m venv "$1"
        "$1/bin/pip" install --quiet --disable-pip-version-check schemathesis==4.32.5
    fi
    PATH=$PATH:$(realpath "$1")/bin
}

# What the web page is built and tested with, in web/node_modules.
web_tools() {
    [[ web/node_modules/playwright-core -nt web/package-lock.json ]] && return
    (cd web && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    touch web/node_modules/playwright-core
}

# Runs a command (as root) during which no package starts a service: the tests start their own.
without_services() (
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    "$@"
)
