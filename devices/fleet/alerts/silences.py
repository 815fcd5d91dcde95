"""The table `silences`: of which alerts nobody is told until a time, who asked for it, and why.

A row changes once, when its silence is ended early; it is kept as long as alerts are, so that it can be looked up.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, insert, select, update

from ferryman.devices.fleet.alerts.chosen import Chosen
from ferryman.devices.fleet.alerts.words import TEXT_MAX_CHARS, cut
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record

MOST = 100
"""In force at once: each is asked of each alert that is to be told."""
LONGEST_S = 30 * 86_400
_RULES_MAX = 50
_NAME_MAX_CHARS = 64
_TABLE = tables.silences
_ENDS = func.coalesce(_TABLE.c.ended_ns, _TABLE.c.until_ns)


class SilenceRow(Record, kw_only=True):
    """A silence as it is stored."""

    id: int
    devices: str
    """A query."""
    rules: tuple[str, ...]
    """By name; empty: all."""
    by: str
    why: str
    since_ns: int
    until_ns: int
    """As it was asked for."""
    ended_ns: int | None
    """When somebody ended it before that; None: nobody did."""
    ended_by: str | None

    @property
    def ends_ns(self) -> int:
        """From then on people are told."""
        return self.until_ns if self.ended_ns is None else self.ended_ns


def add(  # a row
    store: Store, devices: str, rules: tuple[str, ...], *, for_s: float, by: str, why: str, now_ns: int
) -> SilenceRow:
    """Have nobody told from now on; in force once this returns.

    Args:
        store: of the collectors; each obeys within the pause between two looks.
        devices: a query.
        rules: by name; empty: all. Any name will do: rules files differ.
        for_s: how long.
        by: who asks.
        why: for the others.
        now_ns: Unix epoch.

    Raises:
        CallerError: an argument is none of its kind or out of bounds, or there are MOST already.
        StoreError: the store cannot be written.
    """
    Chosen(devices, rules)
    if not 0 < for_s <= LONGEST_S:
        raise CallerError(
            f"a silence lasts no longer than {LONGEST_S // 86_400} days, and more than 0 s; found {for_s:g} s"
        )
    if not why.strip() or len(why) > TEXT_MAX_CHARS:
        raise CallerError(f"say why in 1 to {TEXT_MAX_CHARS} characters, for whoever wonders; found {len(why.strip())}")
    if len(rules) > _RULES_MAX or any(not 0 < len(rule) <= _NAME_MAX_CHARS or "," in rule for rule in rules):
        raise CallerError(
            f"name at most {_RULES_MAX} rules, each as `ferryman fleet alerts` does; found {rules!s:.200}"
        )
    row = {
        "devices": devices,
        "rules": ",".join(rules),
        "by": cut(by, _NAME_MAX_CHARS),
        "why": cut(why.strip(), TEXT_MAX_CHARS),
        "since_ns": now_ns,
        "until_ns": now_ns + int(for_s * 1e9),
    }

    def work(connection: Connection) -> int:
        count = connection.execute(select(func.count()).where(_TABLE.c.ended_ns.is_(None), _TABLE.c.until_ns > now_ns))
        if count.scalar_one() >= MOST:
            raise CallerError(f"{MOST} silences are in force; end one, or silence more devices by one query")
        return int(connection.execute(insert(_TABLE).values(row).returning(_TABLE.c.id)).scalar_one())

    which = store.write(work)
    return next(one for one in read(store, now_ns=now_ns) if one.id == which)


def end(store: Store, which: int, by: str, now_ns: int) -> SilenceRow:
    """End one early: what holds still is told.

    Raises:
        CallerError: no silence in force has this number.
        StoreError: the store cannot be written.
    """
    wanted = (_TABLE.c.id == which, _TABLE.c.ended_ns.is_(None), _TABLE.c.until_ns > now_ns)
    change = update(_TABLE).where(*wanted).values(ended_ns=now_ns, ended_by=cut(by, _NAME_MAX_CHARS))
    if not 0 <= which < 1 << 63 or not store.write(lambda connection: connection.execute(change).rowcount):
        there = ", ".join(str(one.id) for one in read(store, now_ns=now_ns)) or "none"
        raise CallerError(f"no silence {which} is in force; there are: {there}")
    return next(one for one in read(store) if one.id == which)


def read(store: Store, *, now_ns: int | None = None) -> list[SilenceRow]:
    """Give silences, the newest first.

    Args:
        store: one that no ferryman which knows silences wrote to has none.
        now_ns: only those in force then; None: all.

    Raises:
        StoreError: the store cannot be read.
    """
    if not store.has(_TABLE):
        return []
    query = select(_TABLE).order_by(_TABLE.c.id.desc())
    if now_ns is not None:
        query = query.where(now_ns < _ENDS)
    return [
        SilenceRow(**row._asdict() | {"rules": tuple(filter(None, row.rules.split(",")))}) for row in store.read(query)
    ]


def forget(store: Store, before_ns: int) -> None:
    """Delete what ended before a time.

    Raises:
        StoreError: the store cannot be written.
    """
    old = delete(_TABLE).where(before_ns > _ENDS)
    store.write(lambda connection: connection.execute(old) and None)
