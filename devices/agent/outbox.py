"""The disk outbox: records wait here until someone vouches for having them.

An append is on disk when it returns. Sequences only ever grow, and `boot` (the file's own random id joined with the
kernel's boot id) is new whenever the file is, so that (device, boot, sequence) never names two records. Several
processes may use one outbox at once. When it is full the oldest records of the lowest priority make room, and records
of bulk are not kept for ever; what is dropped is counted, and reported as a record of its own (`outbox_room`).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ferryman.devices import database
from ferryman.devices.agent import outbox_room as room
from ferryman.devices.agent.clock import Clock, Reading, kernel_boot, read_clock
from ferryman.devices.agent.outbox_file import OVERHEAD_BYTES, OutboxFile, SetAside, totals
from ferryman.devices.agent.outbox_room import Drop, Dropped
from ferryman.runtime.contracts.envelope import KIND_MAX_CHARS
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.record import Record, encode
from ferryman.runtime.contracts.telemetry import Priority, priority

__all__ = ["BODY_MAX_BYTES", "Counts", "Dropped", "Entry", "Outbox", "SetAside", "Waiting"]

log = logging.getLogger(__name__)

FILE = "outbox.sqlite"
"""In an agent's root."""
MAX_BYTES = 64 << 20
BODY_MAX_BYTES = 1 << 20
KEEP_DAYS = 7.0
_DAY_NS = 86_400 * 10**9
_COLUMNS = "sequence, boot, kind, time_ns, body, priority, uptime_ns, sure"


class Entry(NamedTuple):
    """One waiting record; `body` is JSON."""

    sequence: int
    boot: str
    kind: str
    time_ns: int
    body: bytes
    priority: Priority
    uptime_ns: int | None
    """CLOCK_BOOTTIME; None: a version of ferryman appended it that did not note this."""
    sure: bool
    """Whether the wall clock was synchronised."""


class Counts(NamedTuple):
    """What is in the outbox, and how many records it ever had to drop."""

    records: int
    bytes: int
    dropped: int


class Waiting(NamedTuple):
    """What waits of one kind."""

    kind: str
    priority: Priority
    records: int
    bytes: int
    oldest_ns: int
    """Wall clock of the earliest."""


