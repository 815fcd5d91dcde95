# shellcheck shell=sh
# shellcheck disable=SC2034,SC2153,SC2154 # the variables are provision.sh's
# A part of provision.sh: user, folders, /etc/ferryman/agent.env, the root of updates.

check_settings() {
    [ -z "$device" ] || settings="FERRYMAN_DEVICE=$device
$settings"
    [ -z "$broker" ] || settings="FERRYMAN_BROKER=$broker
$settings"
    case $settings in
    *[\"\'\\]*) bad_usage "--set: no quotes and no backslashes; write those into $SETTINGS/agent.env yourself" ;;
    esac
    printf '%s' "$settings" | while IFS= read -r _line; do
        case ${_line%%=*} in
        '' | [0-9]* | *[!A-Za-z0-9_]* | "$_line") bad_usage "--set $_line: NAME=VALUE" ;;
        FERRYMAN_DEVICE)
            case ${_line#*=} in '' | *[!A-Za-z0-9_-]* | ?????????????????????????????????????????????????????????????????*)
                bad_usage "the device's name is 1 to 64 of A-Z a-z 0-9 _ -, not ${_line#*=}" ;;
            esac
            ;;
        FERRYMAN_BROKER)
            case ${_line#*=} in mqtt://?* | mqtts://?*) ;; *) bad_usage "the broker is mqtt://HOST[:PORT] or mqtts://..." ;; esac
            ;;
        esac
    done
    [ -z "$trust" ] || [ -f "$trust" ] || die "no file $trust: make it with ferryman keys root, and copy it here"
}

check_system() {
    has useradd || die "no useradd here: apt-get install passwd"
    has systemctl || die "no systemctl here: the agent is kept up by systemd"
    [ -n "$DRY_RUN" ] || for _folder in /opt /etc /var/lib; do
        [ -w "$_folder" ] || die "cannot write in $_folder: where the root is read-only, mount -o remount,rw / before, and ro after"
    done
    _owner=$(stat -c %U "$HOME_OF" 2>/dev/null || echo ferryman)
    case $_owner in
    ferryman | root) ;;
    *) die "$HOME_OF belongs to $_owner, and the agent runs as ferryman here: stop the agent, then chown -R ferryman:ferryman $HOME_OF (after useradd --system ferryman)" ;;
    esac
}

one_at_a_time() {
    [ -z "$DRY_RUN" ] || return 0
    make_folder "$VENVS" 755 root
    exec 9>>"$VENVS/lock"
    flock -n 9 || die "another provision.sh is at work here"
    # What one that was killed had begun to write.
    remove "$VENVS"/.ferryman.?????? "$SETTINGS"/.ferryman.?????? "$UNITS"/.ferryman.?????? "$UNITS"/*/.ferryman.?????? \
        "$SHARED"/.ferryman.?????? "${UDEV%/*}"/.ferryman.?????? "${AVAHI%/*}"/.ferryman.??????
}

# Groups by which devices are read, of those that this system has: i2c meters, the firmware's mailbox (/dev/vcio); and
# the journal, which the agent's unit keeps from the agent itself.
make_user() {
    getent passwd ferryman >/dev/null ||
        run useradd --system --user-group --home-dir "$HOME_OF" --no-create-home --shell /usr/sbin/nologin --password '*' \
            --comment "ferryman" ferryman
    for _group in i2c video ${journal:+systemd-journal}; do
        getent group "$_group" >/dev/null || continue
        case " $(id -nG ferryman 2>/dev/null) " in *" $_group "*) ;; *) run usermod -a -G "$_group" ferryman ;; esac
    done
}

make_folders() {
    [ "$(owner_and_mode "$HOME_OF")" = "ferryman:ferryman 750" ] || run install -d -m 750 -o ferryman -g ferryman "$HOME_OF"
    # shellcheck disable=SC2016 # of the shell that runs as ferryman
    [ -n "$DRY_RUN" ] || as_user ferryman sh -c 'rm -rf -- "$1"/*/.ferryman.?????? "$1"/.ssh/.ferryman.??????' sh "$HOME_OF" || :
    make_folder "$SETTINGS" 755 root
    make_folder "$VENVS" 755 root
}

# A line that an option names takes that value; everything else stays as it is, comments and order included.
write_settings() {
    _file=$SETTINGS/agent.env
    if [ -z "$device" ] && ! grep -qs '^FERRYMAN_DEVICE=' "$_file"; then
        # The host name without its domain, in characters that the agent takes.
        settings="FERRYMAN_DEVICE=$(uname -n | sed 's/[.].*//; s/[^A-Za-z0-9_-]/-/g; s/^$/device/')
$settings"
    fi
    # In no file before agent.env itself: a broker's URL may hold a password.
    _now=$(
        {
            if [ -e "$_file" ]; then cat "$_file"; else say "# Settings of the ferryman agent, read by its unit: docs/provisioning.md"; fi
        } | SETTINGS=$settings awk '
            function name(line) { return substr(line, 1, index(line, "=")) }
            BEGIN {
                count = split(ENVIRON["SETTINGS"], lines, "\n")
                for (i = 1; i <= count; i++) {
                    if (!(at = index(lines[i], "="))) continue
                    value = substr(lines[i], at + 1)
                    if (!(name(lines[i]) in set)) names[++named] = name(lines[i])
                    set[name(lines[i])] = value ~ /[^A-Za-z0-9_.\/:@%+,=?&-]/ ? "\"" value "\"" : value
                }
            }
            !(name($0) in set) { print; next }
            !done[name($0)]++ { print name($0) set[name($0)] }
            END { for (i = 1; i <= named; i++) if (!done[names[i]]) print names[i] set[names[i]] }'
    )
    write_file "$_file" 640 root:ferryman <<END
$_now
END
    if [ -n "$trust" ] && [ ! -e "$HOME_OF/trust/root.json" ]; then
        make_folder "$HOME_OF/trust" 755 ferryman
        write_file "$HOME_OF/trust/root.json" 644 ferryman <"$trust"
    fi
}
