#!/usr/bin/env bats
# mark_good.sh and rollback.sh: whom they call, as whom, and what they say where ferryman does not run.
# tests/integration/test_firmware_slots.py has them with the real ferryman.

# shellcheck disable=SC2016,SC2030,SC2031

load helpers

setup() {
    ROOT=$BATS_TEST_TMPDIR/root
    mkdir "$ROOT"
    export TOLD=$BATS_TEST_TMPDIR/told
    : >"$TOLD"
    chmod 666 "$TOLD"
    chmod 755 "$BATS_TEST_TMPDIR" "$(dirname "$BATS_TEST_TMPDIR")" "$BATS_RUN_TMPDIR"
    fake ferryman <<'END'
#!/bin/sh
echo "$(id -un): $* in $(pwd)" >>"$TOLD"
END
}

called() { "$SCRIPTS/$1" --root "$ROOT" --command "$BATS_TEST_TMPDIR/bin/ferryman" "${@:2}"; }

@test "each calls its own command" {
    expect 0 called mark_good.sh
    expect 0 called rollback.sh
    run cat "$TOLD"
    says "confirm --root $ROOT"
    says "rollback --root $ROOT"
}

# bats test_tags=arch
@test "root calls it as the owner of the root folder" {
    needs_root
    chown daemon "$ROOT"
    expect 0 called mark_good.sh
    [ "$(tail -n 1 "$TOLD")" = "daemon: confirm --root $ROOT in /" ]
}

@test "who is neither root nor the owner is told so" {
    needs_root
    chown daemon "$ROOT"
    expect 1 runuser -u nobody -- "$SCRIPTS/rollback.sh" --root "$ROOT" --command "$BATS_TEST_TMPDIR/bin/ferryman"
    says "is daemon's; run this as root or as daemon"
    [ ! -s "$TOLD" ]
}

@test "where ferryman is not there, or does not run, nothing is changed and it says what to do" {
    expect 1 "$SCRIPTS/mark_good.sh" --root "$BATS_TEST_TMPDIR/none" --command "$BATS_TEST_TMPDIR/bin/ferryman"
    says "name the root folder with --root"
    for script in mark_good.sh rollback.sh; do
        fake ferryman <<<'#!/bin/sh
echo "No module named msgspec" >&2
exit 1'
        expect 1 called "$script"
        says "No module named msgspec"
        says "does not run, so nothing was changed"
        fake ferryman <<<'#!/no/such/python'
        expect 1 called "$script"
        says "does not run, so nothing was changed"
        expect 2 "$SCRIPTS/$script" --command /no/such/ferryman
    done
}

@test "a failure of ferryman's is exit code 1, whatever its own" {
    fake ferryman <<<'#!/bin/sh
[ "$1" = --version ] && exit 0
exit 2'
    expect 1 called rollback.sh
    says "failed (exit 2)"
}

@test "a dry run says what would be run" {
    for script in mark_good.sh rollback.sh; do
        expect 0 called "$script" --dry-run
        says "would run: $BATS_TEST_TMPDIR/bin/ferryman"
    done
    [ ! -s "$TOLD" ]
}
