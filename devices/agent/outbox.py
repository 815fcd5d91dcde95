"""The disk outbox: records wait here until someone vouches for having them.

An append is on disk when it returns. Sequences only ever grow, and `boot` (the file's own random id joined with the
kernel's boot id) is new whenever the file is, so that (device, boot, sequence) never names two records. Several
processes may use one outbox at once. When it is full the oldest records make room; that is counted, and reported
as a record of its own.
"""

from __future__ import annotations

import fcntl
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ferryman.devices import database
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.record import Record, encode

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_BYTES = 64 << 20
BODY_MAX_BYTES = 1 << 20
OVERHEAD_BYTES = 128
"""Charged per record beside its body."""
_VERSION = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE records (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    boot TEXT NOT NULL, kind TEXT NOT NULL, time_ns INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE totals (id TEXT NOT NULL, records INTEGER NOT NULL, bytes INTEGER NOT NULL, dropped INTEGER NOT NULL);
CREATE TRIGGER added AFTER INSERT ON records BEGIN
    UPDATE totals SET records = records + 1, bytes = bytes + length(new.body) + {OVERHEAD_BYTES}; END;
CREATE TRIGGER removed AFTER DELETE ON records BEGIN
    UPDATE totals SET records = records - 1, bytes = bytes - length(old.body) - {OVERHEAD_BYTES}; END;
INSERT INTO totals VALUES ('%s', 0, 0, 0);
PRAGMA user_version = {_VERSION};
COMMIT;
"""  # noqa: S608  # numbers of ours


class Entry(NamedTuple):
    """One waiting record; `body` is JSON."""

    sequence: int
    boot: str
    kind: str
    time_ns: int
    body: bytes


class Counts(NamedTuple):
    """What is in the outbox, and how many records it ever had to drop."""

    records: int
    bytes: int
    dropped: int


class Dropped(Record):
    """Body of a record of kind `dropped`: the outbox was full and these made room."""

    records: int
    first: int
    last: int
    total: int
    """Over the outbox's life; what counts when a report was itself dropped."""


class SetAside(Record):
    """Body of a record of kind `outbox-set-aside`: the file was damaged and a new one was begun."""

    moved_to: str
    reason: str


class Outbox:
    """One outbox file; safe to use from several threads and processes."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        """Open `path`, or create it; where its disk is full or broken, that is logged, and tried again with every call.

        Raises:
            CallerError: `max_bytes` is too small to be of use.
            DeviceError: the file cannot be opened or made, or a later ferryman wrote it.
        """
        if max_bytes < 1 << 12:
            raise CallerError(f"outbox {path}: max_bytes must be at least 4096, found {max_bytes}")
        self.path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode = -1
        self.id = ""
        """Random, made with the file; the first part of every `boot`. Empty until the file could be opened."""
        self._kernel_boot = _BOOT_ID.read_text().strip()
        try:
            self._run(lambda _: None)
        except DeviceError as error:
            if not database.is_full(error.__cause__):
                raise
            log.error("%s", error)  # noqa: TRY400  # the message says it all

    @property
    def boot(self) -> str:
        """The run of numbers that records appended now belong to."""
        return f"{self.id}.{self._kernel_boot}"

    def append(self, kind: str, body: Record, now_ns: int) -> int:
        """Put one record on disk; returns its sequence.

        Raises:
            CallerError: the body is over BODY_MAX_BYTES, or does not fit the outbox at all.
            DeviceError: the disk is full or broken; nothing was appended.
        """
        return self.append_all([(kind, body)], now_ns)[0]

    def append_all(self, records: Sequence[tuple[str, Record]], now_ns: int) -> list[int]:
        """Put several records on disk in one commit, all or none; returns their sequences.

        Raises:
            CallerError: a body is over BODY_MAX_BYTES, or all do not fit the outbox at once.
            DeviceError: the disk is full or broken; nothing was appended.
        """
        rows = [(kind, encode(body)) for kind, body in records]
        largest = max((len(body) for _, body in rows), default=0)
        size = sum(len(body) + OVERHEAD_BYTES for _, body in rows)
        if largest > BODY_MAX_BYTES or size > self._max_bytes // 2:
            raise CallerError(
                f"telemetry: a body may be {BODY_MAX_BYTES} bytes and one batch {self._max_bytes // 2}, "
                f"found {largest} and {size}; split it"
            )

        def work(connection: sqlite3.Connection) -> list[int]:
            self._make_room(connection, size, now_ns)
            return [self._insert(connection, kind, body, now_ns) for kind, body in rows]

        return self._write(work)

    def pending(self, after: int, limit: int) -> list[Entry]:
        """Read up to `limit` records whose sequence is greater than `after`, in order.

        Raises:
            DeviceError: the disk is broken.
        """
        return self._read("WHERE sequence > ? ORDER BY sequence LIMIT ?", (after, limit))

    def entry(self, sequence: int) -> Entry | None:
        """Read one record; None if it has been forgotten or dropped.

        Raises:
            DeviceError: the disk is broken.
        """
        return next(iter(self._read("WHERE sequence = ?", (sequence,))), None)

    def forget(self, boot: str, ranges: Sequence[tuple[int, int]]) -> int:
        """Remove what someone vouched for (first and last included); returns how many were still here.

        Raises:
            DeviceError: the disk is full or broken; nothing was removed.
        """

        def work(connection: sqlite3.Connection) -> int:
            return sum(
                connection.execute(
                    "DELETE FROM records WHERE sequence BETWEEN ? AND ? AND boot = ?", (first, last, boot)
                ).rowcount
                for first, last in ranges
            )

        # A forgetting that a power cut undoes costs one more sending; an fsync for each would wear the card.
        return self._write(work, durable=False)

    _births = 0

    def next_birth(self) -> int:
        """Count one more connection."""
        self._births += 1
        return self._births

    def counts(self) -> Counts:
        """Count.

        Raises:
            DeviceError: the disk is broken.
        """
        return Counts(*self._run(lambda c: _totals(c, "records, bytes, dropped")))

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        with self._lock:
            self._close()

    def _read(self, where: str, arguments: tuple[int, ...]) -> list[Entry]:
        query = f"SELECT sequence, boot, kind, time_ns, body FROM records {where}"  # noqa: S608
        return self._run(lambda c: [Entry(*row) for row in c.execute(query, arguments)])

    def _insert(self, connection: sqlite3.Connection, kind: str, body: bytes, now_ns: int) -> int:
        row = (self.boot, kind, now_ns, body)
        sequence = connection.execute(
            "INSERT INTO records (boot, kind, time_ns, body) VALUES (?, ?, ?, ?)", row
        ).lastrowid
        assert sequence is not None  # noqa: S101  # an INSERT has one
        return sequence

    def _make_room(self, connection: sqlite3.Connection, size: int, now_ns: int) -> None:
        (used, total) = _totals(connection, "bytes, dropped")
        if used + size <= self._max_bytes:
            return
        # Some more than needed goes, so that a full outbox does not add one report for each record.
        excess = used + size + 2 * OVERHEAD_BYTES - self._max_bytes + self._max_bytes // 16
        freed = records = first = last = 0
        for sequence, length in connection.execute("SELECT sequence, length(body) FROM records ORDER BY sequence"):
            if freed >= excess:
                break
            first, last, records = first or sequence, sequence, records + 1
            freed += length + OVERHEAD_BYTES
        connection.execute("DELETE FROM records WHERE sequence <= ?", (last,))
        connection.execute("UPDATE totals SET dropped = dropped + ?", (records,))
        log.warning("outbox %s: full; dropped the %d oldest records (%d..%d)", self.path, records, first, last)
        report = Dropped(records=records, first=first, last=last, total=total + records)
        self._insert(connection, "dropped", encode(report), now_ns)

    def _write(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
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

        return self._run(transaction)

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
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
                if database.version(connection, self.path, _VERSION) == 0:
                    connection.executescript(_SCHEMA % secrets.token_hex(8))
                connection.execute("SELECT sequence, boot, kind, time_ns, body FROM records LIMIT 0")
                (self.id,) = _totals(connection, "id")
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
        body = encode(SetAside(moved_to=str(moved_to), reason=reason))
        self._insert(self._open(), "outbox-set-aside", body, time.time_ns())

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


def _totals(connection: sqlite3.Connection, columns: str) -> Any:  # noqa: ANN401  # a row, as the columns say
    row = connection.execute(f"SELECT {columns} FROM totals").fetchone()  # noqa: S608  # names of ours
    if row is None:
        raise database.DamagedError("its table `totals` is empty")
    return row
