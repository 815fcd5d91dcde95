#!/bin/sh
# Raspberry Pi OS bookworm, at the very first start: put ferryman-firstboot.service in place, and take this out of the
# kernel's command line again. There is no network yet, so provisioning itself waits for the start after.
#
# On the boot partition of a card that was just written, append to the one line of cmdline.txt:
#   systemd.run=/boot/firmware/ferryman/firmware_scripts/firstboot/firstrun.sh systemd.run_success_action=reboot
#   systemd.unit=kernel-command-line.target
# Where Raspberry Pi Imager has put its own firstrun.sh there, append to that script instead, before its last lines:
#   sh /boot/firmware/ferryman/firmware_scripts/firstboot/firstrun.sh
#   --dry-run, --help
set -eu
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$here/../lib.sh"
while [ $# -gt 0 ]; do
    common_option "$1" || bad_usage "no such option: $1"
    shift
done
need_root
write_file /etc/systemd/system/ferryman-firstboot.service 644 root <"$here/ferryman-firstboot.service"
systemctl --root=/ is-enabled -q ferryman-firstboot.service 2>/dev/null ||
    run systemctl --root=/ enable -q ferryman-firstboot.service
cmdline=/boot/firmware/cmdline.txt
if grep -qs 'systemd\.run=[^ ]*/ferryman/[^ ]*/firstrun\.sh' "$cmdline"; then
    now=$(mktemp)
    trap 'rm -f "$now"' EXIT
    sed 's# *systemd\.run=[^ ]*/firstrun\.sh##; s# *systemd\.run_[a-z]*_action=[^ ]*##g; s# *systemd\.unit=kernel-command-line\.target##' \
        "$cmdline" >"$now"
    # FAT knows no owners: not write_file, but a copy beside it and a rename all the same.
    run cp "$now" "$cmdline.new"
    run sync
    run mv -f "$cmdline.new" "$cmdline"
fi
[ -n "$CHANGED" ] || say "nothing to do"
