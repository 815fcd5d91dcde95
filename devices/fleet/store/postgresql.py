"""What PostgreSQL has beside the common tables: `records` in parts, and TimescaleDB where it is installed."""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.schema import CreateIndex, CreateTable

from ferryman.devices.fleet.store.tables import records

PARTS = 16
_LOCK = 0x66657273  # of advisory locks


def one_at_a_time(connection: Connection) -> None:
    """Only one process makes the tables; the others wait."""
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")


def tables(connection: Connection) -> set[str]:
    """The tables of the schema that new ones would go to, without those that an extension brought."""
    query = """
        SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p')
          AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')"""
    return set(connection.exec_driver_sql(query).scalars())


def make_records(connection: Connection) -> None:
    """The table of records, cut by source: each part has a small index, and its own share of vacuum."""
    create = str(CreateTable(records).compile(dialect=connection.dialect))
    connection.exec_driver_sql(f"{create.rstrip()} PARTITION BY HASH (source)")
    for part in range(PARTS):
        connection.exec_driver_sql(
            f"CREATE TABLE records_{part} PARTITION OF records FOR VALUES WITH (MODULUS {PARTS}, REMAINDER {part})"
        )
    for index in records.indexes:
        connection.execute(CreateIndex(index))
