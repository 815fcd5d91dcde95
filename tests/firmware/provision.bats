#!/usr/bin/env bats
# provision.sh in a root of its own, with a Python whose environments hold a ferryman that says its version and no more:
# the real one is in tests/integration/test_provision.py.

# Scripts in single quotes are run by what they are given to; each test is a shell of its own.
# shellcheck disable=SC2016,SC2030,SC2031

load helpers

setup() {
    [ "$BATS_TEST_DESCRIPTION" = "wrong usage" ] || needs_root_of_its_own
    export BATS_TEST_TMPDIR
    chmod -R a+rwX "$BATS_RUN_TMPDIR" # some of it runs as ferryman
    PROVISION=$SCRIPTS/provision.sh
    WHEEL=$BATS_TEST_TMPDIR/ferryman-1-py3-none-any.whl
    make_wheel one
    ssh-keygen -q -t ed25519 -N '' -C pusher -f "$BATS_TEST_TMPDIR/key"
    printf -- '-----BEGIN PRIVATE KEY-----\nx\n-----BEGIN CERTIFICATE-----\ny\n' >"$BATS_TEST_TMPDIR/identity.pem"
    fake small-python <<'END'
#!/bin/sh
case $1$2 in
-mvenv)
    mkdir -p "$3/bin"
    cat >"$3/bin/pip" <<'PIP'
#!/bin/sh
[ ! -e "$BATS_TEST_TMPDIR/pip-says" ] || { cat "$BATS_TEST_TMPDIR/pip-says"; exit 1; }
for last; do :; done
printf '#!/bin/sh\necho "%s"\n[ ! -e "$BATS_TEST_TMPDIR/broken" ]\n' "$last" >"${0%/pip}/ferryman"
chmod +x "${0%/pip}/ferryman"
site=${0%/bin/pip}/lib/python3.11/site-packages
mkdir -p "$site/ai_edge_litert" "$site/numpy/ma/tests/__pycache__"
touch "$site/ai_edge_litert/libLiteRtWebGpuAccelerator.so" "$site/ai_edge_litert/libLiteRt.so" "$site/numpy/ma/test_kept.py" \
    "$site/numpy/ma/tests/_used.py" "$site/numpy/ma/tests/test_core.py" "$site/numpy/ma/tests/__pycache__/test_core.pyc"
PIP
    chmod +x "$3/bin/pip"
    ;;
*) exec python3 "$@" ;;
esac
END
}

teardown() {
    [ "$BATS_TEST_DESCRIPTION" != "wrong usage" ] && [ -n "${FERRYMAN_TEST_ROOT:-}" ] || return 0
    umount /opt/ferryman.d 2>/dev/null || :
    PATH=/usr/sbin:/usr/bin:/sbin:/bin
    "$PROVISION" --uninstall --purge
}

# make_wheel TEXT: what provision.sh reads of one, its extras, and TEXT, by which it differs from another.
make_wheel() {
    python3 -c 'import sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w") as wheel:
    wheel.writestr("ferryman-1.dist-info/METADATA", "Name: ferryman\n" + "".join(
        f"Provides-Extra: {name}\n" for name in ("litert", "tflite", "ota", "enroll", "drift")))
    wheel.writestr("text", sys.argv[2])' "$WHEEL" "$1"
}

provision() { "$PROVISION" --python small-python --wheel "$WHEEL" "$@"; }

