#!/usr/bin/env bats
# collect_sysinfo.sh: secrets planted in every place that it looks at are not in what it writes; the rest is.

# shellcheck disable=SC2001,SC2016,SC2030,SC2031

load helpers

setup() {
    cp -r "$SCRIPTS" "$BATS_TEST_TMPDIR/scripts"
    SCRIPTS=$BATS_TEST_TMPDIR/scripts
    sed -i 's/^ALL_S=.*/ALL_S=600/' "$SCRIPTS/collect_sysinfo.sh" # qemu, and busy machines
    export FERRYMAN_ETC=$BATS_TEST_TMPDIR/etc PLANTED=$BATS_TEST_TMPDIR/planted
    ROOT=$BATS_TEST_TMPDIR/root
    BUNDLE=$BATS_TEST_TMPDIR/bundle.tar.gz
    mkdir -p "$FERRYMAN_ETC"/{ferryman,mosquitto/conf.d,mosquitto/ferryman,wpa_supplicant,netplan,NetworkManager/system-connections} "$ROOT/update" "$ROOT/.ssh"
    echo 'PRETTY_NAME="a system"' >"$FERRYMAN_ETC/os-release"
    : >"$PLANTED"
    for name in journalctl dmesg systemctl timedatectl vcgencmd chronyc ferryman; do
        fake "$name" <<'END'
#!/bin/sh
echo "this is $(basename "$0")"
cat "$PLANTED"
END
    done
}

collect() {
    expect 0 "$SCRIPTS/collect_sysinfo.sh" --output "$BUNDLE" --root "$ROOT" --command "$BATS_TEST_TMPDIR/bin/ferryman"
    mkdir -p "$BATS_TEST_TMPDIR/out"
    tar -C "$BATS_TEST_TMPDIR/out" --strip-components=1 -xzf "$BUNDLE"
}

bundle_has() {
    grep -rqF -- "$1" "$BATS_TEST_TMPDIR/out" || {
        echo "not in the bundle: $1"
        return 1
    }
}

bundle_has_not() {
    if grep -rF -- "$1" "$BATS_TEST_TMPDIR/out"; then
        echo "that is in the bundle: $1"
        return 1
    fi
}

