"""What becomes too old goes, a little at a time, so that nobody who inserts waits long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    delete,
    func,
    literal_column,
    or_,
    select,
    text,
    tuple_,
    update,
)

from ferryman.devices.fleet.store import postgresql, quarantine, spans
from ferryman.devices.fleet.store.bulk import Span
from ferryman.devices.fleet.store.store import Store
from ferryman.devices.fleet.store.tables import DAY_S, HOUR_S, SAMPLE, of_kind, other_kinds, records, rollups, sources

log = logging.getLogger(__name__)
T = TypeVar("T")
_DAY_NS = DAY_S * 10**9
_HOUR_NS = HOUR_S * 10**9
_HOURS_AT_ONCE = 8
_ROWS_AT_ONCE = 2000
_DEVICES_AT_ONCE = 200
_PAGES_AT_ONCE = 256
_PAUSE_S = 0.005
_SPAN = tuple_(rollups.c.device, rollups.c.span_s, rollups.c.start_s)


@dataclass(frozen=True)
class Policy:
    """How long things are kept, in days since they were recorded and since they came; None: for ever."""

    samples_days: float | None = 30
    others_days: float | None = 365
    hours_days: float | None = 180
    days_days: float | None = None
    quarantine_max_bytes: int = quarantine.QUARANTINE_MAX_BYTES


class Retained(NamedTuple):
    """What was deleted."""

    samples: int = 0
    others: int = 0
    hours: int = 0
    """Rows of rollups."""
    days: int = 0
    quarantined: int = 0
    freed_bytes: int = 0
    """Given back to the file system."""
    not_freed: str = ""
    """Why the file does not shrink; empty: it does, or there is nothing to give back."""


def retain(store: Store, policy: Policy, now_ns: int) -> Retained:
    """Delete what `policy` does not keep; a sample never before it is in a rollup.

    Safe while others insert and roll up, and killed at any moment.

    Raises:
        StoreError: as for `Store.write`; call it again.
    """
    samples = others = hours = days = 0
    if policy.samples_days is not None:
        samples = _samples(store, now_ns - int(policy.samples_days * _DAY_NS), now_ns)
    if policy.others_days is not None:
        others = _others(store, now_ns - int(policy.others_days * _DAY_NS), now_ns)
    if policy.hours_days is not None:
        hours = _hours(store, (now_ns - int(policy.hours_days * _DAY_NS)) // _DAY_NS * DAY_S)
    if policy.days_days is not None:
        days = _days(store, (now_ns - int(policy.days_days * _DAY_NS)) // _DAY_NS * DAY_S)
    room = policy.quarantine_max_bytes
    quarantined = store.write(lambda connection: quarantine.make_room(connection, now_ns, room))
    freed, not_freed = (0, "") if store.dialect == "postgresql" else _shrink(store)
    if store.dialect == "postgresql":
        store.write(postgresql.drop_empty_chunks)
    return Retained(samples, others, hours, days, quarantined, freed, not_freed)


def _samples(store: Store, before_ns: int, now_ns: int) -> int:
    before_ns = before_ns // _HOUR_NS * _HOUR_NS
    hour: ColumnElement[int] = literal_column(f"records.time_ns / {_HOUR_NS}")
    deleted = 0
    for devices in _devices(store):
        query = select(sources.c.device, hour).distinct().join_from(sources, records, records.c.source == sources.c.id)
        query = query.where(sources.c.device.in_(devices), of_kind(SAMPLE), _old(before_ns, now_ns))
        found = sorted((row[0], HOUR_S, row[1] * HOUR_S) for row in map(tuple, store.read(query)))
        for at in range(0, len(found), _HOURS_AT_ONCE):
            deleted += _slice(store, partial(_seal_hours, hours=found[at : at + _HOURS_AT_ONCE], before_ns=before_ns))
    return deleted


def _seal_hours(connection: Connection, hours: list[Span], before_ns: int) -> int:
    held = [one for one in hours if spans.hold(connection, one)]  # else there is something new: first the roll-up
    deleted = 0
    for one in held:
        if spans.last_received_ns(connection, one) < before_ns:
            _seal(connection, one)
            deleted += spans.delete_samples(connection, one)
    spans.release(connection, held)
    return deleted


def _seal(connection: Connection, span: Span) -> None:
    connection.execute(update(rollups).where(_SPAN.in_([span])).values(sealed=1))


def _others(store: Store, before_ns: int, now_ns: int) -> int:
    deleted, kind = 0, ""
    while True:
        # One look into the index for each kind, not one at every record.
        query = select(func.min(records.c.kind)).where(other_kinds(), records.c.kind > kind)
        kind = store.read(query)[0][0]
        if kind is None:
            return deleted
        name = (records.c.source, records.c.sequence)
        some = select(*name).where(of_kind(kind), _old(before_ns, now_ns)).limit(_ROWS_AT_ONCE)
        statement = delete(records).where(tuple_(*name).in_(some))
        while gone := _slice(store, partial(_rows, statement=statement)):
            deleted += gone


def _old(before_ns: int, now_ns: int) -> ColumnElement[bool]:
    """Recorded and received before; what claims to be of the future counts from when it came."""
    at = records.c.time_ns
    return or_(at < before_ns, at > now_ns + _DAY_NS) & (records.c.received_ns < before_ns)


def _hours(store: Store, before_s: int) -> int:
    day: ColumnElement[int] = literal_column(f"start_s - start_s % {DAY_S}")
    query = select(rollups.c.device, day).where(rollups.c.span_s == HOUR_S, rollups.c.start_s < before_s).distinct()
    deleted = 0
    while True:
        some = sorted((row[0], DAY_S, row[1]) for row in map(tuple, store.read(query.limit(_ROWS_AT_ONCE))))
        gone = sum(_slice(store, partial(_seal_day, span=one)) for one in some)
        deleted += gone
        if not gone:
            return deleted


def _seal_day(connection: Connection, span: Span) -> int:
    device, _, start_s = span
    within = (
        rollups.c.device == device,
        rollups.c.span_s == HOUR_S,
        rollups.c.start_s.between(start_s, start_s + DAY_S - 1),
    )
    hours = [
        (device, HOUR_S, start)
        for start in connection.execute(select(rollups.c.start_s).where(*within).distinct()).scalars()
    ]
    held = [one for one in (span, *sorted(hours)) if spans.hold(connection, one)]
    deleted = 0
    # Else there is something new, which is to be rolled up first; or samples, which came late and go first.
    if len(held) == 1 + len(hours) and not any(spans.last_received_ns(connection, hour) for hour in hours):
        _seal(connection, span)
        for hour in hours:
            deleted += connection.execute(delete(rollups).where(_SPAN.in_([hour]))).rowcount
    spans.release(connection, held)
    return deleted


def _days(store: Store, before_s: int) -> int:
    key = (rollups.c.device, rollups.c.span_s, rollups.c.start_s, rollups.c.metric, rollups.c.package)
    some = select(*key).where(rollups.c.span_s == DAY_S, rollups.c.start_s < before_s).limit(_ROWS_AT_ONCE)
    statement = delete(rollups).where(tuple_(*key).in_(some))
    deleted = 0
    while gone := _slice(store, partial(_rows, statement=statement)):
        deleted += gone
    return deleted


def _devices(store: Store) -> Iterator[list[str]]:
    last = ""
    while True:
        query = select(sources.c.device).distinct().where(sources.c.device > last)
        found = [name for (name,) in store.read(query.order_by(sources.c.device).limit(_DEVICES_AT_ONCE))]
        if not found:
            return
        yield found
        last = found[-1]


def _rows(connection: Connection, statement: Delete) -> int:
    return connection.execute(statement).rowcount


def _give_back(connection: Connection) -> None:
    driver: Any = connection.connection.driver_connection
    # As a script, which the driver runs to its end; of a statement without columns it makes the first step: one page.
    driver.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")


def _slice(store: Store, work: Callable[[Connection], T]) -> T:
    done = store.write(work)
    time.sleep(_PAUSE_S)  # those who insert come in between
    return done


def _shrink(store: Store) -> tuple[int, str]:
    """Give back the pages of a SQLite file that are free, but for a tenth that will soon be used again."""

    def number(pragma: str) -> int:
        return int(store.read(text(f"PRAGMA {pragma}"))[0][0])

    free, pages, page_bytes = number("freelist_count"), number("page_count"), number("page_size")
    if free <= max(pages // 10, 1000):
        return 0, ""
    if number("auto_vacuum") == 0:
        return 0, (
            f"{free * page_bytes:,} bytes in {store.name} are free for new records and are not given back, for the "
            "file was made by ferryman 0.1; stop the collector and run VACUUM on it once"
        )
    for _ in range(pages // 20, free, _PAGES_AT_ONCE):
        _slice(store, _give_back)
    return (free - number("freelist_count")) * page_bytes, ""