all() { provision --device kitchen --broker mqtts://hub --authorize "$BATS_TEST_TMPDIR/key.pub" --identity "$BATS_TEST_TMPDIR/identity.pem" "$@"; }

PLACES="/opt /etc /var/lib/ferryman /usr/local"

# What the device holds, without times: owners, modes, links, contents of all but what is named by chance.
state() {
    # shellcheck disable=SC2086 # words
    find $PLACES ! -name 'shadow*' ! -name '*-' ! -name '.pwd.lock' ! -path '/etc/ssl/*' -printf '%p %y %m %u:%g %l\n' | sort
    find /opt /etc/ferryman /etc/systemd/system /etc/udev/rules.d /var/lib/ferryman /usr/local -type f -exec cksum {} + | sort
    getent passwd ferryman || :
    id ferryman || :
}

@test "a device from nothing, and again nothing to do" {
    expect 0 all
    [ "$(readlink -f /opt/ferryman)" != /opt/ferryman ]
    expect 0 /opt/ferryman/bin/ferryman --version
    says "[litert]"
    [ "$(stat -c '%U:%G %a' /var/lib/ferryman)" = "ferryman:ferryman 750" ]
    [ "$(stat -c '%U:%G %a' /var/lib/ferryman/identity/identity.pem)" = "ferryman:ferryman 600" ]
    [ "$(stat -c '%U:%G %a' /etc/ferryman/agent.env)" = "root:ferryman 640" ]
    grep -qx FERRYMAN_DEVICE=kitchen /etc/ferryman/agent.env
    grep -qx FERRYMAN_BROKER=mqtts://hub /etc/ferryman/agent.env
    grep -q '^restrict ssh-ed25519 .* pusher$' /var/lib/ferryman/.ssh/authorized_keys
    [ -L /etc/systemd/system/multi-user.target.wants/ferryman-agent.service ]
    [ -e /etc/udev/rules.d/59-ferryman.rules ]
    # shellcheck disable=SC2086 # words
    tree $PLACES | grep -v " d " >"$BATS_TEST_TMPDIR/before"
    expect 0 all
    says "nothing to do"
    # shellcheck disable=SC2086 # words
    tree $PLACES | grep -v " d " | diff "$BATS_TEST_TMPDIR/before" -
}

@test "dry: nothing is changed" {
    # shellcheck disable=SC2086 # words
    before=$(tree /opt /etc /usr/local)
    expect 0 all --dry-run
    says "would run: useradd"
    says "would run, as root: install -d -m 755 -- /opt/ferryman.d"
    says_not "as_user"
    says "would write: /etc/systemd/system/ferryman-agent.service"
    [ "$(tree /opt /etc /usr/local)" = "$before" ]
}

@test "what an administrator wrote stays, what an option names changes" {
    mkdir -p /etc/ferryman
    printf '# mine\nFERRYMAN_BROKER=mqtt://old\nFERRYMAN_OPTIONS="--sample 60"\nFERRYMAN_DEVICE=attic\n' >/etc/ferryman/agent.env
    expect 0 provision --broker mqtt://new --set "FERRYMAN_MORE=two words"
    run cat /etc/ferryman/agent.env
    [ "$output" = '# mine
FERRYMAN_BROKER=mqtt://new
FERRYMAN_OPTIONS="--sample 60"
FERRYMAN_DEVICE=attic
FERRYMAN_MORE="two words"' ]
    mkdir -p /var/lib/ferryman/.ssh
    echo 'from="10.0.0.1" ssh-ed25519 AAAA hers' >/var/lib/ferryman/.ssh/authorized_keys
    expect 1 provision --authorize "$BATS_TEST_TMPDIR/key.pub"
    says "chown -hR ferryman:ferryman /var/lib/ferryman/.ssh"
    chown -hR ferryman:ferryman /var/lib/ferryman/.ssh
    expect 0 provision --authorize "$BATS_TEST_TMPDIR/key.pub"
    grep -qx 'from="10.0.0.1" ssh-ed25519 AAAA hers' /var/lib/ferryman/.ssh/authorized_keys
    [ "$(wc -l </var/lib/ferryman/.ssh/authorized_keys)" -eq 2 ]
}

as_ferryman() { setpriv --reuid ferryman --regid ferryman --clear-groups "$@"; }

# A folder in which ferryman may not write, with a file that it may not read.
roots_own() {
    rm -rf /etc/roots-own
    mkdir -m 755 /etc/roots-own
    echo secret >/etc/roots-own/file
    chmod 600 /etc/roots-own/file
    tree /etc/roots-own >"$BATS_TEST_TMPDIR/roots-own"
}

still_roots_own() { tree /etc/roots-own | diff "$BATS_TEST_TMPDIR/roots-own" - && rm -r /etc/roots-own; }

@test "root writes nowhere else when ferryman swaps a folder of its own for a link" {
    expect 0 provision
    roots_own
    for name in identity .ssh trust; do
        rm -rf "/var/lib/ferryman/$name"
        as_ferryman mkdir "/var/lib/ferryman/$name"
        # Once what can be checked before was checked.
        fake getent <<END
#!/bin/sh
rmdir /var/lib/ferryman/$name 2>/dev/null && ln -s /etc/roots-own /var/lib/ferryman/$name
exec /usr/bin/getent "\$@"
END
        expect 1 all --trust "$WHEEL"
        [ -L "/var/lib/ferryman/$name" ]
        rm "$BATS_TEST_TMPDIR/bin/getent" "/var/lib/ferryman/$name"
    done
    still_roots_own
}

@test "root writes nowhere else when ferryman swaps a file that is being written for a link" {
    expect 0 provision
    roots_own
    fake mktemp <<'END'
#!/bin/sh
new=$(/usr/bin/mktemp "$@") || exit 1
case $new in /var/lib/ferryman/*) ln -sf /etc/roots-own/file "$new" ;; esac
echo "$new"
END
    expect 1 all
    says "cannot write /var/lib/ferryman/identity/identity.pem"
    expect 1 provision --authorize "$BATS_TEST_TMPDIR/key.pub"
    expect 1 provision --trust "$WHEEL"
    still_roots_own
}

@test "root reads nothing for ferryman" {
    expect 0 provision --authorize "$BATS_TEST_TMPDIR/key.pub"
    roots_own
    ln -sf /etc/roots-own/file /var/lib/ferryman/.ssh/authorized_keys
    expect 1 provision --authorize "$BATS_TEST_TMPDIR/key.pub"
    says "ferryman cannot read /var/lib/ferryman/.ssh/authorized_keys"
    still_roots_own
    rm /var/lib/ferryman/.ssh/authorized_keys
    as_ferryman mkfifo /var/lib/ferryman/.ssh/authorized_keys
    expect 0 timeout 300 "$PROVISION" --python small-python --wheel "$WHEEL" --authorize "$BATS_TEST_TMPDIR/key.pub"
    grep -q '^restrict ssh-ed25519 .* pusher$' /var/lib/ferryman/.ssh/authorized_keys
}

@test "leftovers of one that was killed are removed as ferryman" {
    expect 0 provision
    roots_own
    touch /etc/roots-own/.ferryman.abcdef
    as_ferryman mkdir /var/lib/ferryman/identity
    as_ferryman touch /var/lib/ferryman/identity/.ferryman.abcdef
    as_ferryman ln -s /etc/roots-own /var/lib/ferryman/elsewhere
    expect 0 provision
    [ ! -e /var/lib/ferryman/identity/.ferryman.abcdef ]
    rm /etc/roots-own/.ferryman.abcdef
    rm -r /etc/roots-own
}

@test "whatever the umask, ferryman can run it and nobody can write it" {
    for mask in 000 077; do
        umask "$mask"
        expect 0 all
        umask 022
        expect 0 as_ferryman /opt/ferryman/bin/ferryman --version
        [ -z "$(find /opt /etc/ferryman /etc/systemd /etc/udev /usr/local /var/lib/ferryman ! -type l -perm /022)" ]
        [ "$mask" = 077 ] || "$PROVISION" --uninstall --purge
    done
    chmod 700 "$(readlink -f /opt/ferryman)"
    expect 0 all
    expect 0 as_ferryman /opt/ferryman/bin/ferryman --version
}

@test "keys as Windows writes them, twice the same, one the beginning of another" {
    printf '# keys\r\n\r\nssh-ed25519 AAAAC3abcd long\r\nssh-ed25519 AAAAC3 short\r\nssh-ed25519 AAAAC3abcd twice\r\n' >"$BATS_TEST_TMPDIR/keys"
    for again in "wrote /var/lib/ferryman/.ssh/authorized_keys" "nothing to do"; do
        expect 0 provision --authorize "$BATS_TEST_TMPDIR/keys"
        says "$again"
        [ "$(cat /var/lib/ferryman/.ssh/authorized_keys)" = 'restrict ssh-ed25519 AAAAC3abcd long
restrict ssh-ed25519 AAAAC3 short' ]
    done
}

@test "a wheel is found whatever its folder is called" {
    folder="$BATS_TEST_TMPDIR/a b'\$(touch pwned);[x]"
    mkdir "$folder"
    cp "$WHEEL" "$folder"
    cd "$folder"
    expect 0 "$PROVISION" --python small-python --wheel "$folder/${WHEEL##*/}"
    expect 0 /opt/ferryman/bin/ferryman
    [ "$output" = "./${WHEEL##*/}[litert]" ]
    make_wheel other
    mv -- "$WHEEL" -x-any.whl
    expect 0 "$PROVISION" --python small-python --wheel -x-any.whl
    expect 0 /opt/ferryman/bin/ferryman
    [ "$output" = "./-x-any.whl[litert]" ]
    cd "$BATS_TEST_TMPDIR"
    make_wheel another
    expect 0 provision --wheels .
    expect 0 /opt/ferryman/bin/ferryman
    [ "$output" = "$BATS_TEST_TMPDIR" ]
    [ -z "$(find / -xdev -name pwned)" ]
}

@test "enrolling: the agent waits for its identity" {
    fake ip <<<'#!/bin/sh
echo "1.0.0.0 via 192.168.1.1 dev eth0 src 192.168.1.20 uid 0"'
    expect 0 provision --enroll --device kitchen --authorize "$BATS_TEST_TMPDIR/key.pub" --broker mqtts://hub.lan:8883
    says "ferryman enroll kitchen --ca ca --broker mqtts://hub.lan:8883
"
    says 'ferryman devices add kitchen --host 192.168.1.20 --user ferryman --command /opt/ferryman/bin/ferryman \
    --broker "mqtts://hub.lan:8884?ca=$PWD/operator.pem&cert=$PWD/operator.pem"
ferryman devices trust kitchen'
    expect 0 /opt/ferryman/bin/ferryman
    says "[enroll,litert]"
    grep -q ConditionPathExists=/var/lib/ferryman/identity/identity.pem /etc/systemd/system/ferryman-agent.service.d/enroll.conf
    [ -L /etc/systemd/system/paths.target.wants/ferryman-enrolled.path ]
    case $(getent passwd ferryman) in */bin/sh) ;; *) false ;; esac
}

