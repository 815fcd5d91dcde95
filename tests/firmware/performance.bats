#!/usr/bin/env bats
# performance.sh over a /sys of its own: what it changes is put back, however it ends.

# Scripts in single quotes are run by what they are given to; each test is a shell of its own.
# shellcheck disable=SC2016,SC2030,SC2031

load helpers

setup() {
    needs_root
    export FERRYMAN_SYS=$BATS_TEST_TMPDIR/sys FERRYMAN_RUN=$BATS_TEST_TMPDIR/run
    CPU=$FERRYMAN_SYS/devices/system/cpu
    policy policy0 ondemand
    policy policy4 schedutil
    echo 0-3 >"$CPU/online"
    PERFORMANCE=$SCRIPTS/performance.sh
}

policy() {
    mkdir -p "$CPU/cpufreq/$1"
    echo "$2" >"$CPU/cpufreq/$1/scaling_governor"
    echo "conservative ondemand userspace powersave performance schedutil " >"$CPU/cpufreq/$1/scaling_available_governors"
}

governors() { cat "$CPU"/cpufreq/policy*/scaling_governor | paste -sd' '; }

# until_is WORDS: the governors become these, within a minute.
until_is() {
    for _ in $(seq 1200); do
        [ "$(governors)" != "$1" ] || return 0
        sleep 0.05
    done
    echo "expected $1, found $(governors)"
    return 1
}

# A systemctl with two units, of which one is active; what it was told is in `told`.
systemctl_of_two() {
    touch "$BATS_TEST_TMPDIR/active-noisy.timer"
    export BATS_TEST_TMPDIR
    fake systemctl <<'END'
#!/bin/sh
echo "$*" >>"$BATS_TEST_TMPDIR/told"
for last; do :; done
case $* in
*is-active*) [ -e "$BATS_TEST_TMPDIR/active-$last" ] ;;
stop*) rm "$BATS_TEST_TMPDIR/active-$last" ;;
start*) touch "$BATS_TEST_TMPDIR/active-$last" ;;
esac
END
}

@test "on sets every core, off puts back what was there" {
    expect 0 "$PERFORMANCE" on
    [ "$(governors)" = "performance performance" ]
    expect 0 "$PERFORMANCE" status
    says "policy4: performance"
    says "scaling_governor schedutil"
    expect 0 "$PERFORMANCE" off
    [ "$(governors)" = "ondemand schedutil" ]
    expect 0 "$PERFORMANCE" status
    says "performance mode is off"
}

@test "on twice keeps what was found first, and takes in a core that came since" {
    expect 0 "$PERFORMANCE" on
    policy policy6 powersave
    expect 0 "$PERFORMANCE" on
    [ "$(governors)" = "performance performance performance" ]
    expect 0 "$PERFORMANCE" off
    [ "$(governors)" = "ondemand schedutil powersave" ]
}

@test "off without on changes nothing" {
    before=$(tree "$BATS_TEST_TMPDIR")
    expect 0 "$PERFORMANCE" off
    [ "$(tree "$BATS_TEST_TMPDIR")" = "$before" ]
}

# bats test_tags=arch
@test "run gives the command its arguments, input, cores and exit code, and puts back" {
    export FERRYMAN_TEST_CPU=$CPU
    run "$PERFORMANCE" run --cores 0 -- sh -c 'cat; cat $FERRYMAN_TEST_CPU/cpufreq/*/scaling_governor; taskset -cp $$; echo "$1"; exit 7' sh "two words" <<<"from stdin"
    [ "$status" -eq 7 ]
    [ "${lines[0]}" = "from stdin" ]
    [ "${lines[1]} ${lines[2]}" = "performance performance" ]
    says "affinity list: 0"
    says "two words"
    [ "$(governors)" = "ondemand schedutil" ]
}

