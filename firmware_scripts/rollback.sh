#!/bin/sh
# rollback.sh [--root DIR] [--command PATH] [--dry-run]: the package before serves again.
#
# Its files are read back and hashed first: where they are damaged, or there is no package before, nothing is changed.
# What serves now is marked as bad, so that the agent does not bring it back by itself. Requests are answered by the
# package before from the next one on; a running agent reports it within a second or two; nothing is restarted.
#
#   --root DIR      folder of slots and outbox (default: /var/lib/ferryman, or $FERRYMAN_ROOT)
#   --command PATH  how ferryman is called (default: /opt/ferryman/bin/ferryman)
#   --dry-run       say what would be run, and change nothing
#   --help, -h      this text
#
# Exit codes: 0 the package before serves; 1 it could not be done, and what served serves on; 2 wrong usage.
# There is one way back: a second run ends with 1. Run as root or as the owner of the root folder. Undo: push the package
# again.
set -eu
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"

on_the_root rollback "$@"
