#!/bin/sh
# Makes this device a node of an MDI cluster: 64-bit Raspberry Pi OS, or Debian 12 or 13. Run it again to update.
#
#   sudo deploy/pi/install.sh [--key-file FILE] [FROM]
#   sudo deploy/pi/install.sh --uninstall [--purge]
#
# See --help. What it makes: /opt/mdi (a virtual environment), /etc/mdi (key and settings), /var/lib/mdi (identity and packs),
# /usr/local/bin/mdi, two systemd units, and the user `mdi`, as whom the node runs.
set -eu

PREFIX=/opt/mdi
VENV=$PREFIX/venv
SETTINGS=/etc/mdi
STATE=/var/lib/mdi
COMMAND=/usr/local/bin/mdi
UNITS=/etc/systemd/system
ACCOUNT=mdi
BOOT_FILE=/boot/firmware/mdi.toml
PACKAGES="python3 python3-venv ca-certificates"
# The base install is 240 MB, its bytecode 60, pip and the environment 25, and what pip downloads 85.
NEEDED_MB=400
HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

dry_run=no
action=install
purge=no
start=yes
any_system=no
key_file=
from=
version=

usage() {
    cat <<'END'
Usage: install.sh [OPTIONS] [FROM]

Makes this device a node: 64-bit Raspberry Pi OS, or Debian 12 or 13. Run it again to update.

FROM is a git checkout, a wheel or an sdist of MDI, or a version such as 0.1.0 from the Python package index (MDI is not
published there yet). Without it: the checkout that this script lies in.

  --key-file FILE   join the cluster whose key this file holds; - reads it from standard input.
                    Without it a key that is here is kept, else a new cluster begins.
  --no-start        do not start the node now (for images)
  --uninstall       remove the node; the cluster key, settings and packs stay
  --purge           with --uninstall: remove those as well
  --any-system      go on although this system is none of those above
  --dry-run         print what would be done, and change nothing
  -h, --help        this text
END
}

die() {
    echo "install.sh: $1" >&2
    [ $# -lt 2 ] || echo "$2" >&2
    exit 2
}

say() { echo "install.sh: $*" >&2; }

# Everything that changes the system goes through here.
run() {
    if [ "$dry_run" = yes ]; then
        echo "$*"
    else
        "$@"
    fi
}

# The new content of file $1 (mode $2) comes from standard input.
write_file() {
    if [ "$dry_run" = yes ]; then
        cat >/dev/null
        echo "write $1 (mode $2)"
    else
        cat >"$1.new"
        chmod "$2" "$1.new"
        mv -f "$1.new" "$1"
    fi
}

parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --dry-run) dry_run=yes ;;
        --uninstall) action=uninstall ;;
        --purge) purge=yes ;;
        --no-start) start=no ;;
        --any-system) any_system=yes ;;
        --key-file)
            [ $# -ge 2 ] || die "--key-file needs a file"
            key_file=$2
            shift
            ;;
        --key-file=*) key_file=${1#*=} ;;
        -*) die "$1 is not an option" "see --help" ;;
        *)
            [ -z "$from" ] || die "more than one source: $from and $1" "see --help"
            from=$1
            ;;
        esac
        shift
    done
    [ "$purge" = no ] || [ "$action" = uninstall ] || die "--purge belongs to --uninstall"
    [ -z "$key_file" ] || [ "$key_file" = - ] || [ -r "$key_file" ] || die "$key_file cannot be read"
}

