# shellcheck shell=sh
# shellcheck disable=SC2034,SC2153,SC2154 # the variables are provision.sh's
# A part of provision.sh: the virtual environment. Each is built where it stays, below $VENVS, named by what is in it,
# and $LINK leads to it only once its ferryman has answered: one rename, before it the old one, after it the new one.

NEED_FREE_KB=300000 # ai-edge-litert and numpy take 146 MB at first, and pip unpacks beside what it downloads

check_venv_options() {
    _keep_options
    case $interpreter in litert | tflite | none) ;; *) bad_usage "--interpreter $interpreter: litert, tflite or none" ;; esac
    for _extra in $extras; do
        case $_extra in *[!A-Za-z0-9_-]*) bad_usage "--extra $_extra: a name, and once for each" ;; esac
    done
    case $wheel,$index in
    ,) bad_usage "say what to install: --wheel FILE or --index ferryman==VERSION" ;;
    *,) [ -f "$wheel" ] || die "no file $wheel: build it with make wheel-aarch64 and copy it here" ;;
    ,*[!A-Za-z0-9._+!=-]* | ,==* | ,*==) bad_usage "--index $index: name a version (ferryman==0.2.0)" ;;
    ,*==*) ;;
    ,*) bad_usage "--index $index: name a version (ferryman==0.2.0), or a second run could not tell whether it is there" ;;
    *) bad_usage "--wheel or --index, not both" ;;
    esac
    [ -z "$wheels" ] || [ -d "$wheels" ] || die "no folder $wheels: make it with pip download on another machine"
    [ -z "$wheels" ] || wheels=$(readlink -f -- "$wheels")
    # Its folder, where pip is run: to pip a path may hold extras and markers.
    [ -z "$wheel" ] || wheel=$(readlink -f -- "$wheel")
}

# What no option says is as in the environment that runs: `interpreter`, `extras`, `python`. Whoever waits for an identity makes it
# with the extra `enroll`.
_keep_options() {
    _kept=$(readlink "$LINK" || :).options
    [ -n "$interpreter" ] || interpreter=$(sed -n 's/^interpreter=//p' "$_kept" 2>/dev/null || :)
    [ -n "$interpreter" ] || interpreter=litert
    [ -n "$python" ] || python=$(sed -n 's/^python=//p' "$_kept" 2>/dev/null || :)
    case $python in
    '' | python3) python=python3 ;;
    */*) python=$(readlink -m -- "${python%/*}/")/${python##*/} ;; # itself it may be a link that matters
    *) python=$(command -v -- "$python" || say "$python") ;;
    esac
    [ -n "$extras" ] || extras=$(sed -n 's/^extras=//p' "$_kept" 2>/dev/null | tr , ' ' || :)
    if [ "$extras" = " none" ]; then extras=; fi
    if [ -n "$enroll" ] || [ -e "$WAITS" ]; then extras="$extras enroll"; fi
}

_remember_options() {
    write_file "$venv.options" 644 root <<END
interpreter=$interpreter
extras=$(_extras)
python=$python
END
}

# The extras that there are: the wheel's own, or of an index, those in --help.
_known_extras() {
    [ -n "$wheel" ] || { echo ota enroll drift i2c sparkplug && return; }
    "$python" -c 'import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    head = wheel.read(name).decode().split("\n\n")[0].splitlines()
print(*(line.split()[1] for line in head if line.startswith("Provides-Extra:")))' "$wheel" 2>/dev/null
}

check_extras() {
    _known=$(_known_extras) || die "$wheel is not whole: copy it here again"
    for _extra in $extras; do
        case " $_known " in
        *" $_extra "*) ;;
        *) bad_usage "${wheel:-$index} has no extra $_extra, but $(echo "$_known" | sed 's/ /, /g'): --extra says anew which" ;;
        esac
    done
}

check_python() {
    has "$python" || die "no $python here: apt-get install python3 python3-venv, or name another with --python"
    # shellcheck disable=SC2016 # Python's
    _found=$("$python" -c 'import platform as p, struct, sys
print(p.python_version(), 32 if struct.calcsize("P") == 4 else p.machine(), sys.version_info >= (3, 11))
try: import ensurepip, venv
except ImportError: print("no venv")') || die "$python does not run; try another with --python"
    # shellcheck disable=SC2086 # words
    set -- $_found
    [ "$3" = True ] || die "$python is Python $1, and ferryman takes 3.11 or later: Debian 12 has it; or --python PROGRAM"
    [ $# -eq 3 ] || die "$python makes no virtual environments: apt-get install python3-venv"
    machine=$2
    case $wheel in
    *-any.whl | *"_$machine.whl" | '') ;;
    *.whl) die "$wheel is not for this device, whose Python is of $([ "$machine" = 32 ] && echo "32 bits" || echo "$machine"): make wheel-aarch64 makes one for a 64-bit Raspberry Pi OS" ;;
    *) die "$wheel is no wheel: a name that ends in .whl, as make wheel-aarch64 wrote it" ;;
    esac
}

