#!/bin/sh
# Build the aarch64 wheel into dist/ on another machine. Needs g++-aarch64-linux-gnu, and $PYTHON (default: the
# checkout's .venv) with the packages of pyproject.toml's build-system and `build`.
set -eu
cd "$(dirname "$0")/../.."
if ! command -v aarch64-linux-gnu-g++ >/dev/null; then
  echo "cross_aarch64.sh: aarch64-linux-gnu-g++ not found; install g++-aarch64-linux-gnu" >&2
  exit 1
fi
_PYTHON_HOST_PLATFORM=linux-aarch64 "${PYTHON:-.venv/bin/python}" -m build --wheel --no-isolation --outdir "${1:-dist}" \
  "-Ccmake.define.CMAKE_TOOLCHAIN_FILE=$PWD/runtime/native/aarch64.cmake"
