# What the .bats files here share: `load helpers`. In a root (tests/integration/test_firmware_bats.py) the scripts are
# at /firmware_scripts; on the host, beside the tests.
SCRIPTS=${FIRMWARE_SCRIPTS:-$(cd "$BATS_TEST_DIRNAME/../../firmware_scripts" && pwd)}

# Says why and skips, unless it is a root made for this, that may be changed.
needs_root_of_its_own() {
    [ -n "${FERRYMAN_TEST_ROOT:-}" ] || skip "changes the system: only in a root of its own"
}

needs_root() {
    [ "$(id -u)" -eq 0 ] || skip "needs root"
}

# expect CODE COMMAND...: runs it; shows what it said where the exit code is another.
expect() {
    local code=$1
    shift
    run "$@"
    if [ "$status" -ne "$code" ]; then
        echo "expected exit code $code, found $status: $*"
        echo "$output"
        return 1
    fi
}

# says TEXT: in what the last `run` or `expect` printed. says_not TEXT: not there.
says() {
    if [[ "$output" != *"$1"* ]]; then
        echo "expected: $1"
        echo "found: $output"
        return 1
    fi
}

says_not() {
    if [[ "$output" == *"$1"* ]]; then
        echo "not expected: $1"
        echo "found: $output"
        return 1
    fi
}

# tree FOLDER...: every file there, with times, modes, owners and contents.
tree() {
    find "$@" -printf '%p %y %m %u:%g %T@ %l\n' | sort
    find "$@" -type f -exec cksum {} + | sort
}

# fake NAME <script: a program of this name comes first on PATH.
fake() {
    mkdir -p "$BATS_TEST_TMPDIR/bin"
    cat >"$BATS_TEST_TMPDIR/bin/$1"
    chmod +x "$BATS_TEST_TMPDIR/bin/$1"
    case $PATH in "$BATS_TEST_TMPDIR/bin:"*) ;; *) PATH=$BATS_TEST_TMPDIR/bin:$PATH ;; esac
}
