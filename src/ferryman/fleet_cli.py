"""`ferryman fleet`: what a fleet's devices sent, asked of the collector's store."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ferryman.capacity_cli import capacity
from ferryman.compare_cli import Share
from ferryman.fleet_answer import answer, opened
from ferryman.options import DATABASE, DATABASE_VARIABLE, PATH, Seconds
from ferryman.runtime.say import echo, in_place, json_text
from ferryman.silence_cli import silence, silences, unsilence

if TYPE_CHECKING:
    from ferryman.devices.fleet.store.store import Store

C = TypeVar("C", bound=Callable[..., Any])
_FOLLOW_S = 1.0


class _Group(click.Group):
    """Lists commands in the order in which they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(self.commands)


@click.group(cls=_Group)
def fleet() -> None:
    """Ask what devices sent: how the fleet does, device by device, and why.

    \b
    A QUERY says which devices: terms between commas must all hold, | means or.
      kitchen, pi-*     by name; * stands for anything
      site=lab          by label; also site!=lab, and site~la for a part of it
      model~pi 5        by the kind of device
      !kitchen          not

    \b
    A TIME is one of:
      2h, 7d            so long ago
      2026-11-26T18:00  a date or a time, in UTC if it names no zone

    Answers come from the database that `ferryman collect` writes. What an answer leaves out is said.
    """  # noqa: D301  # click wants the very character, where it shall not wrap


def _asking(since: str) -> Callable[[C], C]:
    """Adds what all commands share: which devices, since when, out of which database, and how to answer."""

    def add(command: C) -> C:
        for option in (
            click.option("--json", "as_json", is_flag=True, help="Print one JSON document; docs/telemetry/query.md."),
            click.option("--since", metavar="TIME", help=f"Only from then on [default: {since}]."),
            click.option("--device", help="Only the device of this name."),
            click.option(
                "--database",
                metavar="FILE|URL",
                default=DATABASE,
                envvar=DATABASE_VARIABLE,
                show_default=True,
                show_envvar=True,
                help="SQLite file, or postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE.",
            ),
            click.argument("query", required=False),
        ):
            command = option(command)
        return command

    return add


_until = click.option("--until", metavar="TIME", help="Only before then [default: now].")


def _limit(default: int, what: str) -> Callable[[C], C]:
    return click.option(
        "--limit", type=click.IntRange(min=0), default=default, show_default=True, help=f"{what} at most; 0: all."
    )


@fleet.command()
@_asking("1h")
@click.option("--watch", type=Seconds(), metavar="SECONDS", help="Show it anew every so often, until interrupted.")
def status(
    query: str | None, database: str, device: str | None, since: str | None, watch: float | None, *, as_json: bool
) -> None:
    """Sum the fleet up on one screen: who is there, what it serves, how it does, who stands out."""
    from ferryman.devices.fleet.query.status import fleet_status
    from ferryman.fleet_show import status_text
    from ferryman.show import layout

    def once(store: Store) -> None:
        found = fleet_status(store, now_ns=time.time_ns(), query=query, device=device, since=since)
        if watch is not None and not as_json and sys.stdout.isatty():
            click.clear()
        width, colour = layout()
        answer(found, lambda: status_text(found, width, colour=colour), as_json=as_json)

    with opened(database) as store:
        once(store)
        while watch is not None:
            time.sleep(watch)
            once(store)


