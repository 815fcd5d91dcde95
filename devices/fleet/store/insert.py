"""A batch into the store, within one transaction: records once, what follows from them, and who is there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, select, tuple_

from ferryman.devices.fleet.store import clocks, presence, quarantine
from ferryman.devices.fleet.store.bulk import copy_text, insert_many, mark_dirty
from ferryman.devices.fleet.store.quarantine import Bad
from ferryman.devices.fleet.store.tables import (
    CORRECTED,
    HOUR_S,
    LIVE,
    SAMPLE,
    SURE,
    UNSURE,
    latest,
    sources,
)
from ferryman.runtime.contracts.envelope import TIME_MAX_NS
from ferryman.runtime.contracts.messages import Status

_HOUR_NS = HOUR_S * 10**9
_SEEN_EVERY_NS = 10 * 10**9
"""`devices.seen_ns` is kept to this: a write for each device in each batch would cost more than the records."""
_REMEMBERED_MAX = 200_000
_CHUNK = 400
_ZERO = "kind or boot holds a zero character"
"""Which PostgreSQL cannot store; both databases shall take the same."""


class Row(NamedTuple):
    """One record of a message; `Item` says what the fields mean."""

    sequence: int
    kind: str
    time_ns: int
    uptime_ns: int | None
    sure: bool
    body: bytes


class Arrived(NamedTuple):
    """One message, checked, beside the topic and bytes it came as."""

    device: str
    boot: str
    rows: Sequence[Row]
    topic: str
    raw: bytes


class Batch(NamedTuple):
    """What one commit takes in."""

    arrived: Sequence[Arrived] = ()
    bad: Sequence[Bad] = ()
    statuses: Sequence[Status] = ()
    retained: Sequence[Status] = ()
    """What the broker had kept, and told again: older than `statuses`."""


class Inserted(NamedTuple):
    """What became of the records of a batch."""

    new: int
    duplicates: int
    conflicts: int
    """Same (device, boot, sequence) as a stored record, another content: its message is quarantined. So is what the
    database refuses."""


class Memory:
    """What is known to be committed, so that it need not be asked for again; only ever a shortcut."""

    def __init__(self) -> None:
        self.sources: dict[tuple[str, str], int] = {}
        self.seen_ns: dict[str, int] = {}

    def learn(self, sources: dict[tuple[str, str], int], seen: Iterable[str], now_ns: int) -> None:
        """To be called after the commit."""
        if len(self.sources) + len(self.seen_ns) > _REMEMBERED_MAX:
            self.sources.clear()
            self.seen_ns.clear()
        self.sources.update(sources)
        self.seen_ns.update(dict.fromkeys(seen, now_ns))


class Insertion:
    """One batch on its way in; `work` may be called again after a rollback, `Memory` learns after the commit."""

    def __init__(self, batch: Batch, now_ns: int, memory: Memory) -> None:
        self._batch = batch
        self._now_ns = now_ns
        self._memory = memory
        self._sources: dict[tuple[str, str], int] = {}
        self._seen: list[str] = []

    def work(self, connection: Connection) -> Inserted:
        """Do it all but the commit."""
        now_ns = self._now_ns
        inserted = Inserted(0, 0, 0)
        bad = [*self._batch.bad, *(Bad(one.topic, one.raw, _ZERO) for one in self._batch.arrived if _has_zero(one))]
        arrived = [one for one in self._batch.arrived if not _has_zero(one)] if bad else self._batch.arrived
        if arrived:
            self._sources = _sources(connection, {(one.device, one.boot) for one in arrived}, self._memory)
            offsets = clocks.learn(connection, arrived, self._sources)
            rows = _rows(arrived, self._sources, offsets, now_ns)
            new = _insert_records(connection, rows)
            if new < len(rows) and (numbers := _conflicts(connection, rows)):
                bad += _conflict_messages(arrived, self._sources, [rows[number] for number in numbers])
                inserted = Inserted(new, len(rows) - new - len(numbers), len(numbers))
                rows = [row for number, row in enumerate(rows) if number not in numbers]
            else:
                inserted = Inserted(new, len(rows) - new, 0)
            _follow_up(connection, self._sources, rows, now_ns)
        quarantine.keep(connection, bad, now_ns)
        self._presence(connection)
        return inserted

    def committed(self) -> None:
        """Remember what is known now."""
        self._memory.learn(self._sources, self._seen, self._now_ns)

    def _presence(self, connection: Connection) -> None:
        presence.take(connection, self._batch.statuses, self._now_ns, self._batch.retained)
        due = self._now_ns - _SEEN_EVERY_NS
        known = self._memory.seen_ns
        self._seen = sorted({one.device for one in self._batch.arrived if known.get(one.device, 0) <= due})
        presence.seen(connection, self._seen, self._now_ns)


def _sources(connection: Connection, wanted: set[tuple[str, str]], memory: Memory) -> dict[tuple[str, str], int]:
    """The number of each (device, boot), given to those that are new."""
    found = {key: memory.sources[key] for key in wanted & memory.sources.keys()}
    missing = sorted(wanted - found.keys())
    if missing:
        insert_many(connection, sources, ("device", "boot"), missing, "ON CONFLICT DO NOTHING")
    for start in range(0, len(missing), _CHUNK):
        chosen = tuple_(sources.c.device, sources.c.boot).in_(missing[start : start + _CHUNK])
        query = select(sources.c.device, sources.c.boot, sources.c.id).where(chosen)
        found |= {(device, boot): number for device, boot, number in connection.execute(query)}
    return found


def _has_zero(one: Arrived) -> bool:
    return "\0" in one.boot or any("\0" in kind for kind in {row.kind for row in one.rows})


_COLUMNS = "source, sequence, time_ns, recorded_ns, clock, received_ns, kind, uptime_ns, body"
_StoredRow = tuple[int, int, int, int, int, int, str, int | None, str]


def _rows(
    arrived: Sequence[Arrived], ids: dict[tuple[str, str], int], offsets: dict[int, int], now_ns: int
) -> list[_StoredRow]:
    """As they go into the table, in order of _COLUMNS; sorted, so that two processes never wait for each other."""
    rows: list[_StoredRow] = []
    for one in arrived:
        source = ids[one.device, one.boot]
        offset = offsets.get(source)
        for sequence, kind, time_ns, uptime_ns, sure, body in one.rows:
            if sure or uptime_ns is None or offset is None or uptime_ns > TIME_MAX_NS - offset:
                clock, best_ns = SURE if sure else UNSURE, time_ns
            else:
                clock, best_ns = CORRECTED, uptime_ns + offset
            rows.append((source, sequence, best_ns, time_ns, clock, now_ns, kind, uptime_ns, body.decode()))
    rows.sort(key=_name)
    return rows


def _name(row: _StoredRow) -> tuple[int, int]:
    return row[:2]


def _insert_records(connection: Connection, rows: list[_StoredRow]) -> int:
    """Insert those that are new, and count them."""
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * 9)
        statement = f"INSERT INTO records ({_COLUMNS}) VALUES ({marks}) ON CONFLICT DO NOTHING"  # noqa: S608  # ours
        return connection.exec_driver_sql(statement, rows).rowcount if rows else 0
    connection.exec_driver_sql(
        "CREATE TEMP TABLE IF NOT EXISTS incoming ON COMMIT DELETE ROWS AS SELECT 0 AS number, * FROM records LIMIT 0"
    )
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(f"COPY incoming (number, {_COLUMNS}) FROM STDIN") as copy:
        copy.write(copy_text([(number, *row) for number, row in enumerate(rows)]))
    statement = f"INSERT INTO records ({_COLUMNS}) SELECT {_COLUMNS} FROM incoming ON CONFLICT DO NOTHING"  # noqa: S608
    return connection.exec_driver_sql(statement).rowcount


def _conflicts(connection: Connection, rows: list[_StoredRow]) -> set[int]:
    """Which of `rows` have the name of a stored record and another content."""
    if connection.dialect.name == "postgresql":
        # OFFSET 0: one look into the index for each, whatever the planner thinks of a table it has no statistics of.
        query = """
            SELECT number FROM incoming i LEFT JOIN LATERAL (
                SELECT true AS same FROM records r
                WHERE r.source = i.source AND r.sequence = i.sequence AND r.recorded_ns = i.recorded_ns
                AND r.kind = i.kind AND r.uptime_ns IS NOT DISTINCT FROM i.uptime_ns AND r.body = i.body OFFSET 0) r
                ON true
            WHERE same IS NULL"""
        return {number for (number,) in connection.exec_driver_sql(query)}
    query = """SELECT 1 FROM records WHERE source = ? AND sequence = ? AND kind = ? AND recorded_ns = ?
               AND uptime_ns IS ? AND body = ?"""
    cursor = connection.connection.cursor()
    found = set()
    for number, (source, sequence, _, recorded_ns, _, _, kind, uptime_ns, body) in enumerate(rows):
        cursor.execute(query, (source, sequence, kind, recorded_ns, uptime_ns, body))
        if cursor.fetchone() is None:
            found.add(number)
    cursor.close()
    return found


def _conflict_messages(
    arrived: Sequence[Arrived], ids: dict[tuple[str, str], int], conflicting: Sequence[_StoredRow]
) -> list[Bad]:
    """The messages that held them, each once, with the sequences."""
    contents = {(row[0], row[1], row[8]) for row in conflicting}
    found = []
    for one in arrived if contents else ():
        source = ids[one.device, one.boot]
        names = sorted({row.sequence for row in one.rows if (source, row.sequence, row.body.decode()) in contents})
        if names:
            shown = ", ".join(map(str, names[:20])) + (" and more" if len(names) > 20 else "")  # noqa: PLR2004  # a line
            reason = f"conflict: another record of this device, boot and sequence is stored (sequence {shown})"
            found.append(Bad(one.topic, one.raw, reason))
    return found


def _follow_up(
    connection: Connection, ids: dict[tuple[str, str], int], rows: Iterable[_StoredRow], now_ns: int
) -> None:
    """What is newest of each device, and which hours are to be rolled up."""
    names = {source: device for (device, _), source in ids.items()}
    hours: set[tuple[int, int]] = set()
    newest: dict[tuple[str, str], tuple[int, str]] = {}
    for source, _, time_ns, _, _, _, kind, _, body in rows:
        if kind == SAMPLE:
            hours.add((source, time_ns // _HOUR_NS))
        if kind in LIVE:
            key = (names[source], kind)
            # A clock that runs ahead shall not keep what comes later from being the newest.
            time_ns = min(time_ns, now_ns)  # noqa: PLW2901  # only here
            if key not in newest or newest[key][0] <= time_ns:
                newest[key] = (time_ns, body)
    mark_dirty(connection, ((names[source], HOUR_S, hour * HOUR_S) for source, hour in hours))
    newer = """ON CONFLICT (device, kind) DO UPDATE SET time_ns = excluded.time_ns, body = excluded.body
               WHERE excluded.time_ns >= latest.time_ns"""
    live = [(*key, *value) for key, value in sorted(newest.items())]
    insert_many(connection, latest, ("device", "kind", "time_ns", "body"), live, newer)
