#!/bin/sh
# setup_broker.sh FOLDER | --local PASSWORDS | --uninstall: this machine's mosquitto serves ferryman's devices and hosts.
#
#   FOLDER             what `ferryman ca broker` wrote: TLS, certificates on both sides, access rules. Again with the same
#                      FOLDER after `ferryman ca client` or `ca revoke`: what differs is taken, the broker restarted.
#   --local PASSWORDS  no certificates, for one closed network: a file of `mosquitto_passwd -c PASSWORDS NAME`, with each
#                      device's and each host's name. NOTHING IS ENCRYPTED: whoever can listen on that network
#                      reads passwords and telemetry, and can then do what that name may.
#   --host NAME        --local: this name is a host's (collector, operator), which may read and write everything below
#                      ferryman/; may be given more than once. Other names are devices', which have their own topics.
#   --port PORT        --local: where to listen (default: 1883)
#   --uninstall        the distribution's own configuration serves again; what the broker kept for clients stays in
#                      /var/lib/mosquitto/ferryman until you remove it
#   --dry-run          try the new configuration, say what would be done, and change nothing
#   --help, -h         this text
#
# The new configuration is first tried by a mosquitto of its own on other ports. Then one rename makes it the one that
# counts, mosquitto is restarted, and each port must answer, with TLS by the new certificate. Where one does not, the
# configuration before serves again. That one is kept: /etc/mosquitto/ferryman-broker is a link to ...-broker.a or .b.
#
# Exit codes: 0 it serves, or did already; 1 not, and what served before serves still; 2 wrong usage.
set -eu
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"
PATH=$PATH:/usr/sbin:/sbin

LINK=/etc/mosquitto/ferryman-broker
KEPT=/var/lib/mosquitto/ferryman
DROP_IN=/etc/systemd/system/mosquitto.service.d/ferryman.conf
DEVICE_WRITES='status telemetry reported response/+ csr live' # as devices/fleet/authority/acl.py, which a test compares
DEVICE_READS='request receipt desired certificate'
UP_S=30
ASK_S=20 # a slow or busy machine takes seconds for TLS

# ports CONF: where it listens, a line each.
ports() { sed -n 's/^listener \([0-9]*\).*/\1/p' "$1"; }

is_port() {
    case $1 in '' | 0* | *[!0-9]* | ??????*) return 1 ;; esac
    [ "$1" -le 65535 ]
}

fingerprint() { openssl x509 -noout -fingerprint -sha256 2>/dev/null; }

# answers CONF PORT: something accepts there; with TLS, by the certificate that CONF names.
answers() {
    to=$(sed -n "s/^listener $2 *//p" "$1")
    case $to in *:*) to=[$to] ;; esac
    to=${to:-127.0.0.1}:$2
    certificate=$(sed -n 's/^certfile //p' "$1" | head -n 1)
    if [ -n "$certificate" ]; then
        is=$(timeout "$ASK_S" openssl s_client -connect "$to" </dev/null 2>/dev/null | fingerprint) || return 1
        [ "$is" = "$(fingerprint <"$certificate")" ]
    else
        timeout "$ASK_S" openssl s_client -connect "$to" </dev/null 2>&1 | grep -q CONNECTED
    fi
}

# Seconds since the machine started: no clock that may be set meanwhile.
up_s() { cut -d. -f1 /proc/uptime; }

# all_answer CONF [PROCESS]: within UP_S each, or until that process ends.
all_answer() {
    for port in $(ports "$1"); do
        end=$(($(up_s) + UP_S))
        until answers "$1" "$port"; do
            if [ "$(up_s)" -ge "$end" ] || [ ! -e "/proc/${2:-$$}/exe" ]; then return 1; fi # one that ended has none
            sleep 0.25
        done
    done
}

# Into $work/new, with the paths that it will have: what `ferryman ca broker` wrote.
take_folder() {
    for file in mosquitto.conf acl server.pem devices.pem devices.crl hosts.pem hosts.crl; do
        [ -f "$1/$file" ] || die "$1 has no $file; name a folder that \`ferryman ca broker\` wrote"
        cp "$1/$file" "$work/new/$file"
    done
    was=$(sed -n 's,^certfile \(.*\)/server.pem$,\1,p' "$1/mosquitto.conf" | head -n 1)
    [ -n "$was" ] || die "$1/mosquitto.conf names no server.pem; write it again with \`ferryman ca broker\`"
    move_paths "$was" "$LINK" <"$1/mosquitto.conf" >"$work/new/mosquitto.conf"
    sed -i "s,^persistence_location .*,persistence_location $KEPT/," "$work/new/mosquitto.conf"
}

