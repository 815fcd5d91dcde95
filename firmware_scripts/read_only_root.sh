#!/bin/sh
# Have this device's root file system mounted read-only from its next start on, with the agent's state writable:
# an SD card that nothing is written to survives power cuts. Undone by --undo (docs/provisioning.md).
#
#   read_only_root.sh --state DEVICE   [--fstab FILE]
#   read_only_root.sh --undo           [--fstab FILE]
#
#   --state DEVICE   the file system for /var/lib/ferryman: LABEL=ferryman, UUID=... or /dev/..., ext4, made before
#                    (mkfs.ext4 -L ferryman /dev/mmcblk0p3); what is in the folder now has to be copied there
#   --fstab FILE     instead of /etc/fstab, for an image that is being built
#   --dry-run, --help
#
# Writable stay: /var/lib/ferryman on its own file system, /run, and in memory /tmp, /var/tmp and /var/log.
set -eu
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"

BEGIN='# ferryman: read-only root begin'
END='# ferryman: read-only root end'
fstab=/etc/fstab state='' undo='' missing=''
while [ $# -gt 0 ]; do
    case $1 in
    --state | --fstab)
        need_value "$@"
        case $1 in --state) state=$2 ;; --fstab) fstab=$2 ;; esac
        shift
        ;;
    --undo) undo=1 ;;
    *) common_option "$1" || bad_usage "no such option: $1" ;;
    esac
    shift
done
case $undo,$state in
,) bad_usage "say where the agent's state goes: --state LABEL=ferryman" ;;
1,?*) bad_usage "--undo takes no --state" ;;
,LABEL=?* | ,UUID=?* | ,PARTUUID=?* | ,/dev/?* | 1,) ;;
*) bad_usage "--state $state: LABEL=..., UUID=..., PARTUUID=... or /dev/..." ;;
esac
case $state in *[!A-Za-z0-9_./=:-]*) bad_usage "--state $state: a name without spaces" ;; esac
need_root
[ -f "$fstab" ] || die "no $fstab here: the root is mounted by something else, and made read-only there"
awk '$1 !~ /^#/ && $2 == "/" { found++ } END { exit found != 1 }' "$fstab" ||
    die "$fstab has not exactly one line for /: add it (findmnt / tells how it is mounted)"
awk -v begin="$BEGIN" -v end="$END" '
    index($0, begin) == 1 { wrong += inside || seen++; inside = 1 }
    $0 == end { wrong += !inside; inside = 0 }
    END { exit wrong || inside }' "$fstab" ||
    die "$fstab: our lines are not between one \"$BEGIN\" and one \"$END\"; mend or remove those lines by hand, for what follows them could be lost"
theirs=$(awk -v begin="$BEGIN" -v end="$END" '
    index($0, begin) == 1 { inside = 1 }
    $0 == end { inside = 0 }
    !inside && $1 !~ /^#/ { sub("/+$", "", $2); if ($2 == "/var/lib/ferryman") print $1 }' "$fstab")
case $undo,$theirs in
1,* | , | ,"$state") ;;
*) die "$fstab mounts $theirs on /var/lib/ferryman already: remove that line, or say --state $theirs" ;;
esac
if [ -z "$undo" ] && [ -d /run/systemd/system ] && has blkid; then
    blkid "$state" >/dev/null 2>&1 || findfs "$state" >/dev/null 2>&1 ||
        missing="no file system $state here: make it first, or the device would wait for it at its next start"
fi
if [ -n "$missing" ] && [ -z "$DRY_RUN" ]; then die "$missing"; fi

# The lines between the marks are ours; of the line for / only ro or rw is, and what it was is kept behind the mark.
now=$(mktemp)
trap 'rm -f "$now"' EXIT
awk -v begin="$BEGIN" -v end="$END" -v undo="$undo" -v state="$state" '
function set_mode(options, mode,   n, parts, i, made) {
    n = split(options, parts, ",")
    made = mode
    for (i = 1; i <= n; i++) if (parts[i] != "ro" && parts[i] != "rw") made = made (made == "" ? "" : ",") parts[i]
    return made == "" ? "defaults" : made
}
index($0, begin) == 1 { was = substr($0, length(begin) + 2); inside = 1; next }
$0 == end { inside = 0; next }
inside { next }
{ lines[++count] = $0 }
function ours(line,   f) {
    split(line, f)
    if (!(f[2] in mounted)) print line
}
END {
    for (i = 1; i <= count; i++) {
        fields = split(lines[i], f) # as mount does: blanks before the first do not count
        if (f[1] !~ /^#/ && f[2] == "/") {
            mode = match("," f[4] ",", /,r[ow],/) ? substr("," f[4] ",", RSTART + 1, 2) : "-"
            if (was == "") was = mode
            if (undo && was != "") f[4] = set_mode(f[4], was == "-" ? "" : was)
            if (!undo) f[4] = set_mode(f[4], "ro")
            lines[i] = f[1] " " f[2] " " f[3] " " f[4] (fields > 4 ? " " f[5] : "") (fields > 5 ? " " f[6] : "")
        }
        print lines[i]
        if (f[1] !~ /^#/ && fields > 1) {
            sub("/+$", "", f[2])
            mounted[f[2]]
        }
    }
    if (undo) exit
    print begin " " was
    ours(state " /var/lib/ferryman ext4 defaults,noatime,nodev,nosuid,noexec 0 2")
    ours("tmpfs /tmp tmpfs nodev,nosuid,mode=1777 0 0")
    ours("tmpfs /var/tmp tmpfs nodev,nosuid,mode=1777 0 0")
    ours("tmpfs /var/log tmpfs nodev,nosuid,noexec,mode=755 0 0")
    print end
}' "$fstab" >"$now"
if [ -n "$undo" ] && ! grep -qF "$BEGIN" "$fstab"; then
    say "nothing to do"
    exit 0
fi
if [ -n "$DRY_RUN" ]; then
    if [ -n "$missing" ]; then say "would stop here: $missing; after that:"; fi
    diff "$fstab" "$now" | sed -n 's/^< /would take out: /p; s/^> /would put in: /p'
fi
write_file "$fstab" 644 root <"$now"
if [ -n "$DRY_RUN" ]; then
    if [ -z "$CHANGED" ]; then
        say "nothing to do"
    elif [ -n "$undo" ]; then
        say "the root would be writable from the next start on"
    else
        say "the root would be read-only from the next start on; before that: cp -a what is in /var/lib/ferryman to $state"
    fi
elif [ -z "$CHANGED" ]; then
    say "nothing to do"
elif [ -n "$undo" ]; then
    say "the root is writable from the next start on"
else
    say "the root is read-only from the next start on; copy /var/lib/ferryman to $state before, with owners: cp -a"
    say "to change something later: mount -o remount,rw /, and ro after"
fi
