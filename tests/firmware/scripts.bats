#!/usr/bin/env bats
# What holds for every script in firmware_scripts.

# shellcheck disable=SC2016,SC2030,SC2031

load helpers

scripts() {
    for script in "$SCRIPTS"/*.sh; do
        case $script in */lib.sh) ;; *) basename "$script" ;; esac
    done
}

# options SCRIPT: what it looks for in its arguments: its own, and what it asks lib.sh for.
options() {
    {
        grep -E '^ *-[-a-z|* ]*\)' "$SCRIPTS/$1" || :
        grep -E '\[ "?\$1"? = -' "$SCRIPTS/$1" || :
        echo --help --dry-run
        ! grep -qE 'ferryman_option|on_the_root' "$SCRIPTS/$1" || echo --root --command
    } | grep -oE -- '--[a-z][a-z-]+' | sort -u
}

# works SCRIPT [--dry-run]: arguments with which it has something to do in a bare root. What takes more than that has a
# file of its own, and here a dry run only: without arguments it ends with 2.
works() {
    case $1${2:-} in
    provision.sh--dry-run) echo --index ferryman==0 ;;
    read_only_root.sh--dry-run) echo --state LABEL=ferryman ;;
    esac
    case $1 in
    performance.sh) echo on ;;
    collect_sysinfo.sh) echo --output "$BATS_TEST_TMPDIR/bundle" ;;
    setup_broker.sh) echo --local "$BATS_TEST_TMPDIR/passwords" --port 21883 ;;
    esac
}

prepare() {
    export FERRYMAN_SYS=$BATS_TEST_TMPDIR/sys
    mkdir -p "$FERRYMAN_SYS/devices/system/cpu/cpufreq/policy0"
    echo ondemand >"$FERRYMAN_SYS/devices/system/cpu/cpufreq/policy0/scaling_governor"
    mosquitto_passwd -b -c "$BATS_TEST_TMPDIR/passwords" kitchen geheim
}

# All that a script might change.
system() { find / -xdev -path /tmp -prune -o -path /src -prune -o -printf '%p %y %m %u:%g %s %T@ %C@ %l\n' | sort; }

@test "help: exit code 0, and every option is in it" {
    for script in $(scripts); do
        expect 0 "$SCRIPTS/$script" --help
        says "$script"
        for option in $(options "$script"); do
            grep -qE -- "(^|[^a-z-])$option([^a-z-]|\$)" <<<"$output" || {
                echo "$script --help does not name $option"
                return 1
            }
        done
        expect 0 "$SCRIPTS/$script" -h
    done
}

@test "wrong usage: an unknown option gives exit code 2 and a hint" {
    for script in $(scripts); do
        expect 2 "$SCRIPTS/$script" --no-such-option
        says "--no-such-option"
        says "--help"
    done
}

@test "wrong usage: an option without its value gives exit code 2" {
    for script in $(scripts); do
        for option in $(options "$script"); do
            # "--name VALUE" in the help: it takes one
            "$SCRIPTS/$script" --help | grep -qE "^ *$option [A-Z]" || continue
            expect 2 "$SCRIPTS/$script" "$option"
            says "$option"
        done
    done
}

# bats test_tags=arch
@test "a script can be called by a link, and from anywhere" {
    for script in $(scripts); do
        ln -s "$SCRIPTS/$script" "$BATS_TEST_TMPDIR/$script"
        (cd / && expect 0 "$BATS_TEST_TMPDIR/$script" --help)
    done
}

@test "no script has what only bash knows" {
    for script in "$SCRIPTS"/*.sh; do
        [ "$(head -n 1 "$script")" = "#!/bin/sh" ]
        dash -n "$script"
        ! grep -nE '\[\[ |^ *local |\$\{[a-zA-Z_]+//|<<<|&>|\bsource ' "$script" || return 1
    done
}

# each WORDS...: runs every script with WORDS and what it works on; what they said is shown where the test fails.
each() {
    for script in $(scripts); do
        arguments=$(works "$script" "$@")
        # shellcheck disable=SC2086 # words
        run "$SCRIPTS/$script" "$@" $arguments
        echo "$script $* $arguments: $status: $output"
        [ "$status" -le 1 ] || [ $# -eq 0 ]
    done
}

same() {
    diff <(echo "$1") <(system) || {
        echo "that was changed"
        return 1
    }
}

@test "in a root: a dry run changes nothing at all" {
    needs_root_of_its_own
    prepare
    before=$(system)
    each --dry-run
    same "$before"
}

@test "in a root: a second run changes nothing" {
    needs_root_of_its_own
    prepare
    each
    before=$(system)
    each
    same "$before"
    "$SCRIPTS/performance.sh" off
    "$SCRIPTS/setup_broker.sh" --uninstall
}
