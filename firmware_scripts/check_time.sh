#!/bin/sh
# Say whether this device's clock is kept right, and by what; run by provision.sh, and at each start of the agent's unit.
#
#   check_time.sh [--strict]
#
# A clock that is not is a warning, not a failure: the agent starts, and its telemetry is corrected once the clock is set
# (docs/telemetry/device.md). But TLS refuses certificates by a clock that says 1970. With --strict exit code 1 then.
#   --dry-run, --help
set -eu
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"

NEVER_SET_S=1750000000 # June 2025: the agent takes a clock before this for one that was never set
strict=
while [ $# -gt 0 ]; do
    case $1 in
    --strict) strict=1 ;;
    *) common_option "$1" || bad_usage "no such option: $1" ;;
    esac
    shift
done

# Each asks one program for 2 s at most, and prints yes or no, or nothing where that does not know.
by_timedatectl() { timeout 2 timedatectl show -p NTPSynchronized --value 2>/dev/null; }
by_chronyc() { timeout 2 chronyc -n tracking 2>/dev/null | sed -n 's/^Leap status *: Not synchronised/no/p; s/^Leap status *: [NID].*/yes/p'; }
by_adjtimex() { timeout 2 adjtimex --print 2>/dev/null | awk '/status:/ { print int($2 / 64) % 2 ? "no" : "yes" }'; }
# The kernel itself, where a Python is.
by_kernel() {
    for _python in /opt/ferryman/bin/python3 python3; do
        has "$_python" || continue
        timeout 2 "$_python" -c 'import ctypes
timex = (ctypes.c_long * 64)()
state = ctypes.CDLL(None).adjtimex(timex)
at = 5 * ctypes.sizeof(ctypes.c_long)
status = int.from_bytes(bytes(timex)[at:at + 4], __import__("sys").byteorder)
print("" if state < 0 else "no" if status & 0x40 else "yes")' 2>/dev/null && return 0
    done
}

answer='' by=''
for by in chronyc timedatectl adjtimex kernel; do
    [ "$by" = kernel ] || has "$by" || continue
    answer=$("by_$by") || answer=
    case $answer in yes | no) break ;; esac
done

# What to do about it, by what is installed here.
advice() {
    if has chronyc; then
        say "chronyc sources says whether it reaches a server of the time"
    elif [ -e "${FERRYMAN_TIMESYNCD:-/usr/lib/systemd/systemd-timesyncd}" ]; then
        say "timedatectl set-ntp true, and see timedatectl timesync-status"
    else
        say "apt-get install systemd-timesyncd"
    fi
}

now_s=$(date +%s)
if [ "$now_s" -lt "$NEVER_SET_S" ]; then
    warn "the clock says $(date -u '+%Y-%m-%d %H:%M') UTC: it was never set. Connect the device, or: date -u -s 'YYYY-MM-DD HH:MM'"
elif [ "$answer" = yes ]; then
    say "the clock is synchronized ($by)"
    exit 0
elif [ "$answer" = no ]; then
    warn "the clock is not synchronized ($by): $(advice)"
else
    warn "nothing here tells whether the clock is synchronized: $(advice)"
fi
[ -z "$strict" ] || exit 1