@fleet.command()
@_asking("1h, in whole hours, for latency, inferences and errors")
@_until
@click.option("--sort", default="name", show_default=True, metavar="WHAT", help="What comes first; see below.")
@_limit(50, "Devices")
def devices(query: str | None, database: str, sort: str, limit: int, *, as_json: bool, **asked: Any) -> None:  # noqa: ANN401  # click has checked them
    """Show a row for each device.

    \b
    --sort:
      name                          in order of names
      seen, offline                 the last seen; those offline for longest
      errors, latency, temperature  most errors, slowest by p95, hottest
      waiting, dropped              fullest outbox, most records dropped
    """  # noqa: D301  # click wants the very character, where it shall not wrap
    from ferryman.devices.fleet.query.devices import device_rows
    from ferryman.fleet_show import devices_text
    from ferryman.show import layout

    now_ns = time.time_ns()
    with opened(database) as store:
        found = device_rows(store, now_ns=now_ns, query=query, sort=sort, limit=limit or None, **asked)
    width, colour = layout()
    answer(found, lambda: devices_text(found, now_ns, width, colour=colour), as_json=as_json)


@fleet.command()
@_asking("all")
@_until
@click.option("--package", help="Only this one: its name, or how its SHA-256 begins.")
@_limit(50, "Measurements")
def runs(query: str | None, database: str, limit: int, *, as_json: bool, **asked: Any) -> None:  # noqa: ANN401  # as above
    """Show measurements of `ferryman profile` across the fleet, the newest first.

    `ferryman report` tells all of each.
    """
    from ferryman.devices.fleet.query.runs import runs as ask
    from ferryman.fleet_show import runs_text
    from ferryman.show import layout

    with opened(database) as store:
        found = ask(store, now_ns=time.time_ns(), query=query, limit=limit or None, **asked)
    width, colour = layout()
    answer(found, lambda: runs_text(found, width, colour=colour), as_json=as_json)


@fleet.command()
@_asking("1d, in whole hours")
@_until
@click.option(
    "--by",
    default="package",
    show_default=True,
    metavar="WHAT",
    help="package, model, device, release, ferryman, or the name of a label.",
)
@click.option("--baseline", metavar="GROUP", help="What the others are over [default: that of most samples].")
@click.option("--metric", "metrics", multiple=True, help="May be given twice [default: the usual ones].")
@click.option("--margin", type=Share(), default="2%", show_default=True, help="What counts as the same.")
def compare(query: str | None, database: str, metrics: tuple[str, ...], *, as_json: bool, **asked: Any) -> None:  # noqa: ANN401  # as above
    """Set groups of devices side by side, by what they sent while they served.

    A device is one value, its median, however much it served; between devices, an hour is. The verdict holds for the
    whole 95 % interval of the ratio. It tells that groups differ, not why: `ferryman compare` measures in turn.
    """
    from ferryman.devices.fleet.query.compare import METRICS
    from ferryman.devices.fleet.query.compare import compare as ask
    from ferryman.fleet_show import comparison_text
    from ferryman.show import layout

    with opened(database) as store:
        found = ask(store, now_ns=time.time_ns(), query=query, metrics=metrics or METRICS, **asked)
    width, colour = layout()
    answer(found, lambda: comparison_text(found, width, colour=colour), as_json=as_json)


@fleet.command()
@_asking("all")
@_until
@click.option("--level", help="WARNING, ERROR or CRITICAL: this or worse.")
@click.option("--grep", metavar="REGEX", help="Only lines with this in the message or the logger's name.")
@click.option("--follow", is_flag=True, help="Go on with lines as they arrive, until interrupted.")
@_limit(100, "Lines")
def logs(
    query: str | None,
    database: str,
    device: str | None,
    level: str | None,
    grep: str | None,
    limit: int,
    *,
    follow: bool,
    as_json: bool,
    **asked: Any,  # noqa: ANN401  # as above
) -> None:
    """Show what agents logged, the newest last.

    A time with ? is of a clock that was not sure; with ~ it was corrected afterwards.
    With --follow, --json prints a document a line: first the lines that were there, then each line that comes.
    """
    from ferryman.devices.fleet.query.logs import Following
    from ferryman.devices.fleet.query.logs import logs as ask
    from ferryman.fleet_show import log_line
    from ferryman.runtime.contracts.record import encode
    from ferryman.show import say

    shared: dict[str, Any] = {"query": query, "device": device, "level": level, "grep": grep}
    with opened(database) as store:
        now_ns = time.time_ns()
        following = Following(store, from_ns=now_ns, **shared)
        found = ask(store, now_ns=now_ns, limit=limit or None, **shared, **asked)
        following.seen(found)
        answer(found, lambda: "\n".join(map(log_line, found.rows)), as_json=as_json)
        while follow:
            time.sleep(_FOLLOW_S)
            for row in following():
                say(json_text(encode(row)) if as_json else log_line(row))
            sys.stdout.flush()


