#!/usr/bin/env bats
# firstrun.sh and firstboot.sh in a root of its own, with a provision.sh that only says what it was given.

# shellcheck disable=SC2016,SC2030,SC2031

load helpers

setup() {
    needs_root_of_its_own
    BOOT=/boot/firmware/ferryman
    mkdir -p "$BOOT" /etc/ferryman
    cp -r "$SCRIPTS" "$BOOT/firmware_scripts"
    export GIVEN=$BATS_TEST_TMPDIR/given
    # The real one's help, for it says which options there are.
    help=$(sed -n '2,${/^#/!q;p;}' "$SCRIPTS/provision.sh")
    printf '#!/bin/sh\n%s\nprintf "%%s\\n" "$@" >"$GIVEN"\nexit "$(cat "$GIVEN.fails" 2>/dev/null || echo 0)"\n' "$help" >"$BOOT/firmware_scripts/provision.sh"
    mkdir -p /opt/ferryman/bin
    printf '#!/bin/sh\n' >/opt/ferryman/bin/ferryman
    chmod +x /opt/ferryman/bin/ferryman
}

teardown() {
    [ -n "${FERRYMAN_TEST_ROOT:-}" ] || return 0
    rm -rf /boot/firmware /etc/ferryman /opt/ferryman
    rm -f /etc/systemd/system/ferryman-firstboot.service /etc/systemd/system/multi-user.target.wants/ferryman-firstboot.service
}

firstboot() { sh "$BOOT/firmware_scripts/firstboot/firstboot.sh" "$@"; }

@test "firstrun enables the unit and takes itself out of the command line, once" {
    echo 'console=tty1 root=PARTUUID=1-02 rootwait systemd.run=/boot/firmware/ferryman/firmware_scripts/firstboot/firstrun.sh systemd.run_success_action=reboot systemd.unit=kernel-command-line.target' >/boot/firmware/cmdline.txt
    expect 0 sh "$BOOT/firmware_scripts/firstboot/firstrun.sh"
    [ "$(cat /boot/firmware/cmdline.txt)" = "console=tty1 root=PARTUUID=1-02 rootwait" ]
    [ -L /etc/systemd/system/multi-user.target.wants/ferryman-firstboot.service ]
    expect 0 sh "$BOOT/firmware_scripts/firstboot/firstrun.sh"
    says "nothing to do"
}

# bats test_tags=arch
@test "options are read and not run, secrets are removed, and it is done once" {
    printf '# this device\r\n--device  kitchen \r\n--enroll\n--set A=$(touch /pwned) `x` "y"\n' >"$BOOT/provision.options"
    touch "$BOOT/ferryman-1-py3-none-any.whl" "$BOOT/authorized_keys" "$BOOT/identity.pem"
    expect 0 sh "$BOOT/firmware_scripts/firstboot/firstrun.sh"
    expect 0 firstboot
    run cat "$GIVEN"
    [ "$output" = "--device
kitchen
--enroll
--set
A=\$(touch /pwned) \`x\` \"y\"
--wheel
$BOOT/ferryman-1-py3-none-any.whl
--authorize
$BOOT/authorized_keys
--identity
$BOOT/identity.pem" ]
    [ ! -e /pwned ]
    [ ! -e "$BOOT/identity.pem" ]
    [ ! -e "$BOOT/provision.options" ]
    [ ! -L /etc/systemd/system/multi-user.target.wants/ferryman-firstboot.service ]
    expect 0 firstboot
    says "nothing to do"
}

@test "what fails keeps its files, and is tried again" {
    echo "--device kitchen" >"$BOOT/provision.options"
    touch "$BOOT/ferryman-1-py3-none-any.whl" "$BOOT/identity.pem"
    echo 1 >"$GIVEN.fails"
    expect 1 firstboot
    [ -e "$BOOT/identity.pem" ]
    rm "$GIVEN.fails"
    expect 0 firstboot
    [ ! -e "$BOOT/identity.pem" ]
}

@test "what would not provision, or leave a key behind, is refused and keeps its files" {
    touch "$BOOT/identity.pem" /boot/firmware/other.pem
    for wrong in --help "--help me" --dry-run --uninstall --purge "--identity /boot/firmware/other.pem"; do
        printf -- '--device kitchen\n  %s\r\n' "$wrong" >"$BOOT/provision.options"
        expect 2 firstboot
        says "${wrong%% *}"
        [ ! -e "$GIVEN" ]
        [ -e "$BOOT/identity.pem" ]
        [ ! -e /etc/ferryman/provisioned ]
    done
}

@test "what says that it is done, and does not run, keeps its files" {
    echo "--device kitchen" >"$BOOT/provision.options"
    touch "$BOOT/ferryman-1-py3-none-any.whl" "$BOOT/identity.pem"
    rm -r /opt/ferryman
    expect 1 firstboot
    says "/opt/ferryman/bin/ferryman does not run"
    [ -e "$BOOT/identity.pem" ]
    [ -e "$BOOT/provision.options" ]
    [ ! -e /etc/ferryman/provisioned ]
}

@test "what is wrong is said, and not tried again every minute" {
    expect 1 firstboot
    says "write an option of provision.sh a line"
    printf '# mine\ndevice kitchen\n' >"$BOOT/provision.options"
    expect 2 firstboot
    says "provision.options, line 2: expected --option value, found: device kitchen"
    printf -- '--enroll\n\n--devise kitchen\r\n' >"$BOOT/provision.options"
    expect 2 firstboot
    says "provision.options, line 3: provision.sh has no option --devise"
    printf -- '--device kitchen\n' >"$BOOT/provision.options"
    expect 2 firstboot
    says "no ferryman-*.whl in $BOOT: put"
    says "or a line --index ferryman==VERSION into $BOOT/provision.options"
    touch "$BOOT/ferryman-0.9-py3-none-any.whl" "$BOOT/ferryman-0.10-py3-none-any.whl"
    expect 2 firstboot
    says "ferryman-0.10-py3-none-any.whl and $BOOT/ferryman-0.9-py3-none-any.whl: leave there the one"
    rm "$BOOT/ferryman-0.9-py3-none-any.whl"
    [ ! -e "$GIVEN" ]
    echo 2 >"$GIVEN.fails"
    expect 2 firstboot
    says "provision.options"
    says "systemctl start ferryman-firstboot"
    grep -qx RestartPreventExitStatus=2 "$SCRIPTS/firstboot/ferryman-firstboot.service"
    expect 2 firstboot here
}

@test "dry: it says so to the end" {
    printf -- '--device kitchen\n--index ferryman==1\n' >"$BOOT/provision.options"
    expect 0 firstboot --dry-run
    says "would provision from $BOOT"
    says_not "provisioned from"
    [ -e "$BOOT/provision.options" ]
    [ ! -e /etc/ferryman/provisioned ]
}
