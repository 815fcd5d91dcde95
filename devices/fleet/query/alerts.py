"""What is the matter, and what was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec
from sqlalchemy import or_, select

from ferryman.devices.fleet.alerts import silences
from ferryman.devices.fleet.alerts.chosen import Chosen
from ferryman.devices.fleet.query.asked import checked_limit
from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.records import AlertRow, Alerts
from ferryman.devices.fleet.query.who import Who, who
from ferryman.devices.fleet.query.window import window
from ferryman.devices.fleet.rollout.query import Target
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.errors import CallerError

LIMIT = 100
_READ_MAX = 100_000
"""Alerts of which the newest that are meant are picked."""


def alerts(
    store: Store,
    *,
    now_ns: int,
    query: str | None = None,
    device: str | None = None,
    past: bool = False,
    since: str | int | None = None,
    until: str | int | None = None,
    limit: int | None = LIMIT,
) -> Alerts:
    """Give alerts: those that hold first, then the newest first.

    Args:
        store: where.
        now_ns: the present.
        query: only of these devices; see `ferryman.devices.fleet.rollout.query`.
        device: only of this one.
        past: also those that no longer hold.
        since: only those that held at some time from then on; None: all.
        until: only those that began before.
        limit: so many at most; None: all.

    Raises:
        CallerError: an argument is none of its kind, or there is no such device.
        StoreError: the database cannot be read.
    """
    limit = checked_limit(limit)
    left_out = LeftOut()
    within = window(since, until, now_ns, "")
    devices = who(store, query, device, left_out)
    table = tables.alerts
    ended = table.c.until_ns.is_not(None)
    wanted = (
        select(*(table.c[name] for name in AlertRow.__struct_fields__ if name in table.c))
        .where(table.c.since_ns < within.until_ns, or_(~ended, table.c.until_ns >= within.since_ns))
        .order_by(ended, table.c.since_ns.desc(), table.c.id.desc())
        .limit(_READ_MAX + 1)
    )
    if not past:
        wanted = wanted.where(~ended)
    if devices.names is not None and len(devices.names) == 1:
        wanted = wanted.where(table.c.device == next(iter(devices.names)))
    rows = store.read(wanted)
    if len(rows) > _READ_MAX:
        left_out.say(f"alerts older than the newest {_READ_MAX:,}")
    silenced = _silenced(store, devices, now_ns)
    found = [silenced(AlertRow(**row._asdict())) for row in rows[:_READ_MAX] if devices.means(str(row.device))]
    shown = found if limit is None else found[:limit]
    if len(shown) < len(found):
        left_out.say(f"{len(found) - len(shown):,} of {len(found):,} alerts; raise the limit, or narrow them down")
    return Alerts(rows=tuple(shown), total=len(found), left_out=left_out.words())


def _silenced(store: Store, devices: Who, now_ns: int) -> Callable[[AlertRow], AlertRow]:
    """What adds to an alert that holds the silence of the store that means it and lasts longest."""
    found = []
    for one in silences.read(store, now_ns=now_ns):
        with contextlib.suppress(CallerError):  # the collector's log says so
            found.append((one, Chosen(one.devices, one.rules)))

    def add(row: AlertRow) -> AlertRow:
        known = devices.known.get(row.device)
        target = Target(name=row.device) if known is None else known.target
        meant = [one for one, chosen in found if row.until_ns is None and chosen.has(row.rule, target)]
        last = max(meant, key=lambda one: one.ends_ns, default=None)
        return row if last is None else msgspec.structs.replace(row, silence=last.id, silenced_until_ns=last.ends_ns)

    return add