# _extras WORD...: those asked for, and these, as pip takes them.
_extras() {
    # shellcheck disable=SC2086 # words
    printf '%s\n' $extras "$@" | sed '/^$/d' | sort -u | paste -sd, -
}

_with_interpreter() { if [ "$interpreter" = none ]; then _extras; else _extras "$interpreter"; fi; }

# What the environment is named by: same name, same content.
_venv_name() {
    {
        if [ -n "$wheel" ]; then sha256sum <"$wheel"; else echo "$index"; fi
        _with_interpreter
        "$python" -c 'import sys; print(sys.version, sys.executable)'
    } | sha256sum | cut -c1-16
}

# Sets `venv`; it is complete when $venv.complete is there.
build_venv() {
    venv=$VENVS/$(_venv_name)
    if [ -e "$venv.complete" ] && _runs 2>/dev/null; then
        _remember_options
        return 0
    fi
    _requirement=$(_with_interpreter)
    [ -z "$_requirement" ] || _requirement="[$_requirement]"
    case $index in
    '') _requirement=./${wheel##*/}$_requirement ;;
    *) _requirement="${index%%==*}$_requirement==${index#*==}" ;;
    esac
    if [ -n "$DRY_RUN" ]; then
        run "$python" -m venv "$venv"
        run "$venv/bin/pip" install "$_requirement"
        return 0
    fi
    _free_kb=$(df -Pk "$VENVS" | awk 'NR == 2 { print $4 }')
    [ "$_free_kb" -ge "$NEED_FREE_KB" ] ||
        die "the disk of $VENVS has $((_free_kb / 1000)) MB free, and this takes $((NEED_FREE_KB / 1000)): make room there"
    CHANGED=1
    say "installing $_requirement into $venv"
    rm -rf "$venv" "$venv.complete"
    if ! _install "$_requirement"; then
        rm -rf "$venv"
        die "nothing was changed of what runs"
    fi
    _remember_options
    sync -f "$venv"
    : >"$venv.complete"
}

_install() {
    if [ -n "$wheels" ]; then set -- "$@" --no-index --find-links "$wheels"; fi
    _log=$venv.log
    if ! { "$python" -m venv "$venv" && (cd "${wheel%/*}/" && "$venv/bin/pip" install --disable-pip-version-check --no-input --no-cache-dir "$@"); } >"$_log" 2>&1; then
        tail -n 15 "$_log" >&2
        case $(cat "$_log") in
        *"No space left"*) warn "the disk is full: make room on that of /opt or of /tmp, and run this again" ;;
        *"is not a supported wheel"*) warn "that wheel is for another machine or another Python" ;;
        *"NewConnectionError"* | *"Temporary failure in name resolution"* | *"Network is unreachable"* | *"timed out"*)
            warn "no package index can be reached: connect the device, or bring everything along with --wheels FOLDER" ;;
        *"No matching distribution"*)
            warn "a package above is missing in $([ -n "$wheels" ] && echo "$wheels" || echo "the index"), or there is none for this machine and Python" ;;
        *) warn "pip failed: above, and in $_log" && return 1 ;;
        esac
        rm -f "$_log"
        return 1
    fi
    rm -f "$_log"
    _leave_out
    _runs || { warn "the new ferryman does not run" && return 1; }
}

# Of what pip installed, 30 MB that nothing here uses: ai-edge-litert's accelerator for GPUs, and numpy's own tests
# (tests/support/installed_size.py has the same list).
_leave_out() {
    for _site in "$venv"/lib/python3*/site-packages; do
        rm -f "$_site/ai_edge_litert/libLiteRtWebGpuAccelerator.so"
        if [ -d "$_site/numpy" ]; then find "$_site/numpy" -path '*/tests/*' -name 'test_*.py*' -delete; fi
    done
}

_runs() { as_user ferryman "$venv/bin/ferryman" --version </dev/null >/dev/null; }

# Lead $LINK to the new environment, atomically; `before` is where it led.
switch_venv() {
    before=$(readlink "$LINK" || :)
    switched=
    [ "$before" != "$venv" ] || return 0
    switched=1
    if [ -d "$LINK" ] && [ ! -L "$LINK" ]; then
        # An installation by hand. Programs in it begin with its path, so where it goes it only serves as the way back.
        say "$LINK was made by hand: it is moved to $VENVS/by-hand"
        run mv -T "$LINK" "$VENVS/by-hand"
        before=$VENVS/by-hand
    fi
    _lead_to "$venv"
}

_lead_to() {
    run ln -sfn "$1" "$LINK.new"
    run mv -fT "$LINK.new" "$LINK"
}

# The others are of use until the agent runs from the new one.
remove_old_venvs() {
    for _old in "$VENVS"/*; do
        case $_old in "$venv" | "$venv.complete" | "$venv.options" | "$VENVS/lock") continue ;; esac
        remove "$_old"
    done
}
