"""A store carried from a SQLite file to PostgreSQL: whole, resumed where it was broken off, counted on both sides.

No collector may run on either meanwhile; devices keep their records until one does. How far it is stands in the
target's table `carrying`, in one transaction with the rows; until that table is gone nobody else opens the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, Integer, Table, func, literal_column, select, update

from ferryman.devices.fleet.collector.instance import only_one
from ferryman.devices.fleet.collector.leader import ALERTS, STORE, Leader
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.engine import RefusedError, is_postgresql, sqlstate
from ferryman.devices.fleet.store.schema import carrying
from ferryman.devices.fleet.store.store import Store, open_store
from ferryman.runtime.contracts.errors import CallerError, StoreError

log = logging.getLogger(__name__)

TABLES = tuple(table for table in tables.metadata.sorted_tables if table is not tables.store)
ROWS_AT_ONCE = 10_000
BYTES_AT_ONCE = 8 << 20
_ROWID = literal_column("rowid", Integer)
_CONSTRAINT = "23"
"""Class of SQLSTATE: the row is there, and not from us."""


class Carried(NamedTuple):
    """What became of one table."""

    table: str
    rows: int
    """In the source; so many are in the target, but for `refused`."""
    refused: int
    """Which PostgreSQL does not take; each is logged."""


Told = Callable[[str, int, int], None]
"""Of a table: its name, and how many of how many of its rows are in the target."""


def carry(source: str | Path, target: str, told: Told = lambda *_: None) -> list[Carried]:
    """Carry everything; called again after whatever ended it, it goes on.

    Raises:
        CallerError: the source is no file, or the target is no PostgreSQL store or not empty.
        StoreError: a collector runs on one of them, the source was written to since it was begun, a database refuses,
            or the counts differ.
    """
    if is_postgresql(source):
        raise CallerError(
            "a store is carried from a SQLite file; between PostgreSQL servers pg_dump and pg_restore do it"
        )
    if not is_postgresql(target):
        raise CallerError("a store is carried to postgresql://..., found none; a SQLite file is copied by cp")
    with (
        closing(open_store(source, create=False)) as old,
        only_one(Path(source)),
        closing(open_store(target, carries=True)) as new,
        _alone(new),
    ):
        begun = _begin(old, new)
        for table in TABLES:
            _carry_table(old, new, table, begun[table.name], told)
        return _end(old, new)


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    leaders = [Leader(store, lock) for lock in (ALERTS, STORE)]
    try:
        if not all(leader.leads() for leader in leaders):
            raise StoreError(f"store {store.name}: a collector runs on it; stop it first")
        yield
    finally:
        for leader in leaders:
            leader.release()


def _begin(old: Store, new: Store) -> dict[str, int]:
    """Up to which row of each table it is done; put down what the source holds, where it is not begun yet."""
    rows = {table.name: (f"{old.id} {_newest(old)}", _count(old, table)) for table in TABLES}

    def work(connection: Connection) -> dict[str, tuple[str, int, int]]:
        carrying.create(connection, checkfirst=True)
        kept = {name: (which, count, upto) for name, which, count, upto, _ in connection.execute(select(carrying))}
        if kept:
            return kept
        if any(connection.execute(select(table).limit(1)).first() for table in TABLES):
            raise CallerError(f"store {new.name} holds something already; name an empty database")
        values = [
            {"name": name, "source": which, "total": count, "upto": 0, "refused": 0}
            for name, (which, count) in rows.items()
        ]
        connection.execute(carrying.insert(), values)
        return {name: (which, count, 0) for name, (which, count) in rows.items()}

    begun = new.write(work)
    if any(begun.get(name, ())[:2] != found for name, found in rows.items()):
        raise StoreError(
            f"store {old.name} is not, or no longer, what was being carried to {new.name}: it was written to since; "
            "empty that database (DROP SCHEMA), and begin anew"
        )
    return {name: upto for name, (_, _, upto) in begun.items()}


def _newest(store: Store) -> int:
    newest = [func.max(tables.devices.c.seen_ns), func.max(tables.records.c.received_ns), func.max(tables.alerts.c.id)]
    return sum(int(store.read(select(one))[0][0] or 0) for one in newest)


def _count(store: Store, table: Table) -> int:
    return int(store.read(select(func.count()).select_from(table))[0][0]) if store.has(table) else 0


def _carry_table(old: Store, new: Store, table: Table, upto: int, told: Told) -> None:
    total = _count(old, table)
    if not total:
        return
    done = int(old.read(select(func.count()).select_from(table).where(upto >= _ROWID))[0][0])
    for rows in _chunks(old, table, upto):
        _put(new, table, rows)
        done += len(rows)
        told(table.name, done, total)


def _chunks(old: Store, table: Table, upto: int) -> Iterator[list[tuple[Any, ...]]]:
    """Rows in the order in which they lie in the file, each behind its number there."""
    rows: list[tuple[Any, ...]] = []
    size = 0
    for row in old.stream(select(_ROWID, table).where(upto < _ROWID).order_by(_ROWID)):
        rows.append(tuple(row))
        size += sum(len(value) for value in row if isinstance(value, str | bytes))
        if len(rows) >= ROWS_AT_ONCE or size >= BYTES_AT_ONCE:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _put(new: Store, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """In one transaction with how far it is; what is refused as data in ever smaller parts, until it is alone."""
    try:
        new.write(partial(_copy, table=table, rows=rows, upto=rows[-1][0]))
    except RefusedError as error:
        if sqlstate(error).startswith(_CONSTRAINT):
            raise StoreError(f"{error}; somebody else writes to it: empty it, and begin anew") from error
        if len(rows) == 1:
            log.error("row %d of table %s is not carried: %s", rows[0][0], table.name, error)  # noqa: TRY400  # said in full
            new.write(partial(_copy, table=table, rows=(), upto=rows[0][0], refused=1))
            return
        half = len(rows) // 2
        _put(new, table, rows[:half])
        _put(new, table, rows[half:])


def _copy(
    connection: Connection, *, table: Table, rows: Sequence[tuple[Any, ...]], upto: int, refused: int = 0
) -> None:
    quote = connection.dialect.identifier_preparer.quote
    names = ", ".join(quote(column.name) for column in table.columns)
    driver: Any = connection.connection.driver_connection
    if rows:
        with driver.cursor() as cursor, cursor.copy(f"COPY {quote(table.name)} ({names}) FROM STDIN") as copy:
            for _, *values in rows:
                copy.write_row(values)
    where = carrying.c.name == table.name
    connection.execute(update(carrying).where(where).values(upto=upto, refused=carrying.c.refused + refused))


def _end(old: Store, new: Store) -> list[Carried]:
    """Count, give new rows numbers beyond those that came, and let others in."""
    refused = {row.name: row.refused for row in new.read(select(carrying))}
    found = [Carried(table.name, _count(old, table), refused[table.name]) for table in TABLES]
    for one, table in zip(found, TABLES, strict=True):
        there = _count(new, table)
        if there != one.rows - one.refused:
            raise StoreError(
                f"table {one.table}: {old.name} has {one.rows:,} rows, of which {one.refused:,} were refused, and "
                f"{new.name} has {there:,}; empty that database, and begin anew"
            )

    def work(connection: Connection) -> None:
        for table in (tables.sources, tables.alerts, tables.silences):
            connection.exec_driver_sql(
                f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), greatest(max(id), 1)) FROM {table.name}"  # noqa: S608  # ours
            )
        carrying.drop(connection)

    new.write(work)
    return found