@fleet.command()
@_asking("all")
@_until
@click.option("--past", is_flag=True, help="Also those that no longer hold.")
@_limit(100, "Alerts")
def alerts(query: str | None, database: str, limit: int, *, as_json: bool, **asked: Any) -> None:  # noqa: ANN401  # as above
    """Show what is the matter now, and with --past what was."""
    from ferryman.devices.fleet.query.alerts import alerts as ask
    from ferryman.fleet_show import alerts_text
    from ferryman.show import layout

    now_ns = time.time_ns()
    with opened(database) as store:
        found = ask(store, now_ns=now_ns, query=query, limit=limit or None, **asked)
    width, colour = layout()
    answer(found, lambda: alerts_text(found, now_ns, width, colour=colour), as_json=as_json)


for command in (silence, silences, unsilence):
    fleet.add_command(command)


@fleet.command()
@click.argument("what", metavar="samples|measurements|logs|rollups")
@_asking("all")
@_until
@click.option("--to", "path", type=PATH, required=True, metavar="FILE", help=".parquet, .csv or .lp (line protocol).")
def export(what: str, query: str | None, database: str, path: Path, *, as_json: bool, **asked: Any) -> None:  # noqa: ANN401  # as above
    """Write samples, measurements, logs or rollups to a file, whole or not at all.

    To go on later, give --since what this prints as the next; docs/telemetry/query.md has the columns.
    """
    from ferryman.devices.fleet.exports.export import check_target
    from ferryman.devices.fleet.exports.export import export as run
    from ferryman.show import check_targets

    check_target(path, Path(database) if "://" not in database else None)
    check_targets(path, None, None)
    now_ns = time.time_ns()
    live = sys.stderr.isatty()

    def told(rows: int) -> None:
        in_place(f"{rows:,} {what}")

    with opened(database) as store:
        found = run(store, what, path, now_ns=now_ns, query=query, progress=told if live else lambda _: None, **asked)
    if live:
        in_place("")
    then = "" if found.last_ns is None else f"; next: --since {min(found.last_ns + 1, now_ns)}"
    answer(found, lambda: f"{path}: {found.rows:,} {what}, {found.bytes:,} bytes{then}", as_json=as_json)


@fleet.command("copy")
@click.argument("source", metavar="FILE")
@click.argument("target", metavar="URL")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def copy_(source: str, target: str, *, as_json: bool) -> None:
    """Carry a SQLite store to an empty PostgreSQL database: everything, counted on both sides.

    \b
    Stop the collector first: devices keep what they measure. Then start one with
    --database URL. Interrupted, run it again: it goes on where it was.
    """  # noqa: D301  # click wants the very character, where it shall not wrap
    from ferryman.devices.fleet.collector.carry import carry

    live = sys.stderr.isatty()

    def told(table: str, done: int, total: int) -> None:
        in_place(f"{table}: {done:,} of {total:,}")

    found = carry(source, target, told if live else lambda *_: None)
    if live:
        in_place("")
    if as_json:
        echo(json.dumps({"type": "fleet-copy", "tables": [one._asdict() for one in found]}))
        return
    for one in found:
        refused = f", {one.refused:,} refused" if one.refused else ""
        echo(f"{one.table:12}{one.rows - one.refused:>14,} rows on both sides{refused}")


fleet.add_command(capacity)
