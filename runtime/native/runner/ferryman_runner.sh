#!/bin/sh
# Starts ferryman_runner with the C library that lies beside it, wherever this folder is; any POSIX shell will do.
self=$0
while [ -h "$self" ]; do
  target=$(readlink "$self") || exit 1
  case $target in
    /*) self=$target ;;
    *) self=${self%"${self##*/}"}$target ;;
  esac
done
case $self in
  */*) here=${self%/*} ;;
  *) here=. ;;
esac
loader=$here/lib/@LOADER@
fail() {
  printf '{"error":{"party":"device","message":"%s"}}\n' "$1"
  exit 1
}
case $here in
  *[:\;]*) fail "the folder of ferryman_runner has a colon or a semicolon in its path, which its loader takes for two; move it" ;;
esac
[ -f "$loader" ] || fail "lib/@LOADER@ is not beside this script; unpack the whole folder again"
[ -x "$loader" ] || fail "lib/@LOADER@ may not be run: the file has lost its mode, or the folder lies on a file system mounted noexec; on Android take /data/local/tmp"
# Of another C library, such as Termux's.
unset LD_PRELOAD LD_LIBRARY_PATH
exec "$loader" --library-path "$here/lib" "$here/bin/ferryman_runner" "$@"
