#!/bin/sh
# Provision this device at its first start with network, from the folder on its boot partition that holds this script's
# folder; run by ferryman-firstboot.service or by cloud-init (docs/provisioning.md).
#
#   firstboot.sh [FOLDER]       default: /boot/firmware/ferryman
#
# In FOLDER: firmware_scripts/; provision.options, an option of provision.sh a line; ferryman's wheel unless an option names
# an index; and, where they are there, wheels/, authorized_keys, root.json, identity.pem.
# Once it is done the unit is disabled and secrets are removed from the boot partition. What fails is tried again, every
# minute; what is written wrongly (exit code 2) is not, but at the next start.
#   --dry-run, --help
set -eu
scripts=$(dirname "$(dirname "$(readlink -f "$0")")")
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$scripts/lib.sh"
folder=/boot/firmware/ferryman
while [ $# -gt 0 ]; do
    case $1 in
    /*) folder=$1 ;;
    *) common_option "$1" || bad_usage "expected a folder, found $1" ;;
    esac
    shift
done
need_root
done_mark=/etc/ferryman/provisioned
if [ -e "$done_mark" ]; then
    say "nothing to do"
    exit 0
fi
options=$folder/provision.options
[ -f "$options" ] || die "no $options: write an option of provision.sh a line, such as --device kitchen"

known=" $(sed -n 's/^#   \(--[a-z-]*\).*/\1/p' "$scripts/provision.sh" | paste -sd' ') "
number=0
set --
# Read, not run: a line is an option and its value, whatever characters the value has. Windows ends lines with CR.
while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    line=$(printf %s "$line" | tr -d '\r' | sed 's/^[ \t]*//; s/[ \t]*$//')
    case $line in
    '' | '#'*) continue ;;
    --help* | --dry-run* | --uninstall* | --purge*) bad_usage "$options, line $number: $line provisions nothing: remove that line" ;;
    --identity*) bad_usage "$options, line $number: put the identity beside it as identity.pem, which is removed afterwards, and remove the line: $line" ;;
    --*) case $known in *" ${line%% *} "*) ;; *) bad_usage "$options, line $number: provision.sh has no option ${line%% *}" ;; esac ;;
    *) bad_usage "$options, line $number: expected --option value, found: $line" ;;
    esac
    case $line in
    *' '*) set -- "$@" "${line%% *}" "$(printf %s "${line#* }" | sed 's/^[ \t]*//')" ;;
    *) set -- "$@" "$line" ;;
    esac
done <"$options"
wheel=
for found in "$folder"/ferryman-*.whl; do
    [ -f "$found" ] || continue
    [ -z "$wheel" ] || bad_usage "$wheel and $found: leave there the one for this device"
    wheel=$found
done
if [ -n "$wheel" ]; then set -- "$@" --wheel "$wheel"; fi
case " $* " in
*" --wheel "* | *" --index "*) ;;
*) bad_usage "no ferryman-*.whl in $folder: put the one for this device there, or a line --index ferryman==VERSION into $options" ;;
esac
if [ -d "$folder/wheels" ]; then set -- "$@" --wheels "$folder/wheels"; fi
if [ -f "$folder/authorized_keys" ]; then set -- "$@" --authorize "$folder/authorized_keys"; fi
if [ -f "$folder/root.json" ]; then set -- "$@" --trust "$folder/root.json"; fi
if [ -f "$folder/identity.pem" ]; then set -- "$@" --identity "$folder/identity.pem"; fi
if [ -n "$DRY_RUN" ]; then set -- "$@" --dry-run; fi

/bin/sh "$scripts/provision.sh" "$@" || {
    code=$?
    [ "$code" -ne 2 ] || warn "mend in $options, or beside it, what the line above names; then start the device anew, or: systemctl start ferryman-firstboot"
    exit "$code"
}
[ -n "$DRY_RUN" ] || "$FERRYMAN" --version >/dev/null || die "$FERRYMAN does not run, so nothing was removed from $folder"

# The key is where it belongs; the broker's URL may hold a password. FAT on flash: what was removed may be read from the
# card itself, so an identity that matters is better made on the device (--enroll).
remove "$folder/identity.pem" "$options"
[ -n "$DRY_RUN" ] || sync
if [ -e /etc/systemd/system/ferryman-firstboot.service ]; then run systemctl --root=/ disable -q ferryman-firstboot.service; fi
[ -n "$DRY_RUN" ] || : >"$done_mark"
say "$([ -n "$DRY_RUN" ] && echo "would provision" || echo provisioned) from $folder"
