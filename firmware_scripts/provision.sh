#!/bin/sh
# Make this device one of ferryman's: Raspberry Pi OS or Debian from bookworm on. Run as root; again it changes only
# what differs, finishes what was interrupted, and with another wheel it upgrades (docs/provisioning.md).
#
#   provision.sh --wheel FILE | --index ferryman==VERSION   [options]
#   provision.sh --uninstall [--purge]
#
#   --wheel FILE          ferryman's wheel for this device
#   --index NAME==VERSION instead: from a package index, as pip is configured here
#   --wheels FOLDER       everything from this folder (pip download on another machine), nothing from an index
#   --interpreter WHICH   litert (at first), tflite or none, beside ExecuTorch, which is in the wheel; an upgrade keeps it
#   --extra NAME          ota, enroll, drift, i2c or sparkplug; may be given several times. An upgrade keeps them; given
#                         again, these take the place of those before: none takes them all away
#   --python PROGRAM      Python 3.11 or later (at first: python3); an upgrade keeps it
#   --device NAME         the device's name (first time: this machine's host name)
#   --broker URL          where its telemetry goes
#   --set NAME=VALUE      one more line of /etc/ferryman/agent.env; what is there otherwise stays as it is
#   --trust FILE          root.json of the repository that updates come from (`ferryman keys root`)
#   --identity FILE       an identity made elsewhere (key, certificate, authority); FILE stays where it is
#   --enroll              or: the agent waits until `ferryman enroll` has been run on the host; implies --extra enroll
#   --authorize FILE      public keys of those who may push over SSH as the user ferryman
#   --journal             and they may read this device's whole journal (`ferryman logs`)
#   --no-start            enable the agent for the next start of the device, do not start it now
#   --uninstall           stop the agent and remove what this made, but not its state, identity and user
#   --purge               with --uninstall: those, too
#   --dry-run, --help
set -eu
# shellcheck disable=SC2034 # the parts read the variables
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"
LINK=/opt/ferryman        # what the unit and who pushes call; leads to one of
VENVS=/opt/ferryman.d     # these, complete each
HOME_OF=/var/lib/ferryman # the agent's root folder, its user's home
SETTINGS=/etc/ferryman
SHARED=/usr/local/lib/ferryman
UNITS=/etc/systemd/system

# shellcheck source-path=SCRIPTDIR source=provision/venv.sh
. "$here/provision/venv.sh"
# shellcheck source-path=SCRIPTDIR source=provision/settings.sh
. "$here/provision/settings.sh"
# shellcheck source-path=SCRIPTDIR source=provision/access.sh
. "$here/provision/access.sh"
# shellcheck source-path=SCRIPTDIR source=provision/units.sh
. "$here/provision/units.sh"
# shellcheck source-path=SCRIPTDIR source=provision/remove.sh
. "$here/provision/remove.sh"

wheel='' index='' wheels='' interpreter='' extras='' python='' device='' broker='' settings=''
trust='' identity='' enroll='' authorize='' journal='' start=1 uninstall='' purge=''

while [ $# -gt 0 ]; do
    case $1 in
    --wheel | --index | --wheels | --interpreter | --python | --device | --broker | --trust | --identity | --authorize)
        need_value "$@"
        # shellcheck disable=SC2034 # each is read by one of the parts
        case $1 in
        --wheel) wheel=$2 ;;
        --index) index=$2 ;;
        --wheels) wheels=$2 ;;
        --interpreter) interpreter=$2 ;;
        --python) python=$2 ;;
        --device) device=$2 ;;
        --broker) broker=$2 ;;
        --trust) trust=$2 ;;
        --identity) identity=$2 ;;
        --authorize) authorize=$2 ;;
        esac
        shift
        ;;
    --extra)
        need_value "$@"
        extras="$extras $2"
        shift
        ;;
    --set)
        need_value "$@"
        settings="$settings$2
"
        shift
        ;;
    --enroll) enroll=1 ;;
    --journal) journal=1 ;;
    --no-start) start='' ;;
    --uninstall) uninstall=1 ;;
    --purge) purge=1 ;;
    *.whl) bad_usage "--wheel takes one wheel, and here are $wheel and $1: name the one, or remove the other" ;;
    *) common_option "$1" || bad_usage "no such option: $1" ;;
    esac
    shift
done

if [ -n "$uninstall" ]; then
    [ -z "$wheel$index" ] || bad_usage "--uninstall takes no wheel"
    need_root
    remove_everything
    [ -n "$CHANGED" ] || say "nothing to do"
    exit 0
fi
[ -z "$purge" ] || bad_usage "--purge goes with --uninstall"
check_venv_options
check_settings
check_access
need_root
check_python
check_extras
check_system
one_at_a_time

make_user
make_folders
write_settings
write_access
build_venv
write_units
switch_venv
start_agent
say_what_next
[ -n "$CHANGED" ] || say "nothing to do"
