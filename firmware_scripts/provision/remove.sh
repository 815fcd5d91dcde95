# shellcheck shell=sh
# shellcheck disable=SC2034,SC2153,SC2154 # the variables are provision.sh's
# A part of provision.sh: --uninstall. What is left: state, identity and their owner, until --purge.

remove_everything() {
    for _unit in ferryman-enrolled.path ferryman-agent-later.service ferryman-agent.service ferryman-firstboot.service; do
        [ -e "$UNITS/$_unit" ] || continue
        # The first boot's may be what runs this.
        if systemd_runs && [ "$_unit" != ferryman-firstboot.service ]; then run systemctl stop "$_unit"; fi
        run systemctl --root=/ disable -q "$_unit" || :
    done
    _changed=$CHANGED CHANGED=
    _gone "$UNITS/ferryman-agent.service" "$UNITS/ferryman-agent-later.service" "$UNITS/ferryman-enrolled.path" "$WAITS" \
        "$UNITS/ferryman-firstboot.service"
    _remove_empty "${WAITS%/*}"
    if [ -n "$CHANGED" ] && systemd_runs; then run systemctl daemon-reload; fi
    _gone "$UDEV"
    if [ -n "$CHANGED" ] && systemd_runs && has udevadm; then run udevadm control --reload || :; fi
    _gone "$AVAHI" "$LINK" "$LINK.new" "$VENVS" "$SHARED" "$SETTINGS/agent.env" "$SETTINGS/provisioned" "$HOME_OF/.ssh"
    _remove_empty "$SETTINGS" "$HOME_OF"
    CHANGED=$_changed$CHANGED
    case $(getent passwd ferryman) in
    */sh) run usermod --shell /usr/sbin/nologin ferryman ;;
    esac
    if [ -n "$purge" ]; then
        _gone "$HOME_OF"
        if getent passwd ferryman >/dev/null; then
            run userdel ferryman
            _say_gone "the user ferryman"
        fi
        if getent group ferryman >/dev/null; then run groupdel ferryman; fi
    fi
    [ -n "$DRY_RUN" ] || _say_what_stays
}

# remove, and say so.
_gone() {
    for _one; do
        if [ -e "$_one" ] || [ -L "$_one" ]; then
            remove "$_one"
            _say_gone "$_one"
        fi
    done
}

_say_gone() { [ -n "$DRY_RUN" ] || say "removed $1"; }

_say_what_stays() {
    if [ -d "$HOME_OF" ]; then
        say "stays: $HOME_OF, with state and identity, and its user ferryman; --uninstall --purge removes them"
    elif getent passwd ferryman >/dev/null; then
        say "stays: the user ferryman; --uninstall --purge removes it"
    fi
    for _one in "$SETTINGS"/*; do
        if [ -e "$_one" ]; then say "stays: $_one, which provision.sh did not make"; fi
    done
}

_remove_empty() {
    for _folder; do
        if [ -d "$_folder" ] && [ -z "$(ls -A "$_folder")" ]; then run rmdir "$_folder"; fi
    done
}
