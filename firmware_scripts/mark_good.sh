#!/bin/sh
# mark_good.sh [--root DIR] [--command PATH] [--dry-run]: the package that serves on trial serves for good from now on.
#
# For an administrator, or for a health check at boot: `my-check && mark_good.sh`. Without it the agent judges the
# trial by itself. A running agent notices within a second or two and reports it; nothing is restarted.
#
#   --root DIR      folder of slots and outbox (default: /var/lib/ferryman, or $FERRYMAN_ROOT)
#   --command PATH  how ferryman is called (default: /opt/ferryman/bin/ferryman)
#   --dry-run       say what would be run, and change nothing
#   --help, -h      this text
#
# Exit codes: 0 it serves for good, or none is on trial; 1 it could not be done, and the trial goes on; 2 wrong usage.
# Run as root or as the owner of the root folder. Undo: rollback.sh, while there is a package before.
set -eu
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"

on_the_root confirm "$@"
