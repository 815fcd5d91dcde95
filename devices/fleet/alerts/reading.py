"""What the store got since it was last asked: read once, in the order of each device, by what devices spoke.

A cursor stands in each run of numbers (`sources`). What comes below it later is sent again, and of the past.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Row, TextClause, func, select, text

from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store

SETTLE_NS = 2_000_000_000
"""What was committed later may have overtaken what comes before it: another collector commits as well."""
SOURCES_AT_ONCE = 1000
ROWS_AT_ONCE = 20_000
"""Of so many sources; what is left is read the next time."""
ROWS_OF_ONE = 2000
"""Of one source, on PostgreSQL."""
SOURCES_KEPT = 2
"""Runs of numbers that are followed of a device at the start: the newest."""
REWIND = 20
RESTART_NS = 60 * 10**9
"""At the start the newest records of each run are read again, if they came so lately: nobody may have looked."""
QUIET_NS = 3600 * 10**9
"""A run is no longer followed when a newer one of its device is so far ahead."""

# ruff: noqa: S608  # all that is put into these are numbers of ours
_WANTED = "kind IN ('sample', 'drift', 'dropped') AND received_ns > {not_before_ns}"
_COLUMNS = "source, sequence, kind, time_ns, uptime_ns, clock, received_ns, body"
_QUERIES = {
    "sqlite": f"""
        WITH asked (which, reached) AS (VALUES {{asked}})
        SELECT {_COLUMNS} FROM asked CROSS JOIN records ON source = which AND sequence > reached
        WHERE {_WANTED} ORDER BY source, sequence LIMIT {ROWS_AT_ONCE}""",
    "postgresql": f"""
        SELECT found.* FROM (VALUES {{asked}}) AS asked (which, reached) CROSS JOIN LATERAL (
            SELECT {_COLUMNS} FROM records WHERE source = which::bigint AND sequence > reached::bigint AND {_WANTED}
            ORDER BY sequence LIMIT {ROWS_OF_ONE}) AS found
        ORDER BY source, sequence LIMIT {ROWS_AT_ONCE}""",
}
"""A look into the key for each source, whatever the planner thinks of it: the table may hold years."""


class News(NamedTuple):
    """A record that came."""

    device: str
    kind: str
    time_ns: int
    clock: int
    """SURE, UNSURE or CORRECTED, of `ferryman.devices.fleet.store.tables`."""
    received_ns: int
    age_ns: int
    """How long before it was received it was recorded."""
    body: str


@dataclass
class _Run:
    device: str
    cursor: int
    heard_ns: int
    least_delay_ns: int | None = None
    """Of receipt after uptime: an unsure clock's records are aged by it."""


class Reader:
    """Where the reading stands."""

    def __init__(self) -> None:
        self._of: dict[str, dict[int, _Run]] = {}
        self._last: int | None = None
        self._behind: set[str] = set()
        self._not_before_ns = 0

    def read(self, store: Store, spoke: Collection[str], now_ns: int) -> Iterator[News]:
        """What is new of the devices that spoke; the first time: of the last minute, and no more than a few of each.

        Raises:
            StoreError: the store cannot be read.
        """
        if self._last is None:
            self._begin(store, now_ns)
        else:
            self._find_runs(store, now_ns)
        due = {source: run for name in {*spoke, *self._behind} for source, run in self._of.get(name, {}).items()}
        self._behind = set()
        sources = list(due)
        for begin in range(0, len(sources), SOURCES_AT_ONCE):
            some = {source: due[source] for source in sources[begin : begin + SOURCES_AT_ONCE]}
            yield from self._read_some(store, some, now_ns)

    def _begin(self, store: Store, now_ns: int) -> None:
        rank = func.row_number().over(partition_by=tables.sources.c.device, order_by=tables.sources.c.id.desc())
        ranked = select(tables.sources.c.id, tables.sources.c.device, rank.label("rank")).subquery()
        newest = (
            select(func.max(tables.records.c.sequence)).where(tables.records.c.source == ranked.c.id).scalar_subquery()
        )
        self._last = 0
        self._not_before_ns = now_ns - RESTART_NS
        query = select(ranked.c.id, ranked.c.device, newest).where(ranked.c.rank <= SOURCES_KEPT)
        for source, device, sequence in map(tuple, store.read(query)):
            self._follow(source, _Run(device, max(0, (sequence or 0) - REWIND), now_ns))

    def _find_runs(self, store: Store, now_ns: int) -> None:
        sources = tables.sources
        query = select(sources.c.id, sources.c.device).where(sources.c.id > self._last)
        for source, device in map(tuple, store.read(query)):
            self._follow(source, _Run(device, 0, now_ns))
            self._behind.add(device)

    def _follow(self, source: int, run: _Run) -> None:
        self._last = max(self._last or 0, source)
        self._of.setdefault(run.device, {})[source] = run

    def _read_some(self, store: Store, runs: dict[int, _Run], now_ns: int) -> Iterator[News]:
        # As text: SQLAlchemy takes longer to compile so many values than the database to look them up. All are numbers.
        asked = ", ".join(f"({source}, {run.cursor})" for source, run in runs.items())
        query = text(_QUERIES[store.dialect].format(asked=asked, not_before_ns=self._not_before_ns))
        found = _found(store, query)
        if len(found) == ROWS_AT_ONCE:
            self._behind |= {run.device for run in runs.values()}
        yield from self._take(runs, found, now_ns)

    def _take(self, runs: dict[int, _Run], found: Sequence[Row[Any]], now_ns: int) -> Iterator[News]:
        unsettled: set[int] = set()
        for source, sequence, kind, time_ns, uptime_ns, clock, received_ns, body in map(tuple, found):
            run = runs[source]
            if received_ns > now_ns - SETTLE_NS or source in unsettled:
                unsettled.add(source)
                self._behind.add(run.device)
                continue
            run.cursor, run.heard_ns = sequence, now_ns
            age_ns = received_ns - time_ns
            if uptime_ns is not None:
                delay = received_ns - uptime_ns
                run.least_delay_ns = delay if run.least_delay_ns is None else min(run.least_delay_ns, delay)
                if clock == tables.UNSURE:
                    age_ns = delay - run.least_delay_ns
            yield News(run.device, kind, time_ns, clock, received_ns, age_ns, body)
        for run in runs.values():
            self._drop_quiet(run.device)

    def _drop_quiet(self, device: str) -> None:
        runs = self._of[device]
        newest = max(run.heard_ns for run in runs.values())
        for source in [source for source, run in runs.items() if run.heard_ns < newest - QUIET_NS]:
            del runs[source]


def _found(store: Store, query: TextClause) -> Sequence[Row[Any]]:
    if store.dialect == "sqlite":
        return store.read(query)
    with store.connection() as connection:
        # The planner takes all parts for asked, where each source is in one, and would compile for seconds.
        connection.execute(text("SET LOCAL jit = off"))
        return connection.execute(query).all()
