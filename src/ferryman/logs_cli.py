"""`ferryman logs`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from ferryman.options import devices_option, find
from ferryman.runtime.say import echo, printable

_FOLLOW_S = 2.0
_LINES = click.IntRange(1, 5_000)
"""At once; what a transport carries is bounded."""


@click.command()
@click.argument("device")
@click.option("--lines", "-n", type=_LINES, default=100, show_default=True, help="How many, the newest last.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until interrupted.")
@devices_option
def logs(device: str, lines: int, devices_file: Path | None, *, follow: bool) -> None:
    """Show what DEVICE's agent said in the journal there, over SSH.

    Who logs in must be allowed to read it: `provision.sh --journal`. What agents sent of their warnings is in the
    collector's database: `ferryman fleet logs`.
    """
    from ferryman.devices.fleet.inventory import connect
    from ferryman.devices.fleet.journal import UNIT, Journal, check_has_journal

    target = find(device, devices_file)
    check_has_journal(target)
    with connect(target) as transport:
        journal = Journal(target, transport)
        found = journal.read(lines)
        if not found:
            echo(f"the journal there has nothing of {UNIT}; has it been provisioned and started?", err=True)
        while True:
            for line in found:
                echo(printable(line))
            if not follow:
                break
            sys.stdout.flush()
            time.sleep(_FOLLOW_S)
            found = journal.read(lines)