@test "a device's name is one that the agent takes, the host name's too" {
    fake uname <<<'#!/bin/sh
echo pi+2.example.org'
    expect 0 provision
    grep -qx FERRYMAN_DEVICE=pi-2 /etc/ferryman/agent.env
    expect 2 provision --device a.b
    says "A-Z a-z 0-9 _ -"
}

@test "an upgrade keeps extras and interpreter, and options given again replace them" {
    expect 0 provision --enroll --extra ota --interpreter tflite
    make_wheel two
    expect 0 provision
    expect 0 /opt/ferryman/bin/ferryman
    says "[enroll,ota,tflite]"
    kept=$(readlink /opt/ferryman).options
    [ "$(stat -c '%U:%G %a' "$kept")" = "root:root 644" ]
    expect 0 provision
    says "nothing to do"
    # What the agent waits for an identity with stays.
    expect 0 provision --extra drift --interpreter none
    expect 0 /opt/ferryman/bin/ferryman
    says "[drift,enroll]"
    # One that fails leaves them as they were.
    echo else >"$BATS_TEST_TMPDIR/pip-says"
    expect 1 provision --extra ota
    rm "$BATS_TEST_TMPDIR/pip-says"
    make_wheel three
    expect 0 provision
    expect 0 /opt/ferryman/bin/ferryman
    says "[drift,enroll]"
    expect 0 provision --extra none --interpreter litert
    expect 0 /opt/ferryman/bin/ferryman
    says "[enroll,litert]"
}

