"""Many rows in one statement, as each database takes them fastest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

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
    types = (table.c[name].type.compile(_POSTGRESQL) for name in columns)
    arrays = ", ".join(f"%s::{kind}[]" for kind in types)
    values = tuple(list(column) for column in zip(*rows, strict=True))
    connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) SELECT * FROM unnest({arrays}) {conflict}", values)  # noqa: S608  # names of ours


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
        lock = """SELECT 1 FROM dirty JOIN unnest(%s::text[], %s::int[], %s::bigint[]) AS want (device, span_s, start_s)
                  USING (device, span_s, start_s) ORDER BY device, span_s, start_s FOR KEY SHARE OF dirty"""
        values = tuple(list(column) for column in zip(*rows, strict=True))
        while rows and connection.exec_driver_sql(lock, values).rowcount < len(rows):
            insert_many(connection, dirty, _SPAN, rows, "ON CONFLICT DO NOTHING")


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