check_system() {
    architecture=$(dpkg --print-architecture 2>/dev/null || echo unknown)
    case $architecture in
    arm64 | amd64) ;;
    armhf | armel | i386)
        die "this system is 32-bit ($architecture), and MDI needs a 64-bit one: what it computes with is not made for 32 bits." \
            "Write the card again with Raspberry Pi OS (64-bit): every Pi from the 3 on, and the Zero 2 W, runs it."
        ;;
    *) [ "$any_system" = yes ] || die "this is no Debian of arm64 or amd64 ($architecture)" "--any-system goes on all the same" ;;
    esac
    system=unknown
    # shellcheck source=/dev/null
    [ ! -r /etc/os-release ] || system=$(. /etc/os-release && echo "${ID:-unknown} ${VERSION_ID:-}")
    case $system in
    "debian 12" | "debian 13") ;;
    *)
        [ "$any_system" = yes ] ||
            die "this is $system; tried were Raspberry Pi OS and Debian 12 and 13" "--any-system goes on all the same"
        ;;
    esac
    [ -n "$(command -v systemctl || true)" ] || die "this system has no systemd" "start the node another way: docs/deploy.md"
}

check_python() {
    # What a dry run finds missing would be installed first.
    if ! command -v python3 >/dev/null; then
        [ "$dry_run" = yes ] && return
        die "python3 is not here, although it was installed just now"
    fi
    version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "Python here is $version, and MDI needs 3.11 or later." "Debian 12 and Raspberry Pi OS (bookworm) bring 3.11."
}

check_room() {
    free_mb=$(df -Pm /opt 2>/dev/null | awk 'NR == 2 { print $4 }')
    [ -z "$free_mb" ] || [ "$free_mb" -ge "$NEEDED_MB" ] || [ -d "$VENV" ] ||
        die "/opt has ${free_mb} MB free, and the install needs $NEEDED_MB MB"
}

# pip's argument, in $requirement. Of a checkout only what a build reads is copied, so that root leaves no files in it.
find_source() {
    [ -n "$from" ] || from=$HERE/../..
    case $from in
    *.whl | *.tar.gz)
        [ -f "$from" ] || die "$from is not there"
        requirement=$from
        ;;
    [0-9]*)
        say "MDI is not in the Python package index yet: this works once it is"
        requirement="mdi==$from"
        ;;
    *)
        if [ ! -f "$from/pyproject.toml" ] || [ ! -d "$from/mdi" ]; then
            die "$from is no checkout of MDI, no wheel, no sdist and no version" "see --help"
        fi
        requirement=checkout
        ;;
    esac
}

install_packages() {
    missing=
    for package in $PACKAGES; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    run apt-get update -q
    # shellcheck disable=SC2086 # a list of words
    run env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
}

make_account() {
    getent group "$ACCOUNT" >/dev/null || run groupadd --system "$ACCOUNT"
    getent passwd "$ACCOUNT" >/dev/null ||
        run useradd --system --gid "$ACCOUNT" --home-dir "$STATE" --no-create-home --shell /usr/sbin/nologin "$ACCOUNT"
    run install -d -m 0755 "$PREFIX"
    run install -d -m 0750 -o root -g "$ACCOUNT" "$SETTINGS"
    run install -d -m 0700 -o "$ACCOUNT" -g "$ACCOUNT" "$STATE"
}