@test "secrets of every kind, in every place, are not in it" {
    key=$(openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 2>/dev/null)
    body=$(grep -v -- ----- <<<"$key")
    openssl req -x509 -new -key <(echo "$key") -subj /CN=planted -days 1 -out "$BATS_TEST_TMPDIR/pem" 2>/dev/null
    {
        echo "in words: broker mqtt://planted-user:planted-urlpw@hub.lan:1883?qos=1 refused"
        echo 'odd: mqtts://planted-user:planted-a@b/odd@hub.lan and more'
        echo '{"password": "planted json \" pw", "token": "planted-json-token", "kept": "kept-by-json"}'
        echo "FERRYMAN_CA_PASSPHRASE=planted passphrase"
        echo "mosquitto_pub -h hub -u planted-user -P planted-flagpw -t x"
        echo "curl --user planted-user:planted-curlpw http://hub.lan"
        echo "Authorization: Basic cGxhbnRlZC11c2VyOnBsYW50ZWQ="
        echo "psk=00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
        echo "jwt eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJwbGFudGVkIjoxMjM0NTY3ODkwMTIzfQ.c2lnbmF0dXJlUGxhbnRlZDEyMzQ1Njc4OTA"
        echo "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPlantedPlantedPlanted1 someone@somewhere"
        echo "it said planted-envpw, alone in a sentence"
        echo "and planted-wifipw too"
        # A key in each of its forms: whole, its beginning cut off, in one line as JSON has it, its lines in a journal.
        tail -n +5 <<<"$key"
        echo "$key"
        echo "$key" | sed 's/^/2026-01-01T00:00:00 host ferryman[1]: /'
        echo "{\"pem\": \"$(sed ':a;N;$!ba;s/\n/\\n/g' <<<"$key")\"}"
        tr -d '\n' <<<"$body" && echo
        cat "$BATS_TEST_TMPDIR/pem"
        echo "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 is kept"
    } >"$PLANTED"
    printf 'FERRYMAN_DEVICE=kept-device\nFERRYMAN_BROKER=mqtt://me:planted-brokerpw@kept-hub\nPGPASSWORD=planted-envpw\nANYTHING="planted any"\n' >"$FERRYMAN_ETC/ferryman/agent.env"
    printf 'network={\n  ssid="planted-ssid"\n  psk="planted-wifipw"\n}\n' >"$FERRYMAN_ETC/wpa_supplicant/wpa_supplicant.conf"
    printf '[wifi-security]\npsk=planted-nmpsk\n' >"$FERRYMAN_ETC/NetworkManager/system-connections/home.nmconnection"
    printf 'wifis:\n  wlan0:\n    access-points:\n      x:\n        password: "planted-netplan"\n' >"$FERRYMAN_ETC/netplan/50.yaml"
    printf 'listener 1883 kept-bind\nremote_password planted two words\nbridge_psk c0ffee\n' >"$FERRYMAN_ETC/mosquitto/conf.d/bridge.conf"
    for place in "$ROOT/state.json" "$ROOT/update/desired.json" "$ROOT/update/reported.json" "$ROOT/.ssh/authorized_keys" \
        "$FERRYMAN_ETC/mosquitto/mosquitto.conf" "$FERRYMAN_ETC/mosquitto/ferryman/mosquitto.conf" "$FERRYMAN_ETC/resolv.conf"; do
        cat "$PLANTED" >>"$place"
    done
    grep -v "kept\|someone" "$PLANTED" >>"$FERRYMAN_ETC/ferryman/agent.env"

    collect

    pem=$(grep -v -- ----- "$BATS_TEST_TMPDIR/pem")
    {
        printf '%s\n' planted c0ffee 00112233445566778899aabbccddeeff cGxhbnRlZC11c2VyOnBsYW50ZWQ eyJ IPlantedPlanted "PRIVATE KEY"
        for line in $body $pem; do # the last line of a body may be short, and is not in it either
            printf '%s\n' "$line"
            [ ${#line} -lt 64 ] || printf '%s\n' "${line:20:24}"
        done
    } >"$BATS_TEST_TMPDIR/secrets"
    [ "$(wc -l <"$BATS_TEST_TMPDIR/secrets")" -gt 50 ]
    ! grep -rFf "$BATS_TEST_TMPDIR/secrets" "$BATS_TEST_TMPDIR/out" || return 1
    for kept in kept-device kept-hub kept-by-json kept-bind someone@somewhere 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08; do
        bundle_has "$kept"
    done
    for name in journalctl dmesg systemctl ferryman vcgencmd; do
        bundle_has "this is $name"
    done
}

# bats test_tags=arch
@test "of settings only what is known to be harmless is told, and the rest goes from journals too" {
    cat >"$FERRYMAN_ETC/ferryman/agent.env" <<'END'
FERRYMAN_DEVICE=kept-device
FERRYMAN_BROKER=mqtt://user:it'sS3cretPw@kept-hub
FERRYMAN_MQTT_PW=tinypw99
FERRYMAN_PIN=424242
FERRYMAN_URL2=mqtt://u:p<a>ss9@hub
PLAIN="multi \
secretline2"
END
    mkdir -p "$FERRYMAN_ETC/systemd/system/ferryman-agent.service.d"
    printf '[Service]\nEnvironment="MQTT_PW=dropinpw1" X=xvalue1\n' >"$FERRYMAN_ETC/systemd/system/ferryman-agent.service.d/x.conf"
    printf '%s\n' "it'sS3cretPw" tinypw99 424242 'p<a>ss9' secretline2 dropinpw1 xvalue1 >"$PLANTED"
    collect
    ! grep -rFf "$PLANTED" "$BATS_TEST_TMPDIR/out" || return 1
    for kept in FERRYMAN_DEVICE=kept-device @kept-hub FERRYMAN_PIN= MQTT_PW= "this is journalctl"; do bundle_has "$kept"; done
}

@test "what its owner put in the root folder is read as its owner, and shows no escapes" {
    needs_root
    chmod 755 "$BATS_TEST_TMPDIR" "$(dirname "$BATS_TEST_TMPDIR")" "$BATS_RUN_TMPDIR"
    echo planted-of-root >"$BATS_TEST_TMPDIR/secret"
    chmod 600 "$BATS_TEST_TMPDIR/secret"
    for name in state.json update/desired.json update/reported.json .ssh/authorized_keys; do ln -s "$BATS_TEST_TMPDIR/secret" "$ROOT/$name"; done
    touch "$ROOT/$(printf '\033[31mred\nfake line')"
    chown -R daemon "$ROOT"
    collect
    bundle_has_not planted-of-root
    bundle_has_not $'\e'
    bundle_has 'red\nfake\ line'
    grep -q 'Permission denied' "$BATS_TEST_TMPDIR/out/slots.txt" "$BATS_TEST_TMPDIR/out/ssh.txt"
}

@test "it is its owner's alone, one folder, and there is nothing left beside it" {
    (umask 000 && collect)
    [ "$(stat -c %a "$BUNDLE")" = 600 ]
    run tar -tzf "$BUNDLE"
    ! grep -v '^ferryman-sysinfo-[^/]*/[a-z-]*\(\.txt\)\?$' <<<"$output" || false
    [ "$(find "$BATS_TEST_TMPDIR" -maxdepth 1 -name 'bundle*' | wc -l)" -eq 1 ]
}

@test "it is never written over another file" {
    echo mine >"$BUNDLE"
    expect 1 "$SCRIPTS/collect_sysinfo.sh" --output "$BUNDLE"
    says "is there already"
    [ "$(cat "$BUNDLE")" = mine ]
    expect 1 "$SCRIPTS/collect_sysinfo.sh" --output "$BATS_TEST_TMPDIR/no/such"
    says "there is no folder"
}

@test "a link that lies where it is written first is not followed" {
    echo precious >"$BATS_TEST_TMPDIR/victim"
    ln -s "$BATS_TEST_TMPDIR/victim" "$BUNDLE.part"
    collect
    [ "$(cat "$BATS_TEST_TMPDIR/victim")" = precious ]
    [ ! -L "$BUNDLE" ]
    [ "$(stat -c %a "$BUNDLE")" = 600 ]
}

@test "what is missing, fails or hangs is told in it" {
    rm "$BATS_TEST_TMPDIR/bin/ferryman"
    fake ferryman <<<'#!/bin/sh
echo "it broke" >&2
exit 3'
    fake vcgencmd <<<'#!/bin/sh
exec sleep 100'
    PATH=$BATS_TEST_TMPDIR/bin:/usr/bin:/bin
    rm "$BATS_TEST_TMPDIR/bin/chronyc"
    has_chronyc=$(command -v chronyc || :)
    sed -i 's/^PART_S=.*/PART_S=2/' "$SCRIPTS/collect_sysinfo.sh"
    collect
    bundle_has "it broke"
    bundle_has "[exit code 3]"
    bundle_has "[ended: it took more than 2 s]"
    [ -n "$has_chronyc" ] || bundle_has "[not here: chronyc is not installed]"
}

@test "once the time is up the rest is left out, and told" {
    sed -i 's/^ALL_S=.*/ALL_S=-1/' "$SCRIPTS/collect_sysinfo.sh"
    collect
    bundle_has "[left out: no time was left]"
    bundle_has_not "this is "
}

@test "what never ends is cut, and all of it is small" {
    fake journalctl <<<'#!/bin/sh
exec yes "a line of a journal that has no end, with a number 12345"'
    fake dmesg <<<'#!/bin/sh
head -c 3000000 /dev/urandom | od -An -tx1'
    collect
    bundle_has "[cut: more than 4194304 bytes]"
    [ "$(stat -c %s "$BUNDLE")" -lt 20000000 ]
    [ "$(du -sb "$BATS_TEST_TMPDIR/out" | cut -f1)" -lt 20000000 ]
}

@test "without the program that takes secrets out nothing is told" {
    echo "planted-anything" >"$PLANTED"
    for program in redact settings; do
        mv "$SCRIPTS/$program.awk" "$BATS_TEST_TMPDIR"
        collect
        bundle_has_not planted
        bundle_has "could not be searched for secrets"
        mv "$BATS_TEST_TMPDIR/$program.awk" "$SCRIPTS"
        rm -r "$BUNDLE" "$BATS_TEST_TMPDIR/out"
    done
}

@test "a dry run writes nothing" {
    before=$(tree "$BATS_TEST_TMPDIR")
    expect 0 "$SCRIPTS/collect_sysinfo.sh" --dry-run --output "$BUNDLE" --root "$ROOT"
    says "would collect: outbox.txt"
    [ "$(tree "$BATS_TEST_TMPDIR")" = "$before" ]
}
