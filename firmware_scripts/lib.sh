#!/bin/sh
# What the scripts here share; not to be run. Each takes it so:
#     . "$(dirname "$(readlink -f "$0")")/lib.sh"
# and has its --help as the comment under its first line.

umask 022 # what users and services read must not depend on who calls
DRY_RUN=${DRY_RUN:-}
CHANGED= # 1 once something was changed, or would have been: what says whether a service must start anew
ME=$(basename "$0")

say() { printf '%s\n' "$*"; }

warn() { printf '%s: %s\n' "$ME" "$*" >&2; }

# die MESSAGE: it could not be done (exit 1). bad_usage MESSAGE: it was asked wrongly (exit 2).
die() {
    warn "$*"
    exit 1
}

bad_usage() {
    warn "$* (see $ME --help)"
    exit 2
}

# The comment under the first line of the script that runs.
help() { sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$0"; }

# common_option WORD: takes --help and --dry-run; false for any other.
common_option() {
    case $1 in
    -h | --help)
        help
        exit 0
        ;;
    --dry-run) DRY_RUN=1 ;;
    *) return 1 ;;
    esac
}

# need_value "$@": the option in $1 has a value in $2, of one line, for into files of lines it goes.
need_value() {
    if [ $# -lt 2 ] || [ -z "$2" ]; then bad_usage "$1 takes a value"; fi
    case $2 in *[[:cntrl:]]*) bad_usage "$1 takes a value of one line" ;; esac
}

has() { command -v "$1" >/dev/null 2>&1; }

# A dry run needs no rights, for it changes nothing.
need_root() {
    [ -n "$DRY_RUN" ] || [ "$(id -u)" -eq 0 ] || die "this needs root: sudo $0"
}

# run COMMAND...: does it, or says what would be done. Never with a secret in it: a dry run prints it.
run() {
    # shellcheck disable=SC2034 # read by the scripts
    CHANGED=1
    if [ -n "$DRY_RUN" ] && [ "$1" = as_user ]; then
        _as=$2
        shift 2
        say "would run, as $_as: $*"
    elif [ -n "$DRY_RUN" ]; then
        say "would run: $*"
    else
        "$@"
    fi
}

# Whether systemd is process 1 here: not so in a chroot, a container, or an image that is being built.
systemd_runs() { [ -d /run/systemd/system ]; }

# owner_and_mode PATH: as in "root:root 644".
owner_and_mode() { stat -c '%U:%G %a' "$1" 2>/dev/null; }

# as_user USER COMMAND...: with no more rights than USER has, and no terminal into which USER's other processes could
# have it type. What a user may rename and link, root never reaches by its path. A dry run only looks, as who runs it.
as_user() {
    _user=$1
    shift
    if [ -n "$DRY_RUN" ] || [ "$_user" = "$(id -un)" ]; then
        "$@"
    else
        (cd / && exec setsid --wait runuser -u "$_user" -- "$@") 9>&-
    fi
}

# write_file PATH MODE OWNER[:GROUP] <content: whole or not at all, on disk at return, and only where it differs; by its
# owner, who reads no file of this script's: `here` is lib.sh's folder.
# Take the content from a here-document or <file: behind a pipe CHANGED would be lost.
write_file() {
    case $3 in
    root | root:*) _write_file "$@" ;;
    *)
        # shellcheck disable=SC2154 # `here` is the script's
        as_user "${3%:*}" env DRY_RUN="$DRY_RUN" timeout 60 sh -c "$(cat "$here/lib.sh")
_write_file \"\$@\"" "$ME" "$@" ;;
    esac || _written $? "$1"
}

# remove PATH...: files and folders with all in them, where they are there.
remove() {
    for _path; do
        if [ -e "$_path" ] || [ -L "$_path" ]; then run rm -r -- "$_path"; fi
    done
}