@test "what nothing uses of what pip installed is left out" {
    expect 0 provision
    run sh -c 'cd /opt/ferryman/lib/python3.11/site-packages && find . -type f | sort | paste -sd " "'
    [ "$output" = "./ai_edge_litert/libLiteRt.so ./numpy/ma/test_kept.py ./numpy/ma/tests/_used.py" ]
}

@test "an upgrade keeps the Python that was named" {
    ln -s small-python "$BATS_TEST_TMPDIR/bin/other-python"
    (cd "$BATS_TEST_TMPDIR" && expect 0 "$PROVISION" --wheel "$WHEEL" --python bin/other-python)
    make_wheel two
    # With the system's own, pip would find no such wheel.
    expect 0 "$PROVISION" --wheel "$WHEEL"
    grep -x "python=$BATS_TEST_TMPDIR/bin/other-python" "$(readlink /opt/ferryman).options"
    expect 0 "$PROVISION" --wheel "$WHEEL"
    says "nothing to do"
    rm "$BATS_TEST_TMPDIR/bin/other-python"
    expect 1 "$PROVISION" --wheel "$WHEEL"
    says "name another with --python"
    expect 0 provision
    grep -x "python=$BATS_TEST_TMPDIR/bin/small-python" "$(readlink /opt/ferryman).options"
}

