"""Is it a store, and of which version; and then: make it, migrate it, or refuse it untouched."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, MetaData, Table, Text, select

from ferryman.devices import database
from ferryman.devices.fleet.store import migrate, postgresql
from ferryman.devices.fleet.store.engine import Database
from ferryman.devices.fleet.store.tables import VERSION, metadata, store
from ferryman.runtime.contracts.errors import StoreError

_TABLES = {"store", "records", "quarantine", "devices"}
"""Of every version."""

carrying = Table(
    "carrying",
    MetaData(),
    Column("name", Text, primary_key=True),
    Column("source", Text, nullable=False),  # of which store, and how new
    Column("total", BigInteger, nullable=False),
    Column("upto", BigInteger, nullable=False),  # the last row that is here, by its number in the source
    Column("refused", BigInteger, nullable=False),
)
"""How far each table of another store is carried to this one; there while that is not done."""


def identify(opened: Database, *, create: bool, on_progress: Callable[[str], None], carries: bool = False) -> str:
    """The store's id; nothing is written before the database is known to be a store, or empty.

    Raises:
        StoreError: it is damaged, something else, a later ferryman wrote it, or another store is only half carried to
            it, unless the caller `carries` on with that.
    """
    with opened.reading() as connection:
        found = _names(connection)
    if carrying.name in found and not carries:
        raise StoreError(
            f"store {opened.name}: another store is being carried to it, and that is not done; run `ferryman fleet "
            "copy` again, which goes on where it was"
        )
    if not found and create:
        _make(opened)
    elif not found >= _TABLES:
        raise StoreError(
            f"store {opened.name} is no store of ferryman (expected tables {', '.join(sorted(_TABLES))} and more, "
            f"found {', '.join(sorted(found)) or 'none'}); name the one that `ferryman collect` wrote, or a new one"
        )
    with opened.reading() as connection:
        version = _version(connection)
        if version > VERSION:
            raise database.LaterVersionError(
                f"{opened.name}: a later ferryman wrote it (version {version}, this one knows {VERSION}); "
                "upgrade ferryman, or name another"
            )
    if version < VERSION:
        _migrate(opened, on_progress)
    elif create:
        if opened.dialect == "sqlite":
            _write_ahead(opened)
        if found and not found >= set(metadata.tables):
            _add(opened)
    rows = opened.read(select(store.c.id))
    if not rows:
        raise opened.error(database.DamagedError("its table `store` is empty"))
    return str(rows[0][0])


def _make(opened: Database) -> None:
    if opened.dialect == "sqlite":
        _write_ahead(opened)

    def work(connection: Connection) -> None:
        if opened.dialect == "postgresql":
            postgresql.one_at_a_time(connection)
        if not _names(connection):  # another process may have made it in the meantime
            migrate.make_tables(connection, secrets.token_hex(8))

    opened.write(work)


def _add(opened: Database) -> None:
    """The tables that came without another version: whoever does not know them leaves them alone."""

    def work(connection: Connection) -> None:
        if opened.dialect == "postgresql":
            postgresql.one_at_a_time(connection)
        metadata.create_all(connection)

    opened.write(work)


def _migrate(opened: Database, on_progress: Callable[[str], None]) -> None:
    writer = Database(opened.path or "", read_only=False)  # ours may only read
    try:
        migrate.migrate(writer, on_progress)
    finally:
        writer.close()


def _write_ahead(opened: Database) -> None:
    with opened.reading() as connection:
        driver: Any = connection.connection.driver_connection
        database.write_ahead(driver)


def _names(connection: Connection) -> set[str]:
    if connection.dialect.name == "postgresql":
        return postgresql.tables(connection)
    query = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    return set(connection.exec_driver_sql(query).scalars())


def _version(connection: Connection) -> int:
    if connection.dialect.name == "sqlite":
        return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    return connection.execute(select(store.c.version)).scalar() or VERSION