class Outbox:
    """One outbox file; safe to use from several threads and processes."""

    def __init__(
        self, path: Path, *, max_bytes: int = MAX_BYTES, keep_days: float = KEEP_DAYS, clock: Clock = read_clock
    ) -> None:
        """Open `path`, or create it; where its disk is full or broken, that is logged, and tried again with every call.

        Args:
            path: the file; one of an earlier version is brought up to this one, and nothing in it is lost.
            max_bytes: of bodies, and OVERHEAD_BYTES for each.
            keep_days: how long records of bulk may wait; others wait until room is short.
            clock: what time it is.

        Raises:
            CallerError: `max_bytes` or `keep_days` is too small to be of use.
            DeviceError: the file cannot be opened or made, or a later ferryman wrote it.
        """
        if max_bytes < 1 << 12:
            raise CallerError(f"outbox {path}: max_bytes must be at least 4096, found {max_bytes}")
        if not keep_days > 0:
            raise CallerError(f"outbox {path}: keep_days must be more than 0, found {keep_days}")
        self.path = path
        self._max_bytes = max_bytes
        self._keep_ns = int(keep_days * _DAY_NS)
        self.clock = clock
        self._kernel_boot = kernel_boot()
        self._file = OutboxFile(path, self._note_aside)
        try:
            self._file.run(lambda _: None)
        except DeviceError as error:
            if not database.is_full(error.__cause__):
                raise
            log.error("%s", error)  # noqa: TRY400  # the message says it all

    @property
    def id(self) -> str:
        """Random, made with the file; the first part of every `boot`. Empty until the file could be opened."""
        return self._file.id

    @property
    def boot(self) -> str:
        """The run of numbers that records appended now belong to."""
        return f"{self.id}.{self._kernel_boot}"

    def append(self, kind: str, body: Record, made: Reading | None = None) -> int:
        """Put one record on disk; returns its sequence. See `append_all`."""
        return self.append_all([(kind, body)], made)[0]

    def append_all(self, records: Sequence[tuple[str, Record]], made: Reading | None = None) -> list[int]:
        """Put several records on disk in one commit, all or none; returns their sequences.

        Args:
            records: kind and body of each.
            made: when they were made; None: now.

        Raises:
            CallerError: a body is over BODY_MAX_BYTES, all do not fit the outbox at once, or a kind has no name.
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
        for kind, _ in rows:
            if not 0 < len(kind) <= KIND_MAX_CHARS:
                raise CallerError(f"telemetry: a kind is 1 to {KIND_MAX_CHARS} characters, found {kind[:80]!r}")
        now = self.clock()

        def work(connection: sqlite3.Connection) -> list[int]:
            sequences = self._insert(connection, rows, made or now)
            if sequences and room.make_room(connection, self._max_bytes, sequences[0]):
                self._report(connection, now)
            return list(sequences)

        return self._file.write(work)

    def pending(self, after: int, limit: int) -> list[Entry]:
        """Read up to `limit` records whose sequence is greater than `after`, in order.

        Raises:
            DeviceError: the disk is broken.
        """
        return self._read("WHERE sequence > ? ORDER BY sequence LIMIT ?", (after, limit))

    def waiting(self, level: Priority, after: int, limit: int, max_bytes: int) -> list[Entry]:
        """Read records of one priority after a sequence, in order: up to `limit`, and one past `max_bytes` of bodies.

        Raises:
            DeviceError: the disk is broken.
        """
        where = "WHERE priority = ? AND sequence > ? ORDER BY sequence LIMIT ?"
        return self._read(where, (level, after, limit), max_bytes)

    def between(self, first: int, last: int) -> list[Entry]:
        """Read what is left of a range, both ends included.

        Raises:
            DeviceError: the disk is broken.
        """
        return self._read("WHERE sequence BETWEEN ? AND ? ORDER BY sequence", (first, last))

    def newest(self) -> int:
        """The sequence that was given last; 0: none was.

        Raises:
            DeviceError: the disk is broken.
        """
        return self._file.run(lambda c: next((int(row[0]) for row in c.execute("SELECT seq FROM sqlite_sequence")), 0))

    def forget(self, boot: str, ranges: Sequence[tuple[int, int]], sent: Mapping[Priority, int] | None = None) -> int:
        """Remove what someone vouched for (first and last included); returns how many were still here.

        Args:
            boot: the run of numbers.
            ranges: of sequences.
            sent: of each priority none beyond this sequence is removed; None: there is no such bound.

        Raises:
            DeviceError: the disk is full or broken; nothing was removed.
        """
        now = self.clock()
        where = "sequence BETWEEN ? AND ? AND boot = ?"
        bounds: tuple[int, ...] = ()
        if sent is not None:
            where += " AND sequence <= CASE priority WHEN ? THEN ? WHEN ? THEN ? ELSE ? END"
            bounds = (
                Priority.BULK, sent[Priority.BULK], Priority.VITAL, sent[Priority.VITAL], sent[Priority.NORMAL]
            )  # fmt: skip

        def work(connection: sqlite3.Connection) -> int:
            gone = sum(
                connection.execute(f"DELETE FROM records WHERE {where}", (first, last, boot, *bounds)).rowcount  # noqa: S608
                for first, last in ranges
            )
            connection.execute("UPDATE totals SET receipt_ns = ?", (now.time_ns,))
            self._report(connection, now)
            return gone

        # A forgetting that a power cut undoes costs one more sending; an fsync for each would wear the card.
        return self._file.write(work, durable=False)

    def expire(self) -> None:
        """Drop records of bulk that have waited too long.

        Raises:
            DeviceError: the disk is full or broken; nothing was dropped.
        """
        now = self.clock()

        def work(connection: sqlite3.Connection) -> None:
            if room.expire(connection, self._keep_ns, now, self._kernel_boot):
                self._report(connection, now)

        self._file.write(work)

    def next_birth(self) -> int:
        """Count one more connection; on disk when it returns, so that no number is given twice while the file lives.

        Raises:
            DeviceError: the disk is full or broken.
        """

        def work(connection: sqlite3.Connection) -> int:
            connection.execute("UPDATE totals SET births = births + 1")
            return int(totals(connection, "births")[0])

        return self._file.write(work)

    def counts(self) -> Counts:
        """Count.

        Raises:
            DeviceError: the disk is broken.
        """
        return Counts(*self._file.run(lambda c: totals(c, "records, bytes, dropped")))

    def kinds(self) -> list[Waiting]:
        """What waits, by kind; reads the whole outbox.

        Raises:
            DeviceError: the disk is broken.
        """
        query = (
            f"SELECT kind, priority, count(*), sum(length(body) + {OVERHEAD_BYTES}), min(time_ns) "  # noqa: S608
            "FROM records GROUP BY kind, priority ORDER BY priority DESC, kind"
        )
        return self._file.run(
            lambda c: [Waiting(kind, Priority(level), *rest) for kind, level, *rest in c.execute(query)]
        )

    def drops(self) -> list[Drop]:
        """What was ever dropped, by kind.

        Raises:
            DeviceError: the disk is broken.
        """
        return self._file.run(room.drops)

    def receipt_ns(self) -> int | None:
        """Wall clock when something was last vouched for; None: never.

        Raises:
            DeviceError: the disk is broken.
        """
        found: int | None = self._file.run(lambda c: totals(c, "receipt_ns"))[0]
        return found

    def note(self, name: str) -> bytes | None:
        """Read what `keep_note` kept.

        Raises:
            DeviceError: the disk is broken.
        """
        query = "SELECT value FROM notes WHERE name = ?"
        return self._file.run(lambda c: next((bytes(row[0]) for row in c.execute(query, (name,))), None))

    def keep_note(self, name: str, value: bytes, *, durable: bool = True) -> None:
        """Keep something beside the records, for the next run of whoever sends them.

        Raises:
            DeviceError: the disk is full or broken; the note is as it was.
        """
        query = "INSERT OR REPLACE INTO notes VALUES (?, ?)"
        self._file.write(lambda c: c.execute(query, (name, value)), durable=durable)

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        self._file.close()

    def _read(self, where: str, arguments: tuple[int, ...], max_bytes: int | None = None) -> list[Entry]:
        def work(connection: sqlite3.Connection) -> list[Entry]:
            entries: list[Entry] = []
            size = 0
            for sequence, boot, kind, time_ns, body, level, uptime_ns, sure in connection.execute(
                f"SELECT {_COLUMNS} FROM records {where}",  # noqa: S608  # names of ours
                arguments,
            ):
                entries.append(Entry(sequence, boot, kind, time_ns, body, Priority(level), uptime_ns, bool(sure)))
                size += len(body)
                if max_bytes is not None and size > max_bytes:
                    break
            return entries

        return self._file.run(work)

    def _insert(self, connection: sqlite3.Connection, rows: Sequence[tuple[str, bytes]], made: Reading) -> range:
        """Add rows; returns their sequences, which follow each other within a transaction."""
        boot = self.boot
        connection.executemany(
            "INSERT INTO records (boot, kind, time_ns, body, priority, uptime_ns, sure) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(boot, kind, made.time_ns, body, int(priority(kind)), made.uptime_ns, made.sure) for kind, body in rows],
        )
        last = int(connection.execute("SELECT last_insert_rowid()").fetchone()[0])
        return range(last - len(rows) + 1, last + 1)

    def _report(self, connection: sqlite3.Connection, now: Reading) -> None:
        report = room.report(connection)
        if report is None:
            return
        log.warning(
            "outbox %s: dropped %d records, of sequences %d..%d, %d of them too old, the others for want of room",
            self.path,
            report.records,
            report.first,
            report.last,
            report.aged,
        )
        (sequence,) = self._insert(connection, [("dropped", encode(report))], now)
        connection.execute("UPDATE totals SET report = ?", (sequence,))
        room.make_room(connection, self._max_bytes, sequence)

    def _note_aside(self, connection: sqlite3.Connection, aside: SetAside) -> None:
        self._insert(connection, [("outbox-set-aside", encode(aside))], self.clock())
