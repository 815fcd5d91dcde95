#!/bin/sh
# performance.sh on|off|status|run [OPTIONS] [-- COMMAND...]: steady clocks while something is measured.
#
#   on      every core's governor becomes `performance`; what was found before is written down first
#   off     what was found before is put back; nothing where nothing was written down
#   status  the governors now, and what `off` would put back; changes nothing and needs no root
#   run     on, COMMAND, off: also when COMMAND fails or dies, and on INT, TERM and HUP. The exit code is COMMAND's.
#           After `kill -9` of this script nothing is put back by itself: `off` does it. Where `on` was called
#           before, it stays on.
#
#   --cores LIST    run: COMMAND on these cores only, as in 2-3 or 0,2
#   --stop UNIT     on, run: stop this systemd unit meanwhile, where it is active; may be given more than once
#   --stop-timers   on, run: the same for the timers of Debian that start work by themselves (apt-daily and others)
#   --dry-run       say what would be done, and change nothing
#   --help, -h      this text
#
# Exit codes: 0 done; 1 not, or not all of it; 2 wrong usage; of `run`: COMMAND's, 128 + N where signal N ended it.
# What was found before is in /run/ferryman-performance, which a restart of the device clears as it does the governors.
set -eu
callers_umask=$(umask)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
CPU=${FERRYMAN_SYS:-/sys}/devices/system/cpu # tests bring their own
STATE=${FERRYMAN_RUN:-/run}/ferryman-performance # not in /run/ferryman, which may be the agent's user's
FOUND=$STATE/found # lines: governor FILE VALUE, or unit NAME -
BY_HAND=$STATE/on    # there where it was `on`, and not a `run`
TIMERS='apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer logrotate.timer
man-db.timer systemd-tmpfiles-clean.timer'

governors() {
    for file in "$CPU"/cpufreq/policy*/scaling_governor; do
        if [ -e "$file" ]; then say "$file"; fi
    done
}

# One change at a time: `run` holds the lock until it has put everything back.
lock() {
    if [ -n "$DRY_RUN" ]; then return 0; fi
    mkdir -p "$STATE" || die "cannot write $STATE"
    exec 9>>"$STATE/lock"
    flock --nonblock 9 || die "another performance.sh is at work; wait for it, or end it"
}

# note KIND NAME VALUE: write down what was found, once, before it is changed.
note() {
    if [ -n "$DRY_RUN" ] || grep -qsF "$1 $2 " "$FOUND"; then return 0; fi
    if ! { cat "$FOUND" 2>/dev/null || :; say "$1 $2 $3"; } >"$FOUND.new" || ! mv -f "$FOUND.new" "$FOUND"; then
        die "cannot write $FOUND; what is not in it was not changed"
    fi
}

# set_governor FILE VALUE
set_governor() {
    if [ -n "$DRY_RUN" ]; then
        say "would write: $2 to $1"
    else
        (printf '%s\n' "$2" >"$1") 2>/dev/null && [ "$(cat "$1")" = "$2" ]
    fi
}

turn_on() {
    files=$(governors)
    [ -n "$files" ] || warn "no cpufreq in $CPU: the clocks are not the system's to set, and stay as they are"
    for file in $files; do
        available=$(cat "${file%governor}available_governors" 2>/dev/null || :)
        case " $available " in
        "  " | *" performance "*) ;;
        *)
            warn "$file takes no governor performance, only: $available"
            failed=1
            continue
            ;;
        esac
        was=$(cat "$file") || was=
        if [ -z "$was" ] || [ "$was" = performance ]; then continue; fi
        note governor "$file" "$was"
        set_governor "$file" performance || {
            warn "cannot write performance to $file"
            failed=1
        }
    done
    for unit in $units; do
        if has systemctl && systemctl --quiet is-active "$unit"; then
            note unit "$unit" -
            run systemctl stop "$unit" || {
                warn "cannot stop $unit"
                failed=1
            }
        fi
    done
}

# is_ours KIND NAME VALUE: a line that `note` may have written.
is_ours() {
    case $1 in
    governor)
        policy=${2#"$CPU/cpufreq/policy"}
        [ "$policy" != "$2" ] || return 1
        case ${policy%/scaling_governor} in '' | "$policy" | *[!0-9]*) return 1 ;; esac
        case $3 in '' | *[!a-z_]*) return 1 ;; esac
        ;;
    unit)
        case $2 in -* | *[!A-Za-z0-9@:_.\\-]*) return 1 ;; esac
        [ "$3" = - ]
        ;;
    *) return 1 ;;
    esac
}