@test "run puts back when the command is killed, and when there is none such" {
    expect 137 "$PERFORMANCE" run -- sh -c 'kill -9 $$'
    [ "$(governors)" = "ondemand schedutil" ]
    code=0
    "$PERFORMANCE" run -- /no/such/command || code=$?
    [ "$code" -eq 127 ]
    [ "$(governors)" = "ondemand schedutil" ]
}

ended_by() {
    "$PERFORMANCE" run -- sh -c 'trap "echo told >$0; exit 3" INT TERM HUP; : >$0.ready; while :; do sleep 0.05; done' "$BATS_TEST_TMPDIR/child" 3>&- &
    until_is "performance performance"
    for _ in $(seq 1200); do [ -e "$BATS_TEST_TMPDIR/child.ready" ] || sleep 0.05; done
    kill "-$1" $!
    code=0
    wait $! || code=$?
    [ "$code" -eq 3 ]
    [ "$(cat "$BATS_TEST_TMPDIR/child")" = told ]
    [ "$(governors)" = "ondemand schedutil" ]
}

# bats test_tags=arch
@test "TERM goes to the command, and everything is put back" { ended_by TERM; }

@test "HUP goes to the command, and everything is put back" { ended_by HUP; }

@test "INT goes to the command, and everything is put back" {
    # A shell has what it starts in the background ignore INT; env gives it back, as a terminal would have it.
    PERFORMANCE_SH=$PERFORMANCE
    fake performance <<<"#!/bin/sh
exec env --default-signal=INT '$PERFORMANCE_SH' \"\$@\""
    PERFORMANCE=$BATS_TEST_TMPDIR/bin/performance
    ended_by INT
}

@test "after kill -9 off puts back, and another run does at its end" {
    for again in off run; do
        "$PERFORMANCE" run -- sleep 100 3>&- &
        until_is "performance performance"
        child=
        while [ -z "$child" ]; do child=$(pgrep -P $! sleep || :); done
        kill -9 $!
        wait $! || :
        kill "$child"
        [ "$(governors)" = "performance performance" ]
        case $again in
        off) expect 0 "$PERFORMANCE" off ;;
        run) expect 0 "$PERFORMANCE" run -- true ;;
        esac
        [ "$(governors)" = "ondemand schedutil" ]
    done
}

@test "run within on leaves it on" {
    expect 0 "$PERFORMANCE" on
    expect 0 "$PERFORMANCE" run -- true
    [ "$(governors)" = "performance performance" ]
    expect 0 "$PERFORMANCE" off
    [ "$(governors)" = "ondemand schedutil" ]
}

@test "one at a time" {
    "$PERFORMANCE" run -- sleep 100 3>&- &
    until_is "performance performance"
    for what in off on "run -- true"; do
        # shellcheck disable=SC2086 # words
        expect 1 "$PERFORMANCE" $what
        says "another performance.sh is at work"
    done
    kill $!
    wait $! || :
    [ "$(governors)" = "ondemand schedutil" ]
}

@test "without cpufreq on says so and fails, run goes on" {
    rm -r "$CPU/cpufreq"
    expect 1 "$PERFORMANCE" on
    says "no cpufreq"
    expect 0 "$PERFORMANCE" off
    expect 4 "$PERFORMANCE" run --cores 0 -- sh -c 'exit 4'
    says "no cpufreq"
    expect 0 "$PERFORMANCE" status
    says "no cpufreq"
}

@test "a core that has no such governor is told, the others are set" {
    echo "ondemand powersave" >"$CPU/cpufreq/policy0/scaling_available_governors"
    expect 1 "$PERFORMANCE" on
    says "policy0/scaling_governor takes no governor performance, only: ondemand powersave"
    [ "$(governors)" = "ondemand performance" ]
    expect 0 "$PERFORMANCE" off
    [ "$(governors)" = "ondemand schedutil" ]
}