@test "who pushes reads the journal where that is asked for" {
    expect 0 provision
    run id -nG ferryman
    says_not systemd-journal
    expect 0 provision --journal
    run id -nG ferryman
    says systemd-journal
    expect 0 provision
    says "nothing to do"
}

@test "an extra that the wheel has not is no extra" {
    before=$(tree /opt /etc)
    expect 2 provision --extra nonsense
    says "has no extra nonsense, but litert, tflite, ota, enroll, drift"
    expect 2 "$PROVISION" --python small-python --index ferryman==1 --extra nonsense
    says "has no extra nonsense"
    echo torn >"$WHEEL"
    expect 1 provision
    says "copy it here again"
    [ "$(tree /opt /etc)" = "$before" ]
}

@test "an upgrade switches at the end; one that fails changes nothing that runs" {
    expect 0 provision --device kitchen
    old=$(readlink /opt/ferryman)
    make_wheel two
    for said in "OSError: [Errno 28] No space left on device" "NewConnectionError: Network is unreachable" "No matching distribution found" "is not a supported wheel" "else"; do
        echo "$said" >"$BATS_TEST_TMPDIR/pip-says"
        expect 1 provision
        says "nothing was changed of what runs"
        [ "$(readlink /opt/ferryman)" = "$old" ]
        expect 0 /opt/ferryman/bin/ferryman --version
    done
    rm "$BATS_TEST_TMPDIR/pip-says"
    touch "$BATS_TEST_TMPDIR/broken"
    expect 1 provision
    says "the new ferryman does not run"
    rm "$BATS_TEST_TMPDIR/broken"
    expect 0 /opt/ferryman/bin/ferryman --version
    [ "$(readlink /opt/ferryman)" = "$old" ]
    expect 0 provision --interpreter tflite
    [ "$(readlink /opt/ferryman)" != "$old" ]
    [ ! -e "$old" ]
    expect 0 /opt/ferryman/bin/ferryman --version
    says "[tflite]"
    expect 0 provision --interpreter tflite
    says "nothing to do"
}

@test "an installation by hand gives way, and only to one that runs" {
    mkdir -p /opt/ferryman/bin
    printf '#!/bin/sh\necho by hand\n' >/opt/ferryman/bin/ferryman
    chmod +x /opt/ferryman/bin/ferryman
    echo broken >"$BATS_TEST_TMPDIR/pip-says"
    expect 1 provision
    expect 0 /opt/ferryman/bin/ferryman
    says "by hand"
    rm "$BATS_TEST_TMPDIR/pip-says"
    expect 0 provision
    expect 0 /opt/ferryman/bin/ferryman
    says_not "by hand"
}

# Some program calls more each time, up to the end: whatever is done is done from there on.
@test "killed at any step and run again, the end is the same" {
    expect 0 all
    state >"$BATS_TEST_TMPDIR/expected"
    "$PROVISION" --uninstall --purge
    for name in install mv ln useradd usermod chown chmod systemctl sync rm; do
        real=$(PATH=/usr/sbin:/usr/bin:/sbin:/bin command -v "$name")
        fake "$name" <<END
#!/bin/sh
calls=\$((\$(cat "\$BATS_TEST_TMPDIR/calls") + 1))
echo \$calls >"\$BATS_TEST_TMPDIR/calls"
[ \$calls -ne \$(cat "\$BATS_TEST_TMPDIR/last") ] || kill -9 0
exec $real "\$@"
END
    done
    last=0 killed=0
    while :; do
        last=$((last + ${FERRYMAN_TEST_STEP:-7}))
        echo 0 >"$BATS_TEST_TMPDIR/calls"
        echo "$last" >"$BATS_TEST_TMPDIR/last"
        export -f all provision
        export PROVISION WHEEL
        run setsid --wait bash -c all
        echo 0 >"$BATS_TEST_TMPDIR/last"
        [ "$status" -ne 0 ] || break
        killed=$((killed + 1))
        if [ -L /opt/ferryman ]; then /opt/ferryman/bin/ferryman --version; fi
        expect 0 all
        state >"$BATS_TEST_TMPDIR/found"
        diff "$BATS_TEST_TMPDIR/expected" "$BATS_TEST_TMPDIR/found"
        "$PROVISION" --uninstall --purge
    done
    [ "$killed" -ge 3 ]
}

