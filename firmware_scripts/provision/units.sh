# shellcheck shell=sh
# shellcheck disable=SC2034,SC2153,SC2154 # the variables are provision.sh's
# A part of provision.sh: systemd's units, udev's rules, the announcement by mDNS, and the agent's start.

UDEV=/etc/udev/rules.d/59-ferryman.rules
AVAHI=/etc/avahi/services/ferryman.service
WAITS=$UNITS/ferryman-agent.service.d/enroll.conf

write_units() {
    make_folder "$SHARED" 755 root
    write_file "$SHARED/lib.sh" 644 root <"$here/lib.sh"
    write_file "$SHARED/check_time.sh" 755 root <"$here/check_time.sh"
    _changed=$CHANGED CHANGED=
    for _unit in ferryman-agent.service ferryman-agent-later.service; do
        write_file "$UNITS/$_unit" 644 root <"$here/$_unit"
    done
    if [ -n "$enroll" ]; then
        make_folder "${WAITS%/*}" 755 root
        write_file "$WAITS" 644 root <<END
# Not before this device has its identity; ferryman-enrolled.path starts the agent then.
[Unit]
ConditionPathExists=$HOME_OF/identity/identity.pem
END
        write_file "$UNITS/ferryman-enrolled.path" 644 root <"$here/ferryman-enrolled.path"
        _enable ferryman-enrolled.path
    fi
    units_changed=$CHANGED CHANGED=
    if [ -n "$units_changed" ] && systemd_runs; then run systemctl daemon-reload; fi
    _enable ferryman-agent.service
    if [ -n "$enroll" ] && systemd_runs; then systemctl is-active -q ferryman-enrolled.path || run systemctl start ferryman-enrolled.path; fi
    if [ -d "${UDEV%/*}" ]; then
        _before=$CHANGED CHANGED=
        write_file "$UDEV" 644 root <"$here/59-ferryman.rules"
        if [ -n "$CHANGED" ] && systemd_runs && has udevadm; then
            if ! { run udevadm control --reload && run udevadm trigger --action=change \
                --subsystem-match=powercap --subsystem-match=i2c-dev --sysname-match=vcio; }; then
                warn "udev does not answer: the rights on devices hold from the next start on"
            fi
        fi
        CHANGED=$_before$CHANGED
    fi
    if [ -d "${AVAHI%/*}" ]; then _announce; fi
    CHANGED=$_changed$units_changed$CHANGED
}

# Without systemd as process 1 (an image being built) the link is made all the same, for the next start.
_enable() {
    systemctl --root=/ is-enabled -q "$1" 2>/dev/null || run systemctl --root=/ enable -q "$1"
}

_announce() {
    _name=$(sed -n '/^FERRYMAN_DEVICE=/{s///;s/&/\&amp;/g;s/</\&lt;/g;p;}' "$SETTINGS/agent.env" 2>/dev/null | tr -d '"')
    write_file "$AVAHI" 644 root <<END
<?xml version="1.0" standalone="no"?>
<!DOCTYPE service-group SYSTEM "avahi-service.dtd">
<service-group>
  <name replace-wildcards="yes">ferryman on %h</name>
  <service>
    <type>_ferryman._tcp</type>
    <port>22</port>
    <txt-record>device=${_name:-$device}</txt-record>
  </service>
</service-group>
END
}

start_agent() {
    /bin/sh "$here/check_time.sh" || :
    if ! systemd_runs; then
        [ -z "$CHANGED" ] || say "systemd does not run here: the agent starts with the device"
        remove_old_venvs
        return 0
    fi
    if [ -z "$start" ]; then
        # An agent that runs may still run from the environment before.
        if [ -z "$switched" ] || ! systemctl is-active -q ferryman-agent; then remove_old_venvs; fi
        [ -z "$CHANGED" ] || say "the agent starts with the device"
        return 0
    fi
    if systemctl is-active -q ferryman-agent; then was_active=1; else was_active=; fi
    if [ -n "$CHANGED" ] || [ -z "$was_active" ]; then
        if [ -n "$enroll" ] && [ ! -e "$HOME_OF/identity/identity.pem" ]; then
            remove_old_venvs
            return 0
        fi
        # One that was given up after too many starts has another try.
        [ -n "$was_active" ] || run systemctl reset-failed ferryman-agent 2>/dev/null || :
        if ! run systemctl restart ferryman-agent; then
            if [ -n "$was_active" ] && [ -n "$switched" ] && [ -n "$before" ]; then
                _lead_to "$before"
                systemctl restart ferryman-agent || :
                die "the agent does not start from $venv: journalctl -u ferryman-agent says why. The one before is back"
            fi
            die "the agent does not start: journalctl -u ferryman-agent says why; mend it and run this again"
        fi
    fi
    remove_old_venvs
}