turn_off() {
    [ -s "$FOUND" ] || return 0
    kept=
    while read -r kind name value; do
        if ! is_ours "$kind" "$name" "$value"; then
            warn "$FOUND: not a line of this script's, nothing is done: $kind $name $value"
            failed=1
            continue
        fi
        case $kind in
        governor) [ ! -e "$name" ] || set_governor "$name" "$value" ;;
        unit) run systemctl start "$name" </dev/null ;;
        esac || {
            warn "cannot put back: $kind $name $value"
            kept="$kept$kind $name $value
"
            failed=1
        }
    done <"$FOUND"
    if [ -n "$DRY_RUN" ]; then return 0; fi
    if [ -n "$kept" ]; then
        printf %s "$kept" >"$FOUND.new"
        mv -f "$FOUND.new" "$FOUND"
    else
        rm -f "$FOUND" "$BY_HAND"
    fi
}

status() {
    files=$(governors)
    [ -n "$files" ] || say "no cpufreq here"
    for file in $files; do
        say "$(basename "$(dirname "$file")"): $(cat "$file")"
    done
    if [ -s "$FOUND" ]; then
        say "performance mode is on; off puts back:"
        sed 's/^/  /; s/ -$//' "$FOUND"
    else
        say "performance mode is off"
    fi
}

# The command is in the background, or a signal to this script alone would have to wait for it; env gives it INT and
# QUIT back, which a shell takes from what it starts so. The lock is not its own.
run_command() {
    exec 3<&0
    # shellcheck disable=SC2086 # $pin is words
    (umask "$callers_umask" && exec env --default-signal=INT,QUIT $pin "$@" <&3 3<&- 9>&-) &
    child=$!
    trap 'kill -TERM "$child" 2>/dev/null || :' TERM
    trap 'kill -INT "$child" 2>/dev/null || :' INT
    trap 'kill -HUP "$child" 2>/dev/null || :' HUP
    while :; do
        code=0
        wait "$child" || code=$?
        kill -0 "$child" 2>/dev/null || break # else it was the wait that a signal ended
    done
}

# at_end CODE: after `run`, however it ended.
# shellcheck disable=SC2317 # a trap calls it
at_end() {
    trap '' INT TERM HUP
    trap - EXIT
    if [ -z "$DRY_RUN" ] && [ ! -e "$BY_HAND" ]; then turn_off; fi
    exit "$1"
}

action='' units='' cores='' failed=''
while [ $# -gt 0 ]; do
    case $1 in
    on | off | status | run)
        [ -z "$action" ] || bad_usage "one of on, off, status and run"
        action=$1
        ;;
    --cores)
        need_value "$@"
        cores=$2
        shift
        ;;
    --stop)
        need_value "$@"
        units="$units $2"
        shift
        ;;
    --stop-timers) units="$units $TIMERS" ;;
    --)
        shift
        break
        ;;
    *) common_option "$1" || bad_usage "no such option: $1" ;;
    esac
    shift
done
[ -n "$action" ] || bad_usage "say on, off, status or run"
[ "$action" = run ] || [ $# -eq 0 ] || bad_usage "$action takes no command"
[ "$action" != run ] || [ $# -gt 0 ] || bad_usage "run takes a command: run -- COMMAND..."
[ -z "$cores" ] || [ "$action" = run ] || bad_usage "--cores is for run"
case $cores in *[!0-9,-]*) bad_usage "--cores takes numbers, as in 2-3 or 0,2" ;; esac

if [ "$action" = status ]; then
    status
    exit 0
fi
need_root
pin=${cores:+taskset -c $cores}
if [ -n "$pin" ] && [ -z "$DRY_RUN" ]; then
    has taskset || die "taskset is not installed: apt-get install util-linux"
    $pin true 2>/dev/null || die "cannot pin to cores $cores; there are $(cat "$CPU/online" 2>/dev/null || nproc)"
fi
if [ "$action" = off ] && [ ! -d "$STATE" ]; then
    say "performance mode is off; nothing to put back"
    exit 0
fi
lock
case $action in
on)
    if [ -z "$DRY_RUN" ] && [ ! -e "$BY_HAND" ]; then : >"$BY_HAND"; fi
    turn_on
    [ -n "$(governors)" ] || failed=1
    ;;
off) turn_off ;;
run)
    trap 'exit 143' TERM
    trap 'exit 130' INT
    trap 'exit 129' HUP
    trap 'at_end $?' EXIT
    turn_on
    failed= # what could not be set was told, and is no reason not to run
    if [ -n "$DRY_RUN" ]; then
        say "would run: ${pin:+$pin }$*"
    else
        run_command "$@"
        exit "$code"
    fi
    ;;
esac
exit "${failed:-0}"