# An environment of its own: Debian's Python is not pip's to change. One that another Python made is made anew.
make_environment() {
    if [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c 'import pip' 2>/dev/null &&
        [ "$("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = "$version" ]; then
        return 0
    fi
    run python3 -m venv --clear "$VENV"
}

install_package() {
    build=
    if [ "$requirement" = checkout ]; then
        build=$(mktemp -d)
        trap 'rm -rf "$build"' EXIT
        cp -R "$from/pyproject.toml" "$from/README.md" "$from/mdi" "$build/"
        requirement=$build
    fi
    pip="$VENV/bin/python -m pip --disable-pip-version-check --no-input install --no-cache-dir --quiet"
    say "installing MDI and what it needs: some minutes on a Pi"
    # Dependencies stay as they are while they fit; MDI itself is replaced even if its version number did not change.
    # shellcheck disable=SC2086 # a command and its options
    run $pip "$requirement"
    # shellcheck disable=SC2086
    run $pip --force-reinstall --no-deps "$requirement"
    # The tests of numpy and onnx, 19 MB that no node reads.
    run find "$VENV/lib" -type d \( -path '*/site-packages/numpy/*/tests' -o -path '*/site-packages/onnx/*/test' \) \
        -prune -exec rm -rf '{}' +
}

# People type `mdi`, and are asked as whom by sudo: then `mdi run` is this device's node, with its key and packs.
write_command() {
    write_file "$COMMAND" 755 <<END
#!/bin/sh
# Written by MDI's install.sh: \`mdi\` as the user of this system's node. With MDI_HOME set it is a node of your own.
if [ -n "\${MDI_HOME:-}" ]; then
    exec $VENV/bin/mdi "\$@"
elif [ "\$(id -un)" = $ACCOUNT ]; then
    MDI_HOME=$STATE MDI_CLUSTER_KEY_FILE=$SETTINGS/cluster.key exec $VENV/bin/mdi "\$@"
elif [ "\$(id -u)" = 0 ]; then
    HOME=$STATE exec setpriv --reuid=$ACCOUNT --regid=$ACCOUNT --init-groups -- "\$0" "\$@"
elif command -v sudo >/dev/null; then
    exec sudo --user=$ACCOUNT --set-home --preserve-env=HF_TOKEN,HF_ENDPOINT,HF_HUB_OFFLINE -- "\$0" "\$@"
else
    echo "mdi: this system's node belongs to the user $ACCOUNT" >&2
    echo "type it as root, or set MDI_HOME to a directory of your own" >&2
    exit 2
fi
END
}

prepare_key() {
    [ -e "$SETTINGS/mdi.toml" ] || write_file "$SETTINGS/mdi.toml" 644 <"$HERE/mdi.toml"
    if [ -n "$key_file" ]; then
        run "$VENV/bin/mdi" node prepare --into "$SETTINGS" --group "$ACCOUNT" --key-file "$key_file"
    elif [ -e "$BOOT_FILE" ]; then
        say "$BOOT_FILE is there: the node takes its key and settings from it when it starts"
    else
        run "$VENV/bin/mdi" node prepare --into "$SETTINGS" --group "$ACCOUNT"
    fi
}

install_units() {
    for unit in mdi.service mdi-first-boot.service; do
        write_file "$UNITS/$unit" 644 <"$HERE/$unit"
    done
    systemd_runs && run systemctl daemon-reload
    run systemctl --quiet enable mdi.service
    if [ "$start" = yes ] && systemd_runs; then
        run systemctl restart mdi-first-boot.service mdi.service
    else
        say "the node starts with the next boot"
    fi
}

systemd_runs() { [ -d /run/systemd/system ]; }

uninstall() {
    if systemd_runs; then
        run systemctl --quiet disable --now mdi.service mdi-first-boot.service || true
    else
        run systemctl --quiet disable mdi.service || true
    fi
    run rm -f "$UNITS/mdi.service" "$UNITS/mdi-first-boot.service" "$COMMAND"
    run rm -rf "$PREFIX"
    systemd_runs && run systemctl daemon-reload
    if [ "$purge" = yes ]; then
        run rm -rf "$SETTINGS" "$STATE"
        ! getent passwd "$ACCOUNT" >/dev/null || run userdel "$ACCOUNT"
        ! getent group "$ACCOUNT" >/dev/null || run groupdel "$ACCOUNT"
    else
        say "$SETTINGS (cluster key, settings) and $STATE (identity, packs) stay; --purge removes them"
    fi
}

main() {
    parse_arguments "$@"
    if [ "$dry_run" = no ] && [ "$(id -u)" != 0 ]; then
        die "this changes the system, so it must run as root" "sudo $0 $*"
    fi
    if [ "$action" = uninstall ]; then
        uninstall
        return
    fi
    check_system
    find_source
    check_room
    install_packages
    check_python
    make_account
    make_environment
    install_package
    write_command
    prepare_key
    install_units
    if systemd_runs; then
        say "done. See \`systemctl status mdi\`, \`mdi nodes\`, and \`mdi run --model tinyllama\`."
    fi
}

main "$@"
