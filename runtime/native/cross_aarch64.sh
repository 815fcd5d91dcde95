#!/bin/sh
# Build the aarch64 wheel into a folder (default: dist) on another machine: cross_aarch64.sh [FOLDER]. Needs
# g++-aarch64-linux-gnu, and $PYTHON (default: the checkout's .venv) with the packages of pyproject.toml's build-system
# and `build`. The same sources and compiler give the same bytes, whatever the folder, the time, the umask and the locale.
set -eu
cd "$(dirname "$0")/../.."
if ! command -v aarch64-linux-gnu-g++ >/dev/null; then
  echo "cross_aarch64.sh: aarch64-linux-gnu-g++ not found; install g++-aarch64-linux-gnu" >&2
  exit 1
fi
# Built from nothing and elsewhere: what a broken toolchain left behind spoils neither the next build nor the native one.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' HUP INT TERM
export LC_ALL=C.UTF-8 TZ=UTC
unset CXXFLAGS CPPFLAGS LDFLAGS CMAKE_ARGS SKBUILD_CMAKE_ARGS
# The tag: ExecuTorch's libraries are of manylinux_2_28, and ours ask for nothing younger (older_libraries.h).
_PYTHON_HOST_PLATFORM=manylinux_2_28-aarch64 "${PYTHON:-.venv/bin/python}" -m build --wheel --no-isolation \
  --outdir "${1:-dist}" "-Cbuild-dir=$scratch" "-Ccmake.define.CMAKE_TOOLCHAIN_FILE=$PWD/runtime/native/aarch64.cmake"
