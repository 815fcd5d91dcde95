"""`ferryman fleet silence`, `silences`, `unsilence`: nobody is told of some alerts, for a while."""

from __future__ import annotations

import time

import click

from ferryman.fleet_answer import answer, opened
from ferryman.options import database_option

_database = database_option("The collectors' store: SQLite file, or postgresql://...")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document; docs/telemetry/query.md.")
_by = click.option("--by", metavar="WHO", help="Who asks [default: USER@HOST].")


@click.command()
@click.argument("query")
@click.option(
    "--rule", "rules", multiple=True, metavar="RULE", help="Only this one; may be given twice [default: all]."
)
@click.option("--for", "span", required=True, metavar="SPAN", help="How long: 30m, 2h, 7d; 30d at most.")
@click.option("--why", required=True, metavar="TEXT", help="For whoever wonders why nobody was told.")
@_by
@_database
@_json
def silence(
    query: str, rules: tuple[str, ...], span: str, why: str, by: str | None, database: str, *, as_json: bool
) -> None:
    """Have nobody told of alerts of the devices that QUERY means, for a while.

    All collectors of the store obey within seconds. The alerts stand in `ferryman fleet alerts` and on MQTT as before;
    what holds still at the end is told then, and what is over by then is not.
    """
    from ferryman.devices.fleet.alerts import silences as kept
    from ferryman.devices.fleet.query.alerts import alerts
    from ferryman.devices.fleet.query.records import Silences
    from ferryman.devices.fleet.query.window import parse_span
    from ferryman.devices.fleet.rollout.start import whoami
    from ferryman.fleet_show import utc

    now_ns = time.time_ns()
    for_s = parse_span(span)
    with opened(database, write=True) as store:
        made = kept.add(store, query, rules, for_s=for_s, by=by or whoami(), why=why, now_ns=now_ns)
        holding = alerts(store, now_ns=now_ns, limit=None).rows
    silenced = sum(row.silence is not None for row in holding)
    until = utc(made.until_ns)
    words = (
        f"{silenced:,} of {len(holding):,} alerts that hold are silenced; `ferryman fleet unsilence {made.id}` ends it"
    )
    found = Silences(now_ns=now_ns, rows=(made,))
    answer(found, lambda: f"silence {made.id} until {until} UTC: {words}", as_json=as_json)


@click.command()
@click.option("--past", is_flag=True, help="Also those that are over.")
@_database
@_json
def silences(database: str, *, past: bool, as_json: bool) -> None:
    """Show who silenced what, until when, and why; those of rules files stand there."""
    from ferryman.devices.fleet.alerts import silences as kept
    from ferryman.devices.fleet.query.records import Silences
    from ferryman.fleet_show import silences_text
    from ferryman.show import layout

    now_ns = time.time_ns()
    with opened(database) as store:
        rows = kept.read(store, now_ns=None if past else now_ns)
    found = Silences(now_ns=now_ns, rows=tuple(rows))
    width, colour = layout()
    answer(found, lambda: silences_text(found, width, colour=colour), as_json=as_json)


@click.command()
@click.argument("number", type=int)
@_by
@_database
@_json
def unsilence(number: int, by: str | None, database: str, *, as_json: bool) -> None:
    """End the silence of that NUMBER now: what holds still is told."""
    from ferryman.devices.fleet.alerts import silences as kept
    from ferryman.devices.fleet.query.records import Silences
    from ferryman.devices.fleet.rollout.start import whoami

    now_ns = time.time_ns()
    with opened(database, write=True) as store:
        ended = kept.end(store, number, by or whoami(), now_ns)
    answer(Silences(now_ns=now_ns, rows=(ended,)), lambda: f"silence {ended.id} is over", as_json=as_json)
