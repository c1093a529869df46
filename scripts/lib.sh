# shellcheck shell=bash
# Common parts of the scripts: messages, Debian packages, cargo. Sourced, not run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Read by the scripts that source this.
export ROOT

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    BOLD=$'\e[1m' GREEN=$'\e[32m' RED=$'\e[31m' DIM=$'\e[2m' PLAIN=$'\e[0m'
else
    BOLD='' GREEN='' RED='' DIM='' PLAIN=''
fi

say() { printf '\n%s==> %s%s\n' "$BOLD" "$*" "$PLAIN"; }
good() { printf '%s    %s%s\n' "$GREEN" "$*" "$PLAIN"; }
note() { printf '%s    %s%s\n' "$DIM" "$*" "$PLAIN"; }
die() {
    printf '%s%s: %s%s\n' "$RED" "${0##*/}" "$*" "$PLAIN" >&2
    exit 1
}

need_root() {
    [[ $(id -u) -eq 0 ]] || die "must run as root, since it mounts filesystems"
}

# Installs those of the named Debian packages that are not there.
need_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    note "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >/dev/null || die "apt-get update failed"
    apt-get install -qy --no-install-recommends "${missing[@]}" >/dev/null ||
        die "apt-get could not install ${missing[*]}"
}

# Installs a package unless the command that it gives is there.
need_command() {
    local command=$1 package=$2
    command -v "$command" >/dev/null || need_packages "$package"
}

need_cargo() {
    PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    command -v cargo >/dev/null || die "no cargo: install Rust 1.95 or newer from https://rustup.rs"
    command -v cc >/dev/null || need_packages gcc libc6-dev
}

need_fuse() {
    [[ -e /dev/fuse ]] || modprobe fuse 2>/dev/null || true
    [[ -e /dev/fuse ]] || die "no /dev/fuse: the kernel has no FUSE, or this container may not use it"
}

# Waits until a command succeeds, at most for so many seconds.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}

# Whether no process has this directory as one of its arguments, as the filesystem mounted there
# has until it has closed its pool.
no_process_for() {
    ! grep -qszFx -f <(printf '%s\n' "$1") /proc/[0-9]*/cmdline
}

# Whether something is mounted there; mountpoint(1) fails if the server of the mount is gone.
is_mounted() { grep -qF " $1 " /proc/mounts; }

drop_caches() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
}

# What is preloaded into fsx, as a file in that directory.
build_fsx_preload() {
    cc -shared -fPIC -O1 -Wall -Werror -o "$1/fsx-preload.so" "$ROOT/scripts/fsx-preload.c" -ldl
}

# Configuration of fsx with every operation it knows.
# fsx_config WITHOUT_MSYNC
fsx_config() {
    cat <<END
flen = 1048576
nomsyncafterwrite = $1
[opsize]
# Nothing at all is an error for posix_fallocate(3).
min = 1
max = 131072
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 5
fsync = 0.02
fdatasync = 0.02
posix_fallocate = 3
punch_hole = 5
sendfile = 2
posix_fadvise = 2
copy_file_range = 3
END
}
