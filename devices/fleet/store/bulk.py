"""Many rows in one statement, as each database takes them fastest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql

from ferryman.devices.fleet.store.tables import dirty

_POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def insert_many(
    connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]], conflict: str
) -> None:
    """INSERT `rows` into `columns`; `conflict` is the ON CONFLICT clause, which may name `excluded`."""
    if not rows:
        return
    names = ", ".join(columns)
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * len(columns))
        connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) VALUES ({marks}) {conflict}", list(rows))  # noqa: S608  # names of ours
        return
    connection.exec_driver_sql(
        f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {_recordset(table, columns)} {conflict}",  # noqa: S608  # names of ours
        (_json(columns, rows),),
    )


Span = tuple[str, int, int]
"""An hour or a day of a device: device, span_s, start_s."""
_SPAN = ("device", "span_s", "start_s")


def mark_dirty(connection: Connection, spans: Iterable[Span]) -> None:
    """Have these rolled up, after this transaction."""
    rows = sorted(set(spans))
    insert_many(connection, dirty, _SPAN, rows, "ON CONFLICT DO NOTHING")
    if connection.dialect.name == "postgresql":
        # What was there already must still be there when this commits, or the roll-up would have missed our samples.
        # A row that is being struck off made the statement above wait, and then was inserted again.
        lock = f"""SELECT 1 FROM dirty JOIN {_recordset(dirty, _SPAN)} USING (device, span_s, start_s)
                   ORDER BY device, span_s, start_s FOR KEY SHARE OF dirty"""  # noqa: S608  # names of ours
        while rows and connection.exec_driver_sql(lock, (_json(_SPAN, rows),)).rowcount < len(rows):
            insert_many(connection, dirty, _SPAN, rows, "ON CONFLICT DO NOTHING")


def _recordset(table: Table, columns: Sequence[str]) -> str:
    """Rows from one parameter, which the driver has far less work with than with an array for each column."""
    types = ", ".join(f"{name} {table.c[name].type.compile(_POSTGRESQL)}" for name in columns)
    return f"json_to_recordset(%s::json) AS rows ({types})"


def _json(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> str:
    return msgspec.json.encode([dict(zip(columns, row, strict=True)) for row in rows]).decode()


def copy_text(rows: Sequence[tuple[Any, ...]]) -> str:
    """Rows as PostgreSQL's COPY reads them (text format, see its manual under COPY)."""
    return "".join("\t".join(map(_field, row)) + "\n" for row in rows)


def _field(value: object) -> str:
    if value is None:
        return r"\N"
    text = str(value)
    # Nearly all hold none of them, and four searches are faster than one translation.
    if "\\" in text or "\n" in text or "\t" in text or "\r" in text:
        return text.translate(_ESCAPES)
    return text