# move_paths FROM TO <configuration
move_paths() {
    awk -v from="$1/" -v to="$2/" '{
        if (index($2, from) == 1) print $1 " " to substr($2, length(from) + 1)
        else print
    }'
}

# The same for a network without certificates.
write_local() {
    bad=$(grep -nv '^[A-Za-z0-9_-]\{1,64\}:\$[67]\$' "$1" | head -n 1 | cut -d: -f1) || :
    [ -z "$bad" ] || die "$1, line $bad: expected what mosquitto_passwd writes: mosquitto_passwd $1 NAME"
    [ -s "$1" ] || die "$1 names nobody: mosquitto_passwd $1 NAME"
    cp "$1" "$work/new/passwords"
    {
        for leaf in $DEVICE_WRITES; do say "pattern write ferryman/v1/%u/$leaf"; done
        for leaf in $DEVICE_READS; do say "pattern read ferryman/v1/%u/$leaf"; done
        for host in $hosts; do
            cut -d: -f1 "$1" | grep -qxF -- "$host" || die "$1 has no $host: mosquitto_passwd $1 $host"
            printf '\nuser %s\ntopic readwrite ferryman/#\n' "$host"
        done
    } >"$work/new/acl"
    {
        say "# Written by setup_broker.sh --local: nothing is encrypted."
        say "per_listener_settings true"
        cat "$here/mosquitto-ferryman.conf"
        say "persistence true"
        say "persistence_location $KEPT/"
        say "autosave_interval 60"
        say "log_dest stderr"
        say "listener $port"
        say "allow_anonymous false"
        say "password_file $LINK/passwords"
        say "acl_file $LINK/acl"
    } >"$work/new/mosquitto.conf"
}

# Start a mosquitto with the new files on other ports, as the user that it becomes; it must answer.
try_new() {
    cp -a "$work/new" "$work/tried"
    for again in 1 2 3 4 5; do
        next=$((20000 + ($$ + again * 977) % 12000))
        move_paths "$LINK" "$work/tried" <"$work/new/mosquitto.conf" |
            awk -v next_port="$next" '
                /^listener / { print "listener " next_port++ " 127.0.0.1"; next }
                /^persistence/ || /^autosave/ { next }
                { print }' >"$work/tried/mosquitto.conf"
        timeout 120 mosquitto -c "$work/tried/mosquitto.conf" >"$work/log" 2>&1 & # it ends though this script be killed
        tried=$!
        good=
        if all_answer "$work/tried/mosquitto.conf" "$tried"; then good=1; fi
        kill "$tried" 2>/dev/null || :
        wait "$tried" 2>/dev/null || :
        tried=
        if [ -n "$good" ]; then return 0; fi
        grep -q 'already in use' "$work/log" || break
    done
    cat "$work/log" >&2
    die "mosquitto does not serve with the new configuration (above); nothing was changed"
}

drop_in() {
    cat <<END
# Written by setup_broker.sh; \`setup_broker.sh --uninstall\` removes it.
[Service]
ExecStart=
ExecStart=/usr/sbin/mosquitto -c $LINK/mosquitto.conf
# On SIGHUP mosquitto 2.0.11 may crash later (docs/telemetry/security.md): restart it instead.
ExecReload=
Restart=always
RestartSec=2
END
}

restart() {
    if ! systemd_runs; then return 0; fi
    systemctl daemon-reload
    systemctl restart mosquitto
}

# point_to FOLDER: one rename.
point_to() {
    ln -sfn "$(basename "$1")" "$LINK.new"
    mv -fT "$LINK.new" "$LINK"
    sync /etc/mosquitto
}

