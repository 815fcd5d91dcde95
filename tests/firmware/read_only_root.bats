#!/usr/bin/env bats
# read_only_root.sh over fstab files of its own.

load helpers

setup() {
    needs_root
    FSTAB=$BATS_TEST_TMPDIR/fstab
    cat >"$FSTAB" <<'END'
# a Raspberry Pi
proc            /proc           proc    defaults          0       0
PARTUUID=1-01  /boot/firmware  vfat    defaults          0       2
PARTUUID=1-02  /               ext4    defaults,noatime  0       1
END
}

change() { "$SCRIPTS/read_only_root.sh" --fstab "$FSTAB" "$@"; }

# what FOLDER COLUMN: as findmnt, which mounts by it, reads the file.
what() { findmnt --tab-file "$FSTAB" --noheadings --output "$2" "$1"; }

# bats test_tags=arch
@test "read-only, state on its own, twice the same, and undone" {
    cp "$FSTAB" "$BATS_TEST_TMPDIR/before"
    expect 0 change --state LABEL=ferryman
    [[ "$(what / OPTIONS)" = ro,* ]]
    [ "$(what /var/lib/ferryman SOURCE)" = LABEL=ferryman ]
    [[ "$(what /var/lib/ferryman OPTIONS)" = *noexec* ]]
    [ "$(what /tmp FSTYPE)" = tmpfs ]
    [ "$(what /boot/firmware FSTYPE)" = vfat ]
    expect 0 change --state LABEL=ferryman
    says "nothing to do"
    expect 0 change --state /dev/sda3
    [ "$(what /var/lib/ferryman SOURCE)" = /dev/sda3 ]
    expect 0 change --undo
    tr -s ' ' <"$BATS_TEST_TMPDIR/before" | diff - <(tr -s ' ' <"$FSTAB")
    expect 0 change --undo
    says "nothing to do"
}

@test "a root that was ro or rw before is so again" {
    for was in ro,noatime rw rw,errors=remount-ro defaults; do
        echo "/dev/x / ext4 $was 0 1" >"$FSTAB"
        expect 0 change --state UUID=1
        [[ ",$(what / OPTIONS)," = *,ro,* ]]
        [[ ",$(what / OPTIONS)," != *,rw,* ]]
        expect 0 change --undo
        [ "$(what / OPTIONS)" = "$was" ]
    done
}

@test "a line that is indented, or has tabs, is changed as any other" {
    printf '  UUID=abcd\t/ ext4\tdefaults,noatime 0 1\n\tLABEL=data /data ext4 defaults 0 2\n' >"$FSTAB"
    expect 0 change --state LABEL=ferryman
    [ "$(what / OPTIONS)" = ro,defaults,noatime ]
    [ "$(what / SOURCE)" = UUID=abcd ]
    expect 0 change --undo
    [ "$(what / OPTIONS)" = defaults,noatime ]
    [ "$(what /data SOURCE)" = LABEL=data ]
}

@test "where a mark is lost nothing is changed, and it says what to do" {
    expect 0 change --state LABEL=ferryman
    echo 'LABEL=data /data ext4 defaults 0 2' >>"$FSTAB"
    cp "$FSTAB" "$BATS_TEST_TMPDIR/whole"
    for lost in '/root end/d' '/root begin/d' 's/.*root end/&\n&/' '/root begin/{p;p}'; do
        sed "$lost" "$BATS_TEST_TMPDIR/whole" >"$FSTAB"
        before=$(tree "$FSTAB")
        for words in --undo "--state LABEL=ferryman"; do
            # shellcheck disable=SC2086 # words
            expect 1 change $words
            says "read-only root end"
        done
        [ "$(tree "$FSTAB")" = "$before" ]
    done
    cp "$BATS_TEST_TMPDIR/whole" "$FSTAB"
    expect 0 change --undo
    [ "$(what /data SOURCE)" = LABEL=data ]
}

@test "mounts that are there already stay, and get no second line" {
    printf 'tmpfs /tmp/ tmpfs size=64m 0 0\nLABEL=ferryman /var/lib/ferryman ext4 nosuid 0 2\n' >>"$FSTAB"
    cp "$FSTAB" "$BATS_TEST_TMPDIR/before"
    expect 0 change --state LABEL=ferryman
    [ "$(grep -c ' /tmp' "$FSTAB") $(grep -c ' /var/lib/ferryman ' "$FSTAB") $(grep -c ' /var/tmp ' "$FSTAB")" = "1 1 1" ]
    [ "$(what /tmp OPTIONS)" = size=64m ]
    expect 0 change --state LABEL=ferryman
    says "nothing to do"
    before=$(tree "$FSTAB")
    expect 1 change --state LABEL=other
    says "LABEL=ferryman"
    [ "$(tree "$FSTAB")" = "$before" ]
    expect 0 change --undo
    tr -s ' ' <"$BATS_TEST_TMPDIR/before" | diff - <(tr -s ' ' <"$FSTAB")
}

@test "a dry run changes nothing" {
    before=$(tree "$FSTAB")
    expect 0 change --state LABEL=ferryman --dry-run
    says "would take out: PARTUUID=1-02  /               ext4    defaults,noatime  0       1
"
    says "would put in: LABEL=ferryman /var/lib/ferryman ext4 "
    says "would put in: tmpfs /var/log "
    says "would write: $FSTAB"
    says "the root would be read-only from the next start on"
    says_not "root is read-only"
    [ "$(tree "$FSTAB")" = "$before" ]
    expect 0 change --state LABEL=ferryman
    expect 0 change --state LABEL=ferryman --dry-run
    says "nothing to do"
    expect 0 change --undo --dry-run
    says "would take out: tmpfs /tmp "
    says "the root would be writable from the next start on"
    says_not "would run"
}

@test "without the file system for the state nothing is changed, and a dry run shows what would be" {
    needs_root_of_its_own
    echo 'exit 2' | fake blkid
    echo 'exit 1' | fake findfs
    mkdir -p /run/systemd/system # as where systemd runs
    before=$(tree "$FSTAB")
    run change --state LABEL=ferryman
    real="$status $output"
    run change --state LABEL=ferryman --dry-run
    rm -r /run/systemd/system
    [[ "$real" = "1 "*"no file system LABEL=ferryman here: make it first"* ]]
    [ "$status" -eq 0 ]
    says "would stop here: no file system LABEL=ferryman here: make it first"
    says "would put in: LABEL=ferryman /var/lib/ferryman ext4 "
    says "would write: $FSTAB"
    [ "$(tree "$FSTAB")" = "$before" ]
}

@test "what is wrong is said" {
    echo "/dev/x /home ext4 defaults" >"$FSTAB"
    expect 1 change --state LABEL=ferryman
    says "not exactly one line for /"
    for wrong in "" "--state" "--state nonsense" "--undo --state LABEL=x" "--sideways" "--state LABEL=a;b"; do
        # shellcheck disable=SC2086 # words
        expect 2 change $wrong
        says "--help"
    done
}
