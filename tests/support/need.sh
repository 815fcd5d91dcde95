#!/bin/sh
# Make sure that programs are there: need.sh PROGRAM=PACKAGE... installs the Debian packages of those that are missing
# when root and apt-get are at hand, and otherwise says what is missing. Whoever can do without one goes on without it.
set -eu
PATH=$PATH:/usr/sbin:/sbin
missing=
for pair in "$@"; do
  command -v "${pair%%=*}" >/dev/null || missing="$missing ${pair#*=}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "installing:$missing"
  apt-get update -qq || true
  # shellcheck disable=SC2086  # a list of names
  if DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null; then
    exit 0
  fi
fi
echo "missing:$missing. On Debian or Ubuntu: sudo apt-get install$missing" >&2