@test "what cannot be put back is told and stays written down" {
    expect 0 "$PERFORMANCE" on
    rm "$CPU/cpufreq/policy4/scaling_governor"
    mkdir "$CPU/cpufreq/policy4/scaling_governor"
    expect 1 "$PERFORMANCE" off
    says "cannot put back"
    rmdir "$CPU/cpufreq/policy4/scaling_governor"
    policy policy4 performance
    expect 0 "$PERFORMANCE" off
    [ "$(governors)" = "ondemand schedutil" ]
}

@test "what is written down is nobody's to change, and the command has the umask of who called" {
    umask 000
    expect 0 "$PERFORMANCE" run -- sh -c "umask >$BATS_TEST_TMPDIR/mask; find $FERRYMAN_RUN ! -type l -printf '%m %P\\n'"
    says "found"
    says_not "66"
    says_not "77"
    [ "$(cat "$BATS_TEST_TMPDIR/mask")" = 0000 ]
    umask 077
    expect 0 "$PERFORMANCE" on
    # any user may ask for the status
    expect 0 find "$FERRYMAN_RUN"/* ! -perm -444
    [ -z "$output" ]
}

@test "off writes governors of its own and nothing else" {
    expect 0 "$PERFORMANCE" on
    found=$(find "$FERRYMAN_RUN" -name found)
    echo untouched >"$BATS_TEST_TMPDIR/file"
    mkdir "$CPU/cpufreq/policyx"
    ln -s "$BATS_TEST_TMPDIR/file" "$CPU/cpufreq/policyx/scaling_governor"
    systemctl_of_two
    {
        echo "governor $BATS_TEST_TMPDIR/file evil"
        echo "governor $CPU/cpufreq/policy0/../../../../../../file evil"
        echo "governor $CPU/cpufreq/policyx/scaling_governor evil"
        echo "governor $CPU/cpufreq/policy0/scaling_governor two words"
        echo "unit --now -"
        echo "unit a.service b.service"
        echo "unit ../x -"
    } >>"$found"
    expect 1 "$PERFORMANCE" off
    says "not a line of this script"
    [ "$(cat "$BATS_TEST_TMPDIR/file")" = untouched ]
    [ "$(cat "$CPU/cpufreq/policy0/scaling_governor" "$CPU/cpufreq/policy4/scaling_governor" | paste -sd' ')" = "ondemand schedutil" ]
    [ ! -e "$BATS_TEST_TMPDIR/told" ]
    expect 0 "$PERFORMANCE" off
}

@test "a core that has gone is no trouble" {
    expect 0 "$PERFORMANCE" on
    rm -r "$CPU/cpufreq/policy4"
    expect 0 "$PERFORMANCE" off
    [ "$(governors)" = ondemand ]
}

@test "units that were active are stopped and started again, others are left alone" {
    systemctl_of_two
    expect 0 "$PERFORMANCE" run --stop noisy.timer --stop idle.timer -- sh -c "! [ -e $BATS_TEST_TMPDIR/active-noisy.timer ]"
    [ -e "$BATS_TEST_TMPDIR/active-noisy.timer" ]
    run cat "$BATS_TEST_TMPDIR/told"
    says_not "stop idle.timer"
    says_not "start idle.timer"
    expect 0 "$PERFORMANCE" on --stop-timers
}

@test "wrong usage" {
    for wrong in "" "on off" "run" "on -- true" "on --cores 0" "run --cores x -- true" "run --cores" "sideways"; do
        # shellcheck disable=SC2086 # words
        expect 2 "$PERFORMANCE" $wrong
        says "--help"
    done
    expect 1 "$PERFORMANCE" run --cores 4000 -- true
    says "cannot pin to cores 4000"
    [ "$(governors)" = "ondemand schedutil" ]
}

@test "a dry run changes nothing" {
    before=$(tree "$BATS_TEST_TMPDIR")
    expect 0 "$PERFORMANCE" --dry-run on
    says "would write: performance to"
    expect 0 "$PERFORMANCE" --dry-run run --cores 0 -- false
    says "would run: taskset -c 0 false"
    [ "$(tree "$BATS_TEST_TMPDIR")" = "$before" ]
}
