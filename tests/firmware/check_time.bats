#!/usr/bin/env bats
# check_time.sh with programs that say what is asked of them.

# shellcheck disable=SC2016,SC2030,SC2031

load helpers

setup() {
    CHECK=$SCRIPTS/check_time.sh
    # What is installed here is not to be asked.
    for name in chronyc timedatectl adjtimex python3; do fake "$name" <<<'#!/bin/sh
exit 1'; done
}

@test "synchronized, by whichever tells" {
    fake timedatectl <<<'#!/bin/sh
echo yes'
    expect 0 "$CHECK" --strict
    says "synchronized (timedatectl)"
    fake chronyc <<<'#!/bin/sh
echo "Leap status     : Normal"'
    expect 0 "$CHECK" --strict
    says "synchronized (chronyc)"
}

@test "not synchronized is a warning, and a failure only where that is asked for" {
    fake adjtimex <<<'#!/bin/sh
echo "     status: 64"'
    expect 0 "$CHECK"
    says "not synchronized (adjtimex)"
    expect 1 "$CHECK" --strict
    fake chronyc <<<'#!/bin/sh
echo "Leap status     : Not synchronised"'
    expect 1 "$CHECK" --strict
    says "not synchronized (chronyc)"
}

@test "what is installed is to be mended, not installed" {
    nobody=$BATS_TEST_TMPDIR/no-such
    export FERRYMAN_TIMESYNCD=$nobody
    rm "$BATS_TEST_TMPDIR/bin/chronyc"
    fake timedatectl <<<'#!/bin/sh
echo no'
    expect 1 "$CHECK" --strict
    says "apt-get install systemd-timesyncd"
    touch "$nobody"
    expect 1 "$CHECK" --strict
    says_not "apt-get"
    says "timedatectl set-ntp true"
    fake chronyc <<<'#!/bin/sh
echo "Leap status     : Not synchronised"'
    expect 1 "$CHECK" --strict
    says_not "apt-get"
    says "chronyc sources"
}

@test "a clock that was never set" {
    fake date <<<'#!/bin/sh
case $1 in +%s) echo 86400 ;; *) echo 1970-01-02 ;; esac'
    fake timedatectl <<<'#!/bin/sh
echo yes'
    expect 1 "$CHECK" --strict
    says "never set"
}

@test "nobody knows" {
    expect 1 "$CHECK" --strict
    says "nothing here tells"
}

@test "a program that hangs keeps nobody waiting" {
    fake chronyc <<<'#!/bin/sh
exec sleep 100'
    SECONDS=0
    expect 0 "$CHECK"
    [ "$SECONDS" -lt 60 ]
}

# bats test_tags=arch
@test "the kernel is asked where there is a Python" {
    rm "$BATS_TEST_TMPDIR/bin/python3"
    has_python=$(PATH=/usr/bin command -v python3) || skip "no python3"
    [ -n "$has_python" ]
    expect 0 "$CHECK"
    says "(kernel)"
}

@test "wrong usage" {
    expect 2 "$CHECK" --now
    says "--help"
}
