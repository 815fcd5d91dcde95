"""The SQLite file under an outbox: made, brought up to this version, shared by processes, set aside when damaged."""

from __future__ import annotations

import fcntl
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ferryman.devices import database
from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.telemetry import priority

log = logging.getLogger(__name__)
T = TypeVar("T")

OVERHEAD_BYTES = 128
"""Charged per record beside its body."""

_VERSION_1 = f"""
BEGIN IMMEDIATE;
CREATE TABLE records (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    boot TEXT NOT NULL, kind TEXT NOT NULL, time_ns INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE totals (id TEXT NOT NULL, records INTEGER NOT NULL, bytes INTEGER NOT NULL, dropped INTEGER NOT NULL);
CREATE TRIGGER added AFTER INSERT ON records BEGIN
    UPDATE totals SET records = records + 1, bytes = bytes + length(new.body) + {OVERHEAD_BYTES}; END;
CREATE TRIGGER removed AFTER DELETE ON records BEGIN
    UPDATE totals SET records = records - 1, bytes = bytes - length(old.body) - {OVERHEAD_BYTES}; END;
INSERT INTO totals VALUES (new_id(), 0, 0, 0);
PRAGMA user_version = 1;
COMMIT;
"""  # noqa: S608  # a number of ours
# The defaults are for an agent of version 1 that still has the file open.
_VERSION_2 = """
BEGIN IMMEDIATE;
ALTER TABLE records ADD COLUMN priority INTEGER NOT NULL DEFAULT 1;
ALTER TABLE records ADD COLUMN uptime_ns INTEGER;
ALTER TABLE records ADD COLUMN sure INTEGER NOT NULL DEFAULT 0;
UPDATE records SET priority = priority_of(kind);
CREATE INDEX by_priority ON records (priority);
ALTER TABLE totals ADD COLUMN births INTEGER NOT NULL DEFAULT 0;
ALTER TABLE totals ADD COLUMN report INTEGER NOT NULL DEFAULT 0;
ALTER TABLE totals ADD COLUMN receipt_ns INTEGER;
CREATE TABLE drops (
    kind TEXT NOT NULL, priority INTEGER NOT NULL, aged INTEGER NOT NULL,
    records INTEGER NOT NULL, unreported INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (kind, priority, aged));
CREATE TABLE notes (name TEXT PRIMARY KEY, value BLOB NOT NULL);
PRAGMA user_version = 2;
COMMIT;
"""
_STEPS = (_VERSION_1, _VERSION_2)
"""Step n makes version n out of the one before; a new file takes them all, a kill between two is made good later."""
_PROBES = (
    "SELECT sequence, boot, kind, time_ns, body, priority, uptime_ns, sure FROM records LIMIT 0",
    "SELECT kind, priority, aged, records, unreported, first, last FROM drops LIMIT 0",
    "SELECT name, value FROM notes LIMIT 0",
)


class SetAside(Record):
    """Body of a record of kind `outbox-set-aside`: the file was damaged and a new one was begun."""

    moved_to: str
    reason: str


class OutboxFile:
    """One file; safe to use from several threads and processes."""

    def __init__(self, path: Path, on_set_aside: Callable[[sqlite3.Connection, SetAside], None]) -> None:
        """Name the file; nothing is opened yet.

        Args:
            path: where it is, or is to be.
            on_set_aside: called with the new file when a damaged one was moved away.
        """
        self.path = path
        self.id = ""
        """Random, made with the file. Empty until the file could be opened."""
        self._on_set_aside = on_set_aside
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode = -1

    def write(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Do `work` in one transaction, on disk when this returns; if not `durable`, a power cut may undo it.

        Raises:
            DeviceError: the disk is full or broken; nothing was written.
        """

        def transaction(connection: sqlite3.Connection) -> T:
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

        return self.run(transaction)

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work`; with the new file, if the old one turns out to be damaged.

        Raises:
            DeviceError: the disk is full or broken.
        """
        with self._lock:
            try:
                try:
                    return work(self._open())
                except sqlite3.DatabaseError as error:
                    # Our statements fit our tables: SQLITE_ERROR is a table that is gone, or another's.
                    foreign = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR
                    if not (foreign or database.is_corrupt(error)):
                        raise
                    self._set_aside(str(error))
                    return work(self._open())
            except database.LaterVersionError as error:
                raise DeviceError(f"outbox {error}") from error
            except sqlite3.Error as error:
                raise DeviceError(f"outbox {database.explain(error, self.path)}") from error
            except OSError as error:
                raise DeviceError(f"outbox {self.path}: {error}; check its folder and disk") from error

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        with self._lock:
            self._close()

    def _open(self) -> sqlite3.Connection:
        """The connection to the file that is at `path` now; another process may have set the old one aside."""
        if self._connection is not None and self._inode == self._inode_now():
            if self.path.stat().st_size == 0:
                raise database.DamagedError("it was cut to 0 bytes")
            return self._connection
        self._close()
        with self._file_lock():
            self._inode = self._inode_now()
            self._connection = connection = database.connect(self.path)
            try:
                database.write_ahead(connection)
                connection.create_function("new_id", 0, lambda: secrets.token_hex(8))
                connection.create_function("priority_of", 1, lambda kind: int(priority(kind)))
                for step in _STEPS[database.version(connection, self.path, len(_STEPS)) :]:
                    connection.executescript(step)
                for probe in _PROBES:
                    connection.execute(probe)
                (self.id,) = totals(connection, "id")
                totals(connection, "records, bytes, dropped, births, report, receipt_ns")
            except BaseException:
                self._close()
                raise
            self._inode = self._inode_now()
            return connection

    def _set_aside(self, reason: str) -> None:
        """Move the damaged file away; the next `_open` makes a new one, whose first record says so."""
        self._close()
        with self._file_lock():
            if self._inode_now() != self._inode:
                return  # another process was here first
            moved_to = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
            for suffix in ("-wal", "-shm", ""):
                part = self.path.with_name(self.path.name + suffix)
                if part.exists():
                    part.rename(moved_to.with_name(moved_to.name + suffix))
        log.error("outbox %s: damaged (%s); moved to %s, beginning a new one", self.path, reason, moved_to)
        self._on_set_aside(self._open(), SetAside(moved_to=str(moved_to), reason=reason))

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _inode_now(self) -> int:
        try:
            return self.path.stat().st_ino
        except FileNotFoundError:
            return -1

    @contextmanager
    def _file_lock(self) -> Iterator[None]:
        """Hold off other processes while the file is made or replaced."""
        with self.path.with_name(f"{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def totals(connection: sqlite3.Connection, columns: str) -> Any:  # noqa: ANN401  # a row, as the columns say
    """Read the one row of totals.

    Raises:
        DamagedError: it is gone.
    """
    row = connection.execute(f"SELECT {columns} FROM totals").fetchone()  # noqa: S608  # names of ours
    if row is None:
        raise database.DamagedError("its table `totals` is empty")
    return row
