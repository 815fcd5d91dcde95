"""The tables of this version: made, or made of those of version 1 (SQLite, ferryman 0.1) in one transaction."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, insert

from ferryman.devices.fleet.store import postgresql
from ferryman.devices.fleet.store.engine import Database
from ferryman.devices.fleet.store.tables import VERSION, metadata, store

_SLICE = 50_000
_OLD = ("store", "records", "quarantine", "devices")


def make_tables(connection: Connection, store_id: str) -> None:
    """All tables of this version, within the caller's transaction."""
    if connection.dialect.name == "postgresql":
        postgresql.make_records(connection)
    metadata.create_all(connection)
    connection.execute(insert(store).values(id=store_id, version=VERSION))
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")


def migrate(opened: Database, on_progress: Callable[[str], None]) -> None:
    """Rewrite the tables; killed at any moment, the file is what it was or what it becomes.

    Raises:
        StoreError: no room on the disk (it takes as much again as the file), or it may not be written.
    """

    def work(connection: Connection) -> None:
        if connection.exec_driver_sql("PRAGMA user_version").scalar_one() != 1:
            return  # another process was first
        store_id = connection.exec_driver_sql("SELECT id FROM store").scalar() or ""
        for name in _OLD:
            connection.exec_driver_sql(f"ALTER TABLE {name} RENAME TO old_{name}")
        make_tables(connection, store_id)
        connection.exec_driver_sql(
            "INSERT INTO sources (device, boot) SELECT DISTINCT device, boot FROM old_records ORDER BY 1, 2"
        )
        last = connection.exec_driver_sql("SELECT max(rowid) FROM old_records").scalar() or 0
        for start in range(0, last, _SLICE):
            on_progress(f"store {opened.name}: rewriting it for this version, {100 * start // last} %")
            connection.exec_driver_sql(
                """INSERT INTO records (source, sequence, kind, time_ns, recorded_ns, clock, received_ns, body)
                   SELECT s.id, sequence, kind, time_ns, time_ns, 0, received_at_ns, body
                   FROM old_records o JOIN sources s ON s.device = o.device AND s.boot = o.boot
                   WHERE o.rowid > ? AND o.rowid <= ?""",
                (start, start + _SLICE),
            )
        connection.exec_driver_sql(
            "INSERT INTO quarantine SELECT sha256, topic, raw, reason, received_at_ns, times FROM old_quarantine"
        )
        connection.exec_driver_sql(
            """INSERT INTO devices SELECT device, status,
               CASE WHEN json_valid(status) THEN coalesce(json_extract(status, '$.online'), 0) ELSE 0 END,
               0, seen_at_ns, seen_at_ns FROM old_devices"""
        )
        connection.exec_driver_sql(  # SQLite takes the body from the row that holds the maximum
            """INSERT INTO latest SELECT device, kind, max(time_ns), body FROM old_records
               WHERE kind IN ('update', 'slots') GROUP BY device, kind"""
        )
        for name in _OLD:
            connection.exec_driver_sql(f"DROP TABLE old_{name}")

    opened.write(work)
