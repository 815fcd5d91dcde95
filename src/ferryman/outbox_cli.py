"""`ferryman outbox`: on the device, what telemetry waits to be sent, and how much the link may be used."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ferryman.options import outbox_option
from ferryman.runtime.contracts.errors import CallerError, FerrymanError, to_wire
from ferryman.runtime.contracts.record import Record, encode
from ferryman.runtime.install_cli import root_option
from ferryman.runtime.say import echo

if TYPE_CHECKING:
    from ferryman.devices.agent.outbox import Outbox

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, of errors too.")


class WaitingShown(Record):
    """What waits of one kind."""

    kind: str
    priority: str
    """bulk, normal or vital."""
    records: int
    bytes: int
    oldest_ns: int
    """Unix epoch, by the device's clock then."""


class DroppedShown(Record):
    """What was ever dropped of one kind."""

    kind: str
    priority: str
    aged: bool
    """Too old; else for want of room."""
    records: int


class OutboxShown(Record):
    """What `ferryman outbox show --json` prints."""

    mode: str
    records: int
    bytes: int
    """Of the bodies, and 128 for each."""
    dropped: int
    """Over the outbox's life."""
    waiting: tuple[WaitingShown, ...]
    drops: tuple[DroppedShown, ...]
    day_spent_bytes: int
    day_max_bytes: int | None
    """As the agent was last told; None: no limit."""
    receipt_ns: int | None
    """When something was last vouched for; None: never."""


@click.group()
def outbox() -> None:
    """On the device: what telemetry waits to be sent, and how much the link may be used."""


@outbox.command()
@click.argument("mode", required=False, type=click.Choice(["full", "metered", "offline"]))
@root_option
@outbox_option
@_json_option
def mode(mode: Any, root: Path, outbox: Path | None, as_json: bool) -> None:  # noqa: ANN401  # click has checked it
    """Switch the agent of this device: it follows within a second, and keeps to it after a restart.

    Without MODE, show it.

    \b
    full      send everything
    metered   send what matters, every 15 minutes; samples and logs wait
    offline   do not connect: no telemetry, no requests, no updates
    """  # noqa: D301  # click wants the very character, where it shall not wrap
    from ferryman.devices.agent.modes import Switch, switch

    if mode is None:
        mode = _answer(lambda: _look(root, outbox), as_json).mode
    else:
        _answer(lambda: switch(root, mode), as_json)
    echo(encode(Switch(mode=mode)) if as_json else f"{root}: mode {mode}")


@outbox.command()
@root_option
@outbox_option
@_json_option
def show(root: Path, outbox: Path | None, as_json: bool) -> None:
    """Show what waits by kind, what was dropped, what was spent today, the mode, and the last receipt."""
    shown = _answer(lambda: _look(root, outbox), as_json)
    if as_json:
        echo(encode(shown))
        return
    now_ns = time.time_ns()
    limit = f" of {shown.day_max_bytes:,}" if shown.day_max_bytes is not None else ""
    echo(f"mode {shown.mode}; {shown.day_spent_bytes:,}{limit} bytes spent today")
    echo(f"last receipt {_ago(shown.receipt_ns, now_ns)}")
    echo(f"{shown.records:,} records wait, {shown.bytes:,} bytes; {shown.dropped:,} were ever dropped")
    for one in shown.waiting:
        echo(
            f"  {one.kind} ({one.priority}): {one.records:,} records, {one.bytes:,} bytes, "
            f"the oldest {_ago(one.oldest_ns, now_ns)}"
        )
    for drop in shown.drops:
        why = "too old" if drop.aged else "for want of room"
        echo(f"  dropped {drop.kind} ({drop.priority}): {drop.records:,} records, {why}")


def _look(root: Path, folder: Path | None) -> OutboxShown:
    from ferryman.devices.agent.outbox import FILE, Outbox

    path = (folder or root) / FILE
    if not path.is_file():
        raise CallerError(f"{path} is not there: no agent has run with this --{'outbox' if folder else 'root'}")
    box = Outbox(path)
    try:
        return _shown(root, box)
    finally:
        box.close()


def _shown(root: Path, box: Outbox) -> OutboxShown:
    from ferryman.devices.agent.modes import Modes
    from ferryman.devices.agent.spending import read_account

    account, counts = read_account(box), box.counts()
    return OutboxShown(
        mode=Modes(root, account.mode).now(),
        records=counts.records,
        bytes=counts.bytes,
        dropped=counts.dropped,
        waiting=tuple(
            WaitingShown(
                kind=one.kind,
                priority=one.priority.name.lower(),
                records=one.records,
                bytes=one.bytes,
                oldest_ns=one.oldest_ns,
            )
            for one in box.kinds()
        ),
        drops=tuple(
            DroppedShown(kind=one.kind, priority=one.priority.name.lower(), aged=one.aged, records=one.records)
            for one in box.drops()
        ),
        day_spent_bytes=account.spent_bytes,
        day_max_bytes=account.day_max_bytes,
        receipt_ns=box.receipt_ns(),
    )


def _ago(then_ns: int | None, now_ns: int) -> str:
    if then_ns is None:
        return "never"
    seconds = (now_ns - then_ns) / 1e9
    if seconds < 0:
        return "by a clock that was ahead of now"
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"


def _answer(work: Callable[[], Any], as_json: bool) -> Any:  # noqa: ANN401  # what `work` returns
    try:
        return work()
    except FerrymanError as error:
        if not as_json:
            raise
        echo(encode(to_wire(error)))
        sys.exit(1)
