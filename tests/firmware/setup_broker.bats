#!/usr/bin/env bats
# setup_broker.sh with the real mosquitto, in a root of its own. FERRYMAN_TEST_BROKER is what `ferryman ca broker` wrote,
# FERRYMAN_TEST_BROKER_2 the same after a change; beside each a client.pem.

# shellcheck disable=SC2016,SC2030,SC2031

load helpers

LINK=/etc/mosquitto/ferryman-broker
DROP_IN=/etc/systemd/system/mosquitto.service.d/ferryman.conf

setup() {
    SETUP=$SCRIPTS/setup_broker.sh
    [ -n "${FERRYMAN_TEST_ROOT:-}" ] || return 0
    PATH=$PATH:/usr/sbin
    export PROCESS=$BATS_TEST_TMPDIR/pid TOLD=$BATS_TEST_TMPDIR/told
    mkdir -p /run/systemd/system # as where systemd runs
    # What systemd would do with the unit and the drop-in.
    fake systemctl <<'END'
#!/bin/sh
echo "$*" >>"$TOLD"
command=$(sed -n 's/^ExecStart=\(.\)/\1/p' /lib/systemd/system/mosquitto.service /etc/systemd/system/mosquitto.service.d/*.conf 2>/dev/null | tail -n 1)
case $* in
"restart mosquitto")
    if [ -e "$PROCESS" ]; then kill "$(cat "$PROCESS")" && while kill -0 "$(cat "$PROCESS")"; do sleep 0.05; done; fi 2>/dev/null
    rm -f "$PROCESS"
    $command >>"$TOLD.log" 2>&1 3>&- &
    echo $! >"$PROCESS"
    sleep 0.5
    kill -0 $!
    ;;
*is-active*) [ -e "$PROCESS" ] && kill -0 "$(cat "$PROCESS")" 2>/dev/null ;;
esac
END
    install -d -o mosquitto /var/log/mosquitto /run/mosquitto
}

teardown() {
    [ -n "${FERRYMAN_TEST_ROOT:-}" ] || return 0
    "$SETUP" --uninstall
    [ ! -e "$PROCESS" ] || kill "$(cat "$PROCESS")" || :
    rm -rf /run/systemd/system /var/lib/mosquitto/ferryman
}

# speaks FOLDER PORT [COMMON NAME OF THE CLIENT]: the port takes the client's certificate, and none without one.
takes_client() {
    timeout 60 openssl s_client -connect "127.0.0.1:$2" -CAfile "$1/devices.pem" -verify_return_error -cert "$1/client.pem" -tls1_2 </dev/null
}

restarts() { grep -c '^restart' "$TOLD" || :; }

hashed() {
    local file=$BATS_TEST_TMPDIR/passwords
    rm -f "$file"
    touch "$file"
    for name; do mosquitto_passwd -b "$file" "$name" "of-$name"; done
    echo "$file"
}

# logs_in NAME PASSWORD PORT: the return code of MQTT 3.1.1's CONNACK: 0 taken, 5 not authorised.
logs_in() {
    python3 - "$@" <<'END'
import socket, sys
name, password, port = sys.argv[1].encode(), sys.argv[2].encode(), int(sys.argv[3])
text = lambda value: len(value).to_bytes(2, "big") + value
body = text(b"MQTT") + b"\x04\xc2\x00\x3c" + text(b"x") + text(name) + text(password)
with socket.create_connection(("127.0.0.1", port), 60) as link:
    link.sendall(b"\x10" + bytes([len(body)]) + body)
    print(link.recv(4)[3])
END
}

@test "wrong usage" {
    for wrong in "" "a b" "a --uninstall" "--local x --port y" "a --host z" "--local"; do
        # shellcheck disable=SC2086 # words
        expect 2 "$SETUP" $wrong
        says "--help"
    done
    echo 'hub:$7$x' >"$BATS_TEST_TMPDIR/names"
    for wrong in "--port 0" "--port 99999" "--port 65536" "--port 01883" "--port 18446744073709553499" "--port -1" "--host h.b" "--host a/b" "--host ."; do
        # shellcheck disable=SC2086 # words
        expect 2 "$SETUP" --local "$BATS_TEST_TMPDIR/names" $wrong --dry-run
        says "${wrong% *}"
    done
    expect 1 "$SETUP" /no/such/folder --dry-run
    says "ferryman ca broker"
    expect 1 "$SETUP" --local /no/such/file --dry-run
    says "mosquitto_passwd"
}

# bats test_tags=arch
@test "in a root: certificates: it serves, and once more changes nothing" {
    needs_root_of_its_own
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER"
    says "tried: mosquitto serves"
    [ "$(restarts)" = 1 ]
    run takes_client "$FERRYMAN_TEST_BROKER" "$(sed -n 's/^listener \([0-9]*\).*/\1/p' $LINK/mosquitto.conf | tail -n 1)"
    says "Verify return code: 0 (ok)"
    says_not "alert"
    [ "$(stat -c '%U:%G %a' $LINK/server.pem)" = "root:mosquitto 640" ]
    ! grep -r "$FERRYMAN_TEST_BROKER" $LINK/ || return 1
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER"
    says "it serves already"
    [ "$(restarts)" = 1 ]
}

@test "in a root: it serves on a machine that is slow with TLS, too" {
    needs_root_of_its_own
    fake openssl <<'END'
#!/bin/sh
[ "$1" != s_client ] || sleep 6
exec /usr/bin/openssl "$@"
END
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER"
    says "tried: mosquitto serves"
}

@test "in a root: a change is taken, and the one before is kept" {
    needs_root_of_its_own
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER"
    expect 0 systemd-analyze verify --man=no mosquitto.service
    says_not "$DROP_IN"
    first=$(readlink $LINK)
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER_2"
    [ "$(restarts)" = 2 ]
    [ "$(readlink $LINK)" != "$first" ]
    [ -e "/etc/mosquitto/$first/acl" ] # the one before is kept
    diff "$FERRYMAN_TEST_BROKER_2/acl" $LINK/acl
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER"
    [ "$(readlink $LINK)" = "$first" ]
}

@test "in a root: a broker that was killed is started again" {
    needs_root_of_its_own
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER"
    kill -9 "$(cat "$PROCESS")"
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER"
    [ "$(restarts)" = 2 ]
}

@test "in a root: what mosquitto does not take is found before anything is changed" {
    needs_root_of_its_own
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER"
    before=$(tree /etc/mosquitto /etc/systemd)
    for bad in "rm acl" "sed -i s/^listener.[0-9]*/listener\ 99999/ mosquitto.conf" "sed -i s/^listener.*// mosquitto.conf" "echo nonsense >>mosquitto.conf" "echo nonsense >>acl" "echo >server.pem" "cp client.pem devices.crl" "sed -i /PRIVATE/,/PRIVATE/d server.pem"; do
        rm -rf "$BATS_TEST_TMPDIR/bad"
        cp -r "$FERRYMAN_TEST_BROKER" "$BATS_TEST_TMPDIR/bad"
        (cd "$BATS_TEST_TMPDIR/bad" && eval "$bad")
        expect 1 "$SETUP" "$BATS_TEST_TMPDIR/bad"
        diff <(echo "$before") <(tree /etc/mosquitto /etc/systemd)
    done
    [ "$(restarts)" = 1 ]
    kill -0 "$(cat "$PROCESS")"
}

@test "in a root: killed at any moment, the old or the new counts, whole, and once more brings the new" {
    needs_root_of_its_own
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER"
    from=$FERRYMAN_TEST_BROKER to=$FERRYMAN_TEST_BROKER_2
    for after_s in 0.2 0.5 0.8 1.1 1.5; do
        timeout --signal=KILL "$after_s" "$SETUP" "$to" 3>&- || :
        cmp "$LINK/acl" "$from/acl" || cmp "$LINK/acl" "$to/acl"
        [ "$(find -L $LINK -type f | wc -l)" -eq 7 ]
        expect 0 "$SETUP" "$to"
        cmp "$LINK/acl" "$to/acl"
        swap=$from from=$to to=$swap
    done
}

@test "in a root: a configuration that does not come up gives way to the one before" {
    needs_root_of_its_own
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER"
    first=$(readlink $LINK)
    sed -i 's/^UP_S=.*/UP_S=5/; s/^ASK_S=.*/ASK_S=5/' "$SCRIPTS/setup_broker.sh"
    cp -r "$FERRYMAN_TEST_BROKER_2" "$BATS_TEST_TMPDIR/taken"
    python3 -c 'import socket, time; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", 21884)); s.listen(); time.sleep(100)' 3>&- &
    taken=$!
    sed -i '0,/^listener [0-9]*/s//listener 21884/' "$BATS_TEST_TMPDIR/taken/mosquitto.conf"
    expect 1 "$SETUP" "$BATS_TEST_TMPDIR/taken"
    says "the one before serves again"
    [ "$(readlink $LINK)" = "$first" ]
    kill -0 "$(cat "$PROCESS")"
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER"
    says "it serves already"
    # The same where there was none before: the distribution's own serves again.
    expect 0 "$SETUP" --uninstall
    expect 1 "$SETUP" "$BATS_TEST_TMPDIR/taken"
    [ ! -e $LINK ]
    [ ! -e $DROP_IN ]
    kill -0 "$(cat "$PROCESS")"
    kill $taken
}

@test "in a root: passwords: names may log in, others not; again is no change" {
    needs_root_of_its_own
    names=$(hashed kitchen collector)
    expect 0 "$SETUP" --local "$names" --host collector --port 21885
    says "nothing is encrypted"
    [ "$(logs_in kitchen of-kitchen 21885)" = 0 ]
    [ "$(logs_in kitchen wrong 21885)" = 5 ]
    [ "$(logs_in attic of-attic 21885)" = 5 ]
    grep -A 1 '^user collector' $LINK/acl | grep 'topic readwrite ferryman/#'
    expect 0 "$SETUP" --local "$names" --host collector --port 21885
    says "it serves already"
    for other in attic kitche collecto; do
        expect 1 "$SETUP" --local "$names" --host "$other"
        says "has no $other"
    done
    echo "plain:password" >>"$names"
    expect 1 "$SETUP" --local "$names"
    says "line 3: expected what mosquitto_passwd writes"
    says_not "plain:password"
}

@test "in a root: uninstall leaves nothing but what the broker kept" {
    needs_root_of_its_own
    before=$(find /etc | sort)
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER"
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER_2"
    expect 0 "$SETUP" --uninstall
    says "left: /var/lib/mosquitto/ferryman"
    diff <(echo "$before") <(find /etc | sort)
    expect 0 "$SETUP" --uninstall
    says "nothing to remove"
}

@test "in a root: where systemd does not run it is for the next start" {
    needs_root_of_its_own
    rm -rf /run/systemd/system
    expect 0 "$SETUP" "$FERRYMAN_TEST_BROKER"
    says "at its next start mosquitto will serve ferryman; ports: "
    says_not "mosquitto serves ferryman"
    [ "$(restarts)" = 0 ]
    grep "ExecStart=/usr/sbin/mosquitto -c $LINK/mosquitto.conf" $DROP_IN
}
