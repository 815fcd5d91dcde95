#!/bin/sh
# Provision this device at its first start with network, from the folder on its boot partition that holds this script's
# folder; run by ferryman-firstboot.service or by cloud-init (docs/provisioning.md).
#
#   firstboot.sh [FOLDER]       default: /boot/firmware/ferryman
#
# In FOLDER: firmware_scripts/; provision.options, an option of provision.sh a line; ferryman's wheel unless an option names
# an index; and, where they are there, wheels/, authorized_keys, root.json, identity.pem.
# Once it is done the unit is disabled and secrets are removed from the boot partition. What fails is tried again.
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

set --
# Read, not run: a line is an option and its value, whatever characters the value has. Windows ends lines with CR.
while IFS= read -r line || [ -n "$line" ]; do
    line=$(printf %s "$line" | tr -d '\r' | sed 's/^[ \t]*//; s/[ \t]*$//')
    case $line in
    '' | '#'*) ;;
    --help* | --dry-run* | --uninstall* | --purge*) die "$options: $line provisions nothing: remove that line" ;;
    --identity*) die "$options: put the identity beside it as identity.pem, which is removed afterwards, and remove the line: $line" ;;
    --*' '*) set -- "$@" "${line%% *}" "$(printf %s "${line#* }" | sed 's/^[ \t]*//')" ;;
    --*) set -- "$@" "$line" ;;
    *) die "$options: expected --option value, found: $line" ;;
    esac
done <"$options"
for wheel in "$folder"/ferryman-*.whl; do
    if [ -f "$wheel" ]; then set -- "$@" --wheel "$wheel"; fi
done
if [ -d "$folder/wheels" ]; then set -- "$@" --wheels "$folder/wheels"; fi
if [ -f "$folder/authorized_keys" ]; then set -- "$@" --authorize "$folder/authorized_keys"; fi
if [ -f "$folder/root.json" ]; then set -- "$@" --trust "$folder/root.json"; fi
if [ -f "$folder/identity.pem" ]; then set -- "$@" --identity "$folder/identity.pem"; fi
if [ -n "$DRY_RUN" ]; then set -- "$@" --dry-run; fi

/bin/sh "$scripts/provision.sh" "$@"
[ -n "$DRY_RUN" ] || "$FERRYMAN" --version >/dev/null || die "$FERRYMAN does not run, so nothing was removed from $folder"

# The key is where it belongs; the broker's URL may hold a password. FAT on flash: what was removed may be read from the
# card itself, so an identity that matters is better made on the device (--enroll).
remove "$folder/identity.pem" "$options"
[ -n "$DRY_RUN" ] || sync
if [ -e /etc/systemd/system/ferryman-firstboot.service ]; then run systemctl --root=/ disable -q ferryman-firstboot.service; fi
[ -n "$DRY_RUN" ] || : >"$done_mark"
say "provisioned from $folder"
