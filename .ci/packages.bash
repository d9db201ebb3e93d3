# Sourced by ./try and ./test: finds what is missing, and installs it on Debian and Ubuntu.
#
#   need nginx-light program nginx     # package, then a probe that succeeds when it is there
#   install_missing                    # 0: all there; 1: says what is missing and how to get it

missing=()

# Programs of administrators stand where other users do not look.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

program() { command -v "$1"; }

# Whether the Python that gunicorn runs on has a module: it need not be the first in PATH.
gunicorn_module() {
    local gunicorn interpreter
    gunicorn=$(command -v gunicorn) || return 1
    interpreter=$(head -n 1 "$gunicorn" | sed -n 's/^#! *//p')
    ${interpreter:-python3} -c "import $1"
}

needs_to_build() {
    need build-essential program cc
    need pkg-config program pkg-config
}

needs_of_first_example() {
    need nginx-light program nginx
    need redis-server program redis-server
    need gunicorn program gunicorn
    need python3-flask gunicorn_module flask
    need python3-redis gunicorn_module redis
    need gettext-base program envsubst
    need curl program curl
    if [ "$(id -u)" = 0 ]; then
        # What only root can enforce with.
        need nftables program nft
        need iproute2 program ip
    fi
}

needs_of_shop() {
    need postgresql-15 test -x /usr/lib/postgresql/15/bin/postgres
    need python3 program python3
    need curl program curl
    if [ "$(id -u)" = 0 ]; then
        need nftables program nft
        need iproute2 program ip
    fi
}

have_rust() {
    command -v cargo >/dev/null && return
    say "Rust is missing: https://rustup.rs (1.95 or newer)"
    return 1
}

install_missing() {
    if [ ${#missing[@]} = 0 ]; then
        return 0
    fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "Missing: ${missing[*]}"
        say "On Debian or Ubuntu: sudo apt-get install --no-install-recommends ${missing[*]}"
        return 1
    fi
    say "Installing: ${missing[*]}"
    (apt_install "${missing[@]}")
}

# In a subshell, so that the trap undoes the policy whatever happens.
apt_install() {
    set -euo pipefail
    export DEBIAN_FRONTEND=noninteractive
    # Packages of servers start them at once, on ports that others may use. This file is how a machine says no to that; one
    # that is there already stays.
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    # Chained, for a caller that asks with `if` or `||` switches -e off.
    apt-get update -qq &&
        apt-get install -y -qq --no-install-recommends "$@" &&
        stay_stopped "$@"
}

# Nor should what was installed just now start with the machine: Mainland starts its own.
stay_stopped() {
    command -v systemctl >/dev/null || return 0
    local package unit
    for package in "$@"; do
        case $package in
            nginx-light) unit=nginx ;;
            redis-server) unit=redis-server ;;
            etcd-server) unit=etcd ;;
            nftables) unit=nftables ;;
            postgresql-15) unit=postgresql ;;
            *) continue ;;
        esac
        systemctl disable --quiet "$unit" 2>/dev/null || true
        say "$unit is installed, and does not start by itself; \`systemctl enable $unit\` changes that"
    done
}