# make_folder PATH MODE USER: by USER, and only where it is not so already.
make_folder() {
    if [ ! -d "$1" ] || [ "$(owner_and_mode "$1")" != "$3:$3 ${2#0}" ]; then
        run as_user "$3" install -d -m "$2" -- "$1" || die "$3 cannot make $1: if it is there, and should be, chown -hR $3:$3 $1"
    fi
}

_with_group() { case $1 in *:*) say "$1" ;; *) say "$1:$1" ;; esac }

# Exit code 10: it was, or would be, changed.
_write_file() (
    path=$1 owner=$(_with_group "$3") mode=${2#0}
    is_so() { [ ! -L "$path" ] && [ -f "$path" ] && [ "$(owner_and_mode "$path")" = "$owner $mode" ] && cmp -s "$1" "$path"; }
    if [ -n "$DRY_RUN" ]; then
        if is_so -; then exit 0; fi
        say "would write: $path ($owner, $mode)"
        exit 10
    fi
    umask 077
    folder=$(dirname "$path")
    new=$(mktemp "$folder/.ferryman.XXXXXX") || exit 1
    trap 'rm -f "$new"' EXIT
    trap 'exit 1' INT TERM HUP
    { cat >"$new" && chown "$owner" "$new" && chmod "$mode" "$new"; } || exit 1
    if is_so "$new"; then exit 0; fi
    { sync "$new" && mv -fT "$new" "$path" && sync "$folder"; } || exit 1
    say "wrote $path"
    exit 10
)

_written() {
    [ "$1" -eq 10 ] || die "cannot write $2: is its folder there, the disk full or read-only, or the owner unknown here?"
    # shellcheck disable=SC2034 # read by the scripts
    CHANGED=1
}

# The root folder of slots and outbox, and how ferryman is called. Every command on it runs as the folder's owner: what
# root wrote there, the agent could not write any more.
ROOT=${FERRYMAN_ROOT:-/var/lib/ferryman}
FERRYMAN=/opt/ferryman/bin/ferryman

# ferryman_option "$@": takes --root DIR and --command PATH in $1 and $2; false for any other.
ferryman_option() {
    case $1 in
    --root | --command) need_value "$@" ;;
    *) return 1 ;;
    esac
    case $1 in
    --root) ROOT=$(readlink -m -- "$2") ;;
    --command) FERRYMAN=$(command -v -- "$2") || bad_usage "there is no command $2" ;;
    esac
    case $FERRYMAN in /*) ;; *) FERRYMAN=$(pwd)/$FERRYMAN ;; esac
}

# as_owner COMMAND...: runs it as the user who owns the root folder.
as_owner() {
    _owner=$(stat -c %U "$ROOT" 2>/dev/null) || die "there is no $ROOT; name the root folder with --root"
    [ "$_owner" = "$(id -un)" ] || [ "$(id -u)" -eq 0 ] || die "$ROOT is $_owner's; run this as root or as $_owner"
    as_user "$_owner" "$@"
}

# ferryman WORDS...: on the root folder. Where ferryman itself does not run, it says so and ends.
ferryman() {
    if [ -n "$DRY_RUN" ]; then
        say "would run: $FERRYMAN $* --root $ROOT"
        return 0
    fi
    [ -x "$FERRYMAN" ] || die "there is no $FERRYMAN: nothing was changed; install ferryman (provision.sh), or name it with --command"
    as_owner "$FERRYMAN" --version >/dev/null || die "$FERRYMAN does not run, so nothing was changed, and the slots are as they were: install ferryman anew (provision.sh), then repeat this"
    as_owner "$FERRYMAN" "$@" --root "$ROOT" || die "$FERRYMAN $1 failed (exit $?); the line above says why"
}

# on_the_root WORD "$@": takes --root, --command and what is common, and has ferryman do WORD: all of a script.
on_the_root() {
    _word=$1
    shift
    while [ $# -gt 0 ]; do
        if ferryman_option "$@"; then
            shift
        else
            common_option "$1" || bad_usage "no such option: $1"
        fi
        shift
    done
    ferryman "$_word"
}
