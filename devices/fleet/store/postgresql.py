"""What PostgreSQL has beside the common tables: `records` in parts, and TimescaleDB where it is installed."""

from __future__ import annotations

import logging

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, CreateTable

from ferryman.devices.fleet.store.tables import records

log = logging.getLogger(__name__)

PARTS = 16
_CHUNK_NS = 7 * 86400 * 10**9
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
    """The table of records, cut by time by TimescaleDB, or else by source.

    By source: a message falls into one part, whose index is a sixteenth; and the key that makes inserting idempotent
    needs no time in it.
    """
    create = str(CreateTable(records).compile(dialect=connection.dialect))
    if _has_timescale(connection):
        # Its unique keys must hold the time. A record that is sent again has the same one.
        key = "PRIMARY KEY (source, sequence"
        connection.exec_driver_sql(create.replace(key, f"{key}, recorded_ns"))
        connection.exec_driver_sql(
            f"SELECT create_hypertable('records', 'recorded_ns', chunk_time_interval => {_CHUNK_NS}::bigint)"
        )
        for index in records.indexes:
            connection.execute(CreateIndex(index))
        return
    connection.exec_driver_sql(f"{create.rstrip()} PARTITION BY HASH (source)")
    for part in range(PARTS):
        connection.exec_driver_sql(
            f"CREATE TABLE records_{part} PARTITION OF records FOR VALUES WITH (MODULUS {PARTS}, REMAINDER {part})"
        )
    for index in records.indexes:
        connection.execute(CreateIndex(index))


def drop_empty_chunks(connection: Connection) -> None:
    """TimescaleDB's chunks that retention has emptied; without it there is nothing to do.

    A chunk is dropped whole, and records of a wrong clock lie in chunks of long ago: so only those before the oldest
    record that is left, and while nobody inserts.
    """
    if not connection.exec_driver_sql("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'").first():
        return
    connection.exec_driver_sql("LOCK TABLE records IN SHARE ROW EXCLUSIVE MODE")
    oldest = connection.exec_driver_sql("SELECT min(recorded_ns) FROM records").scalar()
    if oldest is not None:
        connection.exec_driver_sql(f"SELECT drop_chunks('records', older_than => {int(oldest)}::bigint)")


def _has_timescale(connection: Connection) -> bool:
    available = "SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'"
    if not connection.exec_driver_sql(available).first():
        return False
    try:
        with connection.begin_nested():
            connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS timescaledb")
    except DBAPIError as error:
        log.warning("TimescaleDB is there and not used, for it cannot be made: %s", " ".join(str(error.orig).split()))
        return False
    return True
