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
    printf '#!/bin/sh\nprintf "%%s\\n" "$@" >"$GIVEN"\n[ ! -e "$GIVEN.fails" ]\n' >"$BOOT/firmware_scripts/provision.sh"
}

teardown() {
    [ -n "${FERRYMAN_TEST_ROOT:-}" ] || return 0
    rm -rf /boot/firmware /etc/ferryman
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
    touch "$BOOT/identity.pem" "$GIVEN.fails"
    expect 1 firstboot
    [ -e "$BOOT/identity.pem" ]
    rm "$GIVEN.fails"
    expect 0 firstboot
    [ ! -e "$BOOT/identity.pem" ]
}

@test "what is wrong is said" {
    expect 1 firstboot
    says "write an option of provision.sh a line"
    echo "device kitchen" >"$BOOT/provision.options"
    expect 1 firstboot
    says "expected --option value, found: device kitchen"
    expect 2 firstboot here
}
