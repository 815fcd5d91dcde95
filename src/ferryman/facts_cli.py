"""`ferryman facts`: what this device is and has, for people, and for `ferryman devices probe` on the host."""

from __future__ import annotations

from pathlib import Path

import click

from ferryman.runtime.install_cli import answer, root_option
from ferryman.runtime.say import echo


@click.command()
@root_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, of errors too.")
def facts(root: Path, as_json: bool) -> None:
    """Print what this device is and has: processor, memory, system, interpreters, sensors, room, clock."""
    from ferryman.devices.agent.own_facts import own_facts

    found = answer(lambda: own_facts(root), as_json)
    from ferryman.describe_facts import describe_facts

    echo(describe_facts(found))
