"""What is the matter, and what was."""

from __future__ import annotations

from sqlalchemy import or_, select

from ferryman.devices.fleet.query.asked import checked_limit
from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.records import AlertRow, Alerts
from ferryman.devices.fleet.query.who import who
from ferryman.devices.fleet.query.window import window
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store

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
        select(*(table.c[name] for name in AlertRow.__struct_fields__))
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
    found = [AlertRow(**row._asdict()) for row in rows[:_READ_MAX] if devices.means(str(row.device))]
    shown = found if limit is None else found[:limit]
    if len(shown) < len(found):
        left_out.say(f"{len(found) - len(shown):,} of {len(found):,} alerts; raise the limit, or narrow them down")
    return Alerts(rows=tuple(shown), total=len(found), left_out=left_out.words())