@test "an upgrade that is killed leaves the old or the new one, both whole" {
    expect 0 provision
    for name in mv ln sync rm; do
        make_wheel "$(date +%N)"
        fake "$name" <<<'#!/bin/sh
kill -9 0'
        export -f provision
        export PROVISION WHEEL
        run setsid --wait bash -c provision
        PATH=/usr/bin:/bin rm "$BATS_TEST_TMPDIR/bin/$name"
        [ "$status" -ne 0 ]
        expect 0 /opt/ferryman/bin/ferryman --version
        expect 0 provision
        expect 0 provision
        says "nothing to do"
    done
}

# bats test_tags=arch
@test "uninstall leaves state and identity, purge nothing" {
    state >"$BATS_TEST_TMPDIR/expected"
    expect 0 all
    touch /var/lib/ferryman/outbox.sqlite
    echo PGPASSWORD=x >/etc/ferryman/collector.env
    expect 0 sh "$SCRIPTS/firstboot/firstrun.sh"
    touch /etc/ferryman/provisioned
    expect 0 "$PROVISION" --uninstall --dry-run
    says "would run: rm -r -- /opt/ferryman"
    says_not "removed"
    says_not "stays"
    expect 0 "$PROVISION" --uninstall
    says "removed /opt/ferryman
"
    says "removed /etc/systemd/system/ferryman-agent.service
"
    says "removed /etc/systemd/system/ferryman-firstboot.service
"
    says "stays: /var/lib/ferryman, with state and identity, and its user ferryman; --uninstall --purge removes them"
    says "stays: /etc/ferryman/collector.env"
    [ ! -L /etc/systemd/system/multi-user.target.wants/ferryman-firstboot.service ]
    [ -e /var/lib/ferryman/outbox.sqlite ]
    [ -e /var/lib/ferryman/identity/identity.pem ]
    [ ! -e /var/lib/ferryman/.ssh ]
    [ "$(ls /etc/ferryman)" = collector.env ]
    rm -r /etc/ferryman
    for gone in /opt/ferryman /opt/ferryman.d /usr/local/lib/ferryman /etc/systemd/system/ferryman-agent.service /etc/udev/rules.d/59-ferryman.rules; do
        [ ! -e "$gone" ] && [ ! -L "$gone" ]
    done
    expect 0 "$PROVISION" --uninstall
    says "nothing to do"
    says "stays: /var/lib/ferryman"
    expect 0 "$PROVISION" --uninstall --purge
    says "removed /var/lib/ferryman
removed the user ferryman"
    state >"$BATS_TEST_TMPDIR/found"
    diff "$BATS_TEST_TMPDIR/expected" "$BATS_TEST_TMPDIR/found"
}

@test "avahi announces the device where it is installed" {
    mkdir -p /etc/avahi/services
    fake uname <<<'#!/bin/sh
echo pi-2.lan'
    expect 0 provision --device kitchen --broker mqtt://me:secret@hub.lan --authorize "$BATS_TEST_TMPDIR/key.pub"
    says "devices add kitchen --host pi-2.local "
    says "--broker mqtt://hub.lan"
    grep -q "<txt-record>device=kitchen</txt-record>" /etc/avahi/services/ferryman.service
    sed -i 's/^FERRYMAN_DEVICE=.*/FERRYMAN_DEVICE="a<b\&c"/' /etc/ferryman/agent.env
    expect 0 provision
    grep -q "<txt-record>device=a&lt;b&amp;c</txt-record>" /etc/avahi/services/ferryman.service
    rm -r /etc/avahi
}

