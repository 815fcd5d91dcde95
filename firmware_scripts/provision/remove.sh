# shellcheck shell=sh
# shellcheck disable=SC2034,SC2153,SC2154 # the variables are provision.sh's
# A part of provision.sh: --uninstall. What is left: state, identity and their owner, until --purge.

remove_everything() {
    for _unit in ferryman-enrolled.path ferryman-agent-later.service ferryman-agent.service; do
        [ -e "$UNITS/$_unit" ] || continue
        if systemd_runs; then run systemctl stop "$_unit"; fi
        run systemctl --root=/ disable -q "$_unit" || :
    done
    _changed=$CHANGED CHANGED=
    remove "$UNITS/ferryman-agent.service" "$UNITS/ferryman-agent-later.service" "$UNITS/ferryman-enrolled.path" "$WAITS"
    _remove_empty "${WAITS%/*}"
    if [ -n "$CHANGED" ] && systemd_runs; then run systemctl daemon-reload; fi
    remove "$UDEV"
    if [ -n "$CHANGED" ] && systemd_runs && has udevadm; then run udevadm control --reload || :; fi
    remove "$AVAHI" "$LINK" "$LINK.new" "$VENVS" "$SHARED" "$SETTINGS/agent.env" "$SETTINGS/provisioned" "$HOME_OF/.ssh"
    _remove_empty "$SETTINGS" "$HOME_OF"
    CHANGED=$_changed$CHANGED
    case $(getent passwd ferryman) in
    */sh) run usermod --shell /usr/sbin/nologin ferryman ;;
    esac
    if [ -n "$purge" ]; then
        remove "$HOME_OF"
        if getent passwd ferryman >/dev/null; then run userdel ferryman; fi
        if getent group ferryman >/dev/null; then run groupdel ferryman; fi
    fi
}

_remove_empty() {
    for _folder; do
        if [ -d "$_folder" ] && [ -z "$(ls -A "$_folder")" ]; then run rmdir "$_folder"; fi
    done
}