install_new() {
    case $(readlink "$LINK" 2>/dev/null) in
    *.a) before=$LINK.a slot=$LINK.b ;;
    *.b) before=$LINK.b slot=$LINK.a ;;
    *) before='' slot=$LINK.a ;;
    esac
    if [ -e "$LINK" ] && [ -z "$before" ]; then die "$LINK is not this script's; move it away"; fi
    rm -rf "$slot"
    cp -a "$work/new" "$slot"
    sync "$slot"/* "$slot"
    install -d -o mosquitto -g mosquitto -m 700 "$KEPT"
    drop_in_before=$([ ! -e "$DROP_IN" ] || echo 1)
    install -d -m 755 "$(dirname "$DROP_IN")"
    point_to "$slot"
    write_file "$DROP_IN" 644 root <"$work/drop-in"
    systemctl --quiet enable mosquitto 2>/dev/null || warn "systemctl cannot enable mosquitto; see that it starts at boot"
    if ! systemd_runs; then return 0; fi
    if restart && all_answer "$LINK/mosquitto.conf"; then return 0; fi
    warn "mosquitto does not answer; going back"
    journalctl --no-pager --lines=20 -u mosquitto >&2 || :
    if [ -n "$before" ]; then point_to "$before"; else rm -f "$LINK"; fi
    if [ -z "$drop_in_before" ]; then rm -f "$DROP_IN"; fi
    restart || die "the configuration before does not start either: see journalctl -u mosquitto"
    die "the new configuration did not serve (above), and the one before serves again"
}

uninstall() {
    if [ ! -e "$DROP_IN" ] && [ ! -L "$LINK" ]; then
        say "nothing to remove"
        return 0
    fi
    remove "$DROP_IN" "$LINK" "$LINK.a" "$LINK.b" "$LINK.new"
    if [ -z "$DRY_RUN" ]; then rmdir "$(dirname "$DROP_IN")" 2>/dev/null || :; fi # where others have nothing in it
    if systemd_runs; then
        run systemctl daemon-reload
        run systemctl restart mosquitto || die "mosquitto does not start with its own configuration: see journalctl -u mosquitto"
    fi
    if [ -d "$KEPT" ]; then say "left: $KEPT, what the broker kept for clients"; fi
}

folder='' passwords='' hosts='' port='' removing=
while [ $# -gt 0 ]; do
    case $1 in
    --local | --host | --port)
        need_value "$@"
        case $1 in
        --local) passwords=$2 ;;
        --host)
            case $2 in *[!A-Za-z0-9_-]*) bad_usage "--host $2: a name of A-Z a-z 0-9 _ -" ;; esac
            hosts="$hosts $2"
            ;;
        --port) port=$2 ;;
        esac
        shift
        ;;
    --uninstall) removing=1 ;;
    -*) common_option "$1" || bad_usage "no such option: $1" ;;
    *)
        [ -z "$folder" ] || bad_usage "one folder, and not $1 too"
        folder=$1
        ;;
    esac
    shift
done
case ${folder:+f}${passwords:+p}${removing:+r} in
f | p | r) ;;
*) bad_usage "name one of FOLDER, --local PASSWORDS and --uninstall" ;;
esac
[ -z "$port" ] || is_port "$port" || bad_usage "--port $port: a number from 1 to 65535"
[ -n "$passwords" ] || [ -z "$hosts$port" ] || bad_usage "--host and --port are for --local"
port=${port:-1883}
need_root

if [ -n "$removing" ]; then
    uninstall
    exit 0
fi
[ -z "$folder" ] || [ -d "$folder" ] || die "there is no folder $folder: ferryman ca broker CA -o $folder"
[ -z "$passwords" ] || [ -f "$passwords" ] || die "there is no file $passwords: mosquitto_passwd -c $passwords NAME"
packages=
has mosquitto || packages=mosquitto
has openssl || packages="$packages openssl"
if [ -n "$packages" ]; then
    # shellcheck disable=SC2086 # words
    run apt-get install -y --no-install-recommends $packages
    if [ -n "$DRY_RUN" ]; then exit 0; fi
fi
if [ "$(id -u)" -ne 0 ]; then
    say "would try the new configuration, and take it where it serves; as root this is tried in a dry run too"
    exit 0
fi

umask 027
tried=
work=$(mktemp -d)
trap '[ -z "$tried" ] || kill "$tried" 2>/dev/null || :; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP
mkdir "$work/new"
if [ -n "$folder" ]; then take_folder "$folder"; else write_local "$passwords"; fi
listens=$(ports "$work/new/mosquitto.conf")
[ -n "$listens" ] || die "the new configuration listens nowhere: mosquitto.conf has no line \`listener PORT\`"
for port in $listens; do is_port "$port" || die "the new configuration listens on $port, which is no port: 1 to 65535"; done
drop_in >"$work/drop-in"
chgrp -R mosquitto "$work" # it becomes the user of that name before it reads them
chmod 750 "$work" "$work/new"
chmod 640 "$work"/new/*

if diff -r "$work/new" "$LINK/" >/dev/null 2>&1 && cmp -s "$work/drop-in" "$DROP_IN" &&
    { ! systemd_runs || { systemctl --quiet is-active mosquitto && all_answer "$LINK/mosquitto.conf"; }; }; then
    say "it serves already; nothing was changed"
    exit 0
fi
try_new
say "tried: mosquitto serves with the new configuration"
if [ -n "$DRY_RUN" ]; then
    say "would write: $LINK, $DROP_IN"
    say "would run: systemctl daemon-reload, enable and restart mosquitto, connect to ports $(say "$listens" | paste -sd" ")"
    exit 0
fi
install_new
serves="mosquitto serves"
systemd_runs || serves="systemd does not run here: at its next start mosquitto will serve"
say "$serves ferryman; ports: $(say "$listens" | paste -sd" ")"
[ -z "$passwords" ] || warn "nothing is encrypted: only for a network that nobody else can listen on"
