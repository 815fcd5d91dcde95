"""What an outbox drops when room is short or records are old, and how it says so; all within one transaction."""

from __future__ import annotations

import logging
import sqlite3
from typing import NamedTuple

import msgspec

from ferryman.devices.agent.clock import Reading
from ferryman.devices.agent.outbox_file import OVERHEAD_BYTES, totals
from ferryman.runtime.contracts.envelope import Count
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.telemetry import Priority

log = logging.getLogger(__name__)

KINDS_MAX = 32
"""Named in one report; the rest are counted together as `other`."""
_EXPIRE_MAX = 10_000


class Dropped(Record):
    """Body of a record of kind `dropped`: these were never sent, for want of room or because they were too old.

    One report waits at a time; what is dropped while it waits is in the next.
    """

    records: Count
    first: Count
    """The lowest sequence that was dropped since the report before."""
    last: Count
    """The highest; not all between them were dropped."""
    total: Count
    """Over the outbox's life; what counts when a report was itself dropped."""
    kinds: dict[str, Count] = msgspec.field(default_factory=dict)
    """Kind -> how many of `records`."""
    priorities: dict[str, Count] = msgspec.field(default_factory=dict)
    """bulk, normal or vital -> how many of `records`."""
    aged: Count = 0
    """How many of `records` were too old; the others made room."""


class Drop(NamedTuple):
    """How many records of a kind were ever dropped."""

    kind: str
    priority: Priority
    aged: bool
    records: int


def make_room(connection: sqlite3.Connection, max_bytes: int, newest_from: int) -> bool:
    """Drop the oldest of the lowest priority, then of the next, until the outbox holds no more than `max_bytes`.

    Some more of the same priority goes, so that a full outbox does not do this for every record; never what has just
    come (`newest_from` and later), unless nothing else is of as low a priority.
    """
    (used,) = totals(connection, "bytes")
    over = used - max_bytes
    if over <= 0:
        return False
    last: dict[int, int] = {}
    freed = 0
    rows = connection.execute("SELECT sequence, priority, length(body) FROM records ORDER BY priority, sequence")
    for sequence, priority, length in rows:
        if freed >= over and (priority not in last or sequence >= newest_from or freed >= over + max_bytes // 16):
            break
        last[priority] = sequence
        freed += length + OVERHEAD_BYTES
    rows.close()
    for priority, sequence in last.items():
        _drop(connection, priority, sequence, aged=False)
    return True


def expire(connection: sqlite3.Connection, keep_ns: int, now: Reading, kernel_boot: str) -> bool:
    """Drop BULK records that are older than `keep_ns`; what came before one that is, is too."""
    last = 0
    rows = connection.execute(
        "SELECT sequence, boot, time_ns, uptime_ns, sure FROM records WHERE priority = ? ORDER BY sequence LIMIT ?",
        (Priority.BULK, _EXPIRE_MAX),
    )
    for sequence, boot, time_ns, uptime_ns, sure in rows:
        if uptime_ns is not None and boot.partition(".")[2] == kernel_boot:
            age_ns = now.uptime_ns - uptime_ns
        elif now.sure and (sure or uptime_ns is None):
            age_ns = now.time_ns - time_ns
        else:
            continue  # nobody knows; a later one may tell
        if age_ns <= keep_ns:
            break
        last = sequence
    rows.close()
    if last:
        _drop(connection, Priority.BULK, last, aged=True)
    return bool(last)


def _drop(connection: sqlite3.Connection, priority: int, last: int, *, aged: bool) -> None:
    which = (priority, last)
    found = connection.execute(
        "SELECT kind, count(*), min(sequence), max(sequence) FROM records WHERE priority = ? AND sequence <= ? "
        "GROUP BY kind",
        which,
    ).fetchall()
    connection.executemany(
        "INSERT INTO drops VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6) ON CONFLICT DO UPDATE SET records = records + ?4, "
        "unreported = unreported + ?4, first = min(iif(unreported, first, ?5), ?5), "
        "last = max(iif(unreported, last, ?6), ?6)",
        [(kind, priority, aged, count, first, highest) for kind, count, first, highest in found],
    )
    connection.execute("DELETE FROM records WHERE priority = ? AND sequence <= ?", which)
    connection.execute("UPDATE totals SET dropped = dropped + ?", (sum(count for _, count, _, _ in found),))


def report(connection: sqlite3.Connection) -> Dropped | None:
    """What is to be put on record of drops: nothing while an earlier report still waits, or where there were none."""
    (earlier, total) = totals(connection, "report, dropped")
    rows = connection.execute(
        "SELECT kind, priority, aged, unreported, first, last FROM drops WHERE unreported > 0 ORDER BY unreported DESC"
    ).fetchall()
    if not rows or connection.execute("SELECT 1 FROM records WHERE sequence = ?", (earlier,)).fetchone():
        return None
    connection.execute("UPDATE drops SET unreported = 0")
    kinds: dict[str, int] = {}
    priorities: dict[str, int] = {}
    for kind, priority, _, count, _, _ in rows:
        named = kind if kind in kinds or len(kinds) < KINDS_MAX else "other"
        kinds[named] = kinds.get(named, 0) + count
        level = Priority(priority).name.lower()
        priorities[level] = priorities.get(level, 0) + count
    return Dropped(
        records=sum(kinds.values()),
        first=min(row[4] for row in rows),
        last=max(row[5] for row in rows),
        total=total,
        kinds=kinds,
        priorities=priorities,
        aged=sum(row[3] for row in rows if row[2]),
    )


def drops(connection: sqlite3.Connection) -> list[Drop]:
    """All that was ever dropped, by kind."""
    rows = connection.execute("SELECT kind, priority, aged, records FROM drops ORDER BY records DESC")
    return [Drop(kind, Priority(priority), bool(aged), records) for kind, priority, aged, records in rows]
