#!/bin/sh
# collect_sysinfo.sh [OPTIONS]: one file with what a person who helps from afar needs to know of this device.
#
# Versions, facts, slots, outbox, units and their journals, configuration, disk, memory, addresses, clock, heat, kernel
# messages. Secrets are taken out before anything is written (docs/firmware-scripts.md lists which); look through it all
# the same before you send it: it tells host names, addresses and names of models. What could not be had is said in it.
#
#   --output FILE   where to write it (default: ferryman-sysinfo-HOST-TIME.tar.gz here); never over another file
#   --root DIR      folder of slots and outbox (default: /var/lib/ferryman, or $FERRYMAN_ROOT)
#   --command PATH  how ferryman is called (default: /opt/ferryman/bin/ferryman)
#   --dry-run       say what would be collected, and write nothing
#   --help, -h      this text
#
# Exit codes: 0 written; 1 not; 2 wrong usage. Each part takes 10 s at most, all of them about two minutes, and the file
# is smaller than 20 MB. Run as root: others get less. Undo: remove the file.
set -eu
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

ETC=${FERRYMAN_ETC:-/etc} # tests bring their own
PART_S=10
ALL_S=110
KIB=1024

output=
while [ $# -gt 0 ]; do
    if [ "$1" = --output ]; then
        need_value "$@"
        output=$2
        shift
    elif ferryman_option "$@"; then
        shift
    else
        common_option "$1" || bad_usage "no such option: $1"
    fi
    shift
done

name=ferryman-sysinfo-$(uname -n)-$(date -u +%Y%m%dT%H%M%SZ)
case ${output:=$name.tar.gz} in /*) ;; *) output=$(pwd)/$output ;; esac
if [ -e "$output" ] || [ -L "$output" ]; then die "$output is there already; remove it, or name another with --output"; fi
[ -d "$(dirname "$output")" ] || die "there is no folder $(dirname "$output"); make it, or name another file with --output"
cd /
umask 077

if [ -z "$DRY_RUN" ]; then
    work=$(mktemp -d) || die "cannot make a folder in ${TMPDIR:-/tmp}: is the disk full or read-only?"
    trap 'rm -rf "$work" "$output.part"' EXIT
    trap 'exit 1' INT TERM HUP
    mkdir "$work/$name"
    known=$work/known
    : >"$known"
fi
ends=$(($(date +%s) + ALL_S))

# redact FILE BYTES_MAX [AWK OPTIONS...] <text: into FILE of the bundle.
redact() {
    file=$1 bytes_max=$2
    shift 2
    LC_ALL=C awk -v known="$known" -v bytes_max="$bytes_max" "$@" -f "$here/settings.awk" -f "$here/redact.awk" >>"$work/$name/$file" ||
        say "[left out: it could not be searched for secrets]" >"$work/$name/$file"
}

# part FILE KIB_MAX COMMAND...: what COMMAND prints, into FILE of the bundle; several may go into one.
part() {
    file=$1 bytes_max=$(($2 * KIB))
    shift 2
    if [ -n "$DRY_RUN" ]; then
        say "would collect: $file: $*"
        return 0
    fi
    {
        say "\$ $*"
        if [ "$(date +%s)" -ge "$ends" ]; then
            say "[left out: no time was left]"
        elif ! has "$1"; then
            say "[not here: $1 is not installed]"
        else
            code=0
            timeout --kill-after=2 "$PART_S" "$@" </dev/null 2>&1 || code=$?
            case $code in
            0) ;;
            124 | 137) say "[ended: it took more than $PART_S s]" ;;
            *) say "[exit code $code]" ;;
            esac
        fi
        say
    } | head -c $((2 * bytes_max)) | redact "$file" "$bytes_max"
}

# settings FILE KIND PATHS...: files that may hold secrets, into FILE of the bundle; KIND env or unit as settings.awk has.
settings() {
    file=$1 kind=$2
    shift 2
    for path; do
        if [ ! -f "$path" ] || [ ! -r "$path" ]; then continue; fi
        if [ -n "$DRY_RUN" ]; then
            say "would collect: $file: $path, without secrets"
            continue
        fi
        say "# $path" >>"$work/$name/$file"
        { cat "$path" && say; } | head -c $((512 * KIB)) |
            redact "$file" $((256 * KIB)) -v kind="$kind" -v learn="$known.new"
        if [ -e "$known.new" ]; then sort -u "$known.new" "$known" -o "$known"; fi
    done
}

all_settings() {
    settings settings.txt env "$ETC"/ferryman/*.env
    settings settings.txt '' "$ETC"/mosquitto/mosquitto.conf "$ETC"/mosquitto/conf.d/*.conf "$ETC"/mosquitto/ferryman/mosquitto.conf
    settings settings.txt unit "$ETC"/systemd/system/ferryman-*.service "$ETC"/systemd/system/ferryman-*.service.d/*.conf
}

# What is secret in them is learned first, and then looked for in everything; those of networks are not collected at all.
if [ -z "$DRY_RUN" ]; then
    settings settings.txt '' "$ETC"/wpa_supplicant/*.conf "$ETC"/NetworkManager/system-connections/* "$ETC"/netplan/*.yaml
    all_settings
    rm -f "$work/$name/settings.txt"
fi
all_settings

# as_owner_of FOLDER: the words that have a command run as its owner, who may have put links to others' files there.
as_owner_of() {
    owner=$(stat -c %U "$1" 2>/dev/null) || return 0
    if [ "$(id -u)" -eq 0 ] && [ "$owner" != root ]; then say "runuser -u $owner --"; fi
}
as=$(as_owner_of "$ROOT")
as_log=$(as_owner_of /var/log/mosquitto)

# root_part FILE KIB_MAX COMMAND...: on the root folder, as its owner.
root_part() {
    file=$1 kib_max=$2
    shift 2
    # shellcheck disable=SC2086 # $as is words
    part "$file" "$kib_max" $as "$@"
}

part about.txt 16 date -u
part about.txt 16 id -un
part system.txt 64 cat "$ETC/os-release"
part system.txt 64 uname -a
part system.txt 64 uptime
part system.txt 64 cat /proc/cmdline
part system.txt 64 sh -c 'tr -d "\000" </proc/device-tree/model'
part system.txt 256 cat /proc/cpuinfo
root_part versions.txt 512 "$FERRYMAN" --version
root_part versions.txt 256 "${FERRYMAN%/*}/python" -m pip list --disable-pip-version-check
part versions.txt 16 python3 --version
part versions.txt 16 sh -c 'PATH=/usr/sbin:/usr/bin:/bin; mosquitto -h | head -n 1'
part versions.txt 64 dpkg-query -W 'mosquitto*' 'libmosquitto*' 'systemd*' 'python3*' 'openssh-*' 'raspi*' 'linux-image*'
root_part facts.txt 512 "$FERRYMAN" facts --json
root_part outbox.txt 512 "$FERRYMAN" outbox show --root "$ROOT"
root_part identity.txt 512 "$FERRYMAN" identity show --root "$ROOT"
root_part slots.txt 64 cat "$ROOT/state.json"
root_part slots.txt 64 cat "$ROOT/update/desired.json"
root_part slots.txt 64 cat "$ROOT/update/reported.json"
root_part slots.txt 512 ls -lRb "$ROOT"
root_part slots.txt 16 du -sh "$ROOT"
root_part ssh.txt 16 grep -c . "$ROOT/.ssh/authorized_keys"
part units.txt 256 systemctl status --no-pager --lines=0 'ferryman-*' mosquitto ssh
part units.txt 256 systemctl show ferryman-agent -p ActiveState,SubState,Result,NRestarts,ExecMainStatus,MemoryCurrent,User
part units.txt 256 systemctl --no-pager --failed
part journal-ferryman.txt 4096 journalctl --no-pager --output=short-iso-precise --lines=10000 -u 'ferryman-*'
part journal-mosquitto.txt 2048 journalctl --no-pager --output=short-iso-precise --lines=3000 -u mosquitto
# shellcheck disable=SC2086 # $as_log is words
part journal-mosquitto.txt 1024 $as_log tail -n 3000 /var/log/mosquitto/mosquitto.log
part kernel.txt 1024 sh -c 'dmesg | tail -n 2000'
part disk.txt 64 df -h
part disk.txt 64 df -i
part disk.txt 256 cat /proc/mounts
part disk.txt 64 lsblk
part memory.txt 64 cat /proc/meminfo
part memory.txt 16 sh -c 'tail -n +1 /proc/pressure/*'
part memory.txt 64 sh -c 'ps -eo pid,user,rss,pcpu,etimes,comm --sort=-rss | head -n 60'
part network.txt 64 ip addr
part network.txt 64 ip route
part network.txt 64 cat "$ETC/resolv.conf"
part network.txt 64 ss -ltn
part clock.txt 16 timedatectl --no-pager
part clock.txt 16 chronyc tracking
part heat.txt 16 vcgencmd get_throttled
part heat.txt 64 sh -c 'tail -n +1 /sys/class/thermal/thermal_zone*/type /sys/class/thermal/thermal_zone*/temp'
part heat.txt 64 "$here/performance.sh" status

if [ -n "$DRY_RUN" ]; then
    say "would write: $output"
    exit 0
fi
tar -C "$work" --owner=0 --group=0 -czf "$work/bundle" "$name" || die "cannot pack it: is ${TMPDIR:-/tmp} full?"
# Whose folder it is may have put a link there, to a file that only root may write.
cp -T --remove-destination "$work/bundle" "$output.part" || die "cannot write $output"
mv -nT "$output.part" "$output"
[ ! -e "$output.part" ] || die "$output came meanwhile; name another with --output"
say "wrote $output ($(($(stat -c %s "$output") / 1024)) KiB). Secrets were taken out; look through it before you send it."
