"""The table `alerts`: what holds, what held, and what somebody has yet to be told of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.alert import Alert

_TABLE = tables.alerts
_COLUMNS = (
    _TABLE.c.id,
    _TABLE.c.told_ns,
    _TABLE.c.device,
    _TABLE.c.rule,
    _TABLE.c.severity,
    _TABLE.c.text,
    _TABLE.c.subject,
    _TABLE.c.value,
    _TABLE.c.bound,
    _TABLE.c.since_ns,
    _TABLE.c.until_ns,
)


class Kept(NamedTuple):
    """One row."""

    id: int
    told: bool
    """Whether everybody was told of its last change."""
    alert: Alert


def read(store: Store) -> list[Kept]:
    """What holds, or is to be told of.

    Raises:
        StoreError: the store cannot be read.
    """
    query = select(*_COLUMNS).where(or_(_TABLE.c.until_ns.is_(None), _TABLE.c.told_ns.is_(None)))
    names = [column.name for column in _COLUMNS[2:]]
    return [
        Kept(id=which, told=told_ns is not None, alert=Alert(**dict(zip(names, rest, strict=True))))
        for which, told_ns, *rest in map(tuple, store.read(query.order_by(_TABLE.c.id)))
    ]


def is_over(store: Store, alert: Alert) -> bool:
    """Whether this very alert was raised here, and ended.

    Raises:
        StoreError: the store cannot be read.
    """
    same = [_TABLE.c[name] == getattr(alert, name) for name in ("device", "rule", "since_ns")]
    return bool(store.read(select(_TABLE.c.id).where(*same, _TABLE.c.until_ns.is_not(None)).limit(1)))


def change(store: Store, opened: Sequence[Alert], over: Sequence[int], now_ns: int) -> None:
    """Put down what was raised and what is over; of a device and rule one alert is open, whoever raised it first.

    Raises:
        StoreError: the store cannot be written; nothing was.
    """
    if not opened and not over:
        return
    insert = (postgresql if store.dialect == "postgresql" else sqlite).insert
    rows: list[dict[str, Any]] = [{name: getattr(alert, name) for name in Alert.__struct_fields__} for alert in opened]
    end = update(_TABLE).where(_TABLE.c.id == bindparam("which"), _TABLE.c.until_ns.is_(None))

    def work(connection: Connection) -> None:
        if rows:
            connection.execute(insert(_TABLE).on_conflict_do_nothing(), rows)
        if over:
            connection.execute(end.values(until_ns=now_ns, told_ns=None), [{"which": one} for one in over])

    store.write(work)


def forget(store: Store, before_ns: int) -> None:
    """Delete what was over before a time, and told.

    Raises:
        StoreError: the store cannot be written.
    """
    old = delete(_TABLE).where(_TABLE.c.until_ns < before_ns, _TABLE.c.told_ns.is_not(None))
    store.write(lambda connection: connection.execute(old) and None)


def mark_told(store: Store, told: Sequence[tuple[int, bool]], now_ns: int) -> None:
    """Everybody was told of these alerts (id, and whether it was over): unless they have changed since.

    Raises:
        StoreError: the store cannot be written.
    """
    if not told:
        return
    mark = (
        update(_TABLE)
        .where(_TABLE.c.id == bindparam("which"), _TABLE.c.until_ns.is_not(None) == bindparam("over"))
        .values(told_ns=now_ns)
    )
    rows = [{"which": one, "over": over} for one, over in told]
    store.write(lambda connection: connection.execute(mark, rows) and None)