@test "what is wrong is said, with what to do, before anything is changed" {
    before=$(tree /opt /etc /usr/local)
    expect 1 provision --python no-such-python
    says "apt-get install python3"
    fake old-python <<<'#!/bin/sh
echo "3.9.2 aarch64 False"'
    expect 1 provision --python old-python
    says "3.11 or later"
    fake small-userland <<<'#!/bin/sh
echo "3.11.2 32 True"'
    touch "$BATS_TEST_TMPDIR/ferryman-1-py3-none-manylinux_2_28_aarch64.whl"
    expect 1 "$PROVISION" --python small-userland --wheel "$BATS_TEST_TMPDIR/ferryman-1-py3-none-manylinux_2_28_aarch64.whl"
    says "32 bits"
    touch "$BATS_TEST_TMPDIR/ferryman-1-py3-none-linux_sparc.whl"
    expect 1 "$PROVISION" --wheel "$BATS_TEST_TMPDIR/ferryman-1-py3-none-linux_sparc.whl"
    says "not for this device"
    expect 1 provision --authorize "$BATS_TEST_TMPDIR/key"
    says "private key"
    sed 's/^/command="x" /' "$BATS_TEST_TMPDIR/key.pub" >"$BATS_TEST_TMPDIR/restricted.pub"
    expect 1 provision --authorize "$BATS_TEST_TMPDIR/restricted.pub"
    says "line 1"
    expect 1 provision --identity "$BATS_TEST_TMPDIR/key.pub"
    says "expected key, certificate and authority"
    expect 1 provision --wheels /no/such
    says "pip download"
    [ "$(tree /opt /etc /usr/local)" = "$before" ]
}

@test "not root" {
    cp -r "$SCRIPTS" /tmp/scripts
    chmod -R a+rX /tmp/scripts "$BATS_TEST_TMPDIR" "$BATS_RUN_TMPDIR"
    expect 1 setpriv --reuid 65534 --clear-groups /tmp/scripts/provision.sh --wheel "$WHEEL"
    says "needs root"
    rm -r /tmp/scripts
}

@test "a full disk" {
    mkdir /opt/ferryman.d
    mount -t tmpfs -o size=10m tmpfs /opt/ferryman.d
    expect 1 provision
    says "MB free"
    [ ! -e /opt/ferryman ]
}

@test "a read-only root" {
    mount -t tmpfs -o ro tmpfs /opt
    run provision
    umount /opt
    [ "$status" -eq 1 ]
    says "remount,rw"
}

@test "one at a time" {
    mkdir -p /opt/ferryman.d
    exec 8>>/opt/ferryman.d/lock
    flock 8
    expect 1 provision
    says "another provision.sh"
    exec 8>&-
}

@test "wrong usage" {
    for wrong in "" "--wheel" "--sideways" "--wheel $WHEEL --index ferryman==1" "--index ferryman" "--purge" "--uninstall --wheel $WHEEL" \
        "--wheel $WHEEL --interpreter onnx" "--wheel $WHEEL --extra a,b" "--wheel $WHEEL --device a/b" "--wheel $WHEEL --broker http://x" \
        "--wheel $WHEEL --set novalue" "--wheel $WHEEL --enroll --identity x"; do
        # shellcheck disable=SC2086 # words
        expect 2 "$PROVISION" $wrong
        says "--help"
    done
    for wrong in FERRYMAN_DEVICE= "FERRYMAN_DEVICE=a<b>" FERRYMAN_BROKER=http://x; do
        expect 2 "$PROVISION" --wheel "$WHEEL" --set "$wrong"
        says "--help"
    done
    for option in --set --broker --device --index; do
        expect 2 "$PROVISION" --wheel "$WHEEL" "$option" $'mqtt://h\nFERRYMAN_OPTIONS=--evil'
        says "$option takes a value of one line"
    done
    for wrong in 'ferryman==*' 'ferryman==1 ; x' 'ferry man==1' 'ferryman==' '[x]==1'; do
        expect 2 "$PROVISION" --index "$wrong"
        says "name a version"
    done
    expect 2 "$PROVISION" --wheel ferryman-1.whl ferryman-2.whl --device kitchen
    says "one wheel, and here are ferryman-1.whl and ferryman-2.whl"
    expect 0 "$PROVISION" --help
    says "--wheel FILE"
}
