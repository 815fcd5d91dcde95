"""What the collector keeps, in one SQLite file: records, what could not be taken, and who is there.

Inserting is idempotent on (device, boot, sequence). Queries answer with typed records, so that the command line, pages
and exports share them.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ferryman.devices import database
from ferryman.runtime.contracts.envelope import Envelope
from ferryman.runtime.contracts.errors import CallerError, StoreError
from ferryman.runtime.contracts.measurement import Measurement
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record, decode, encode

T = TypeVar("T")
_VERSION = 1
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE store (id TEXT NOT NULL);
CREATE TABLE records (
    device TEXT NOT NULL, boot TEXT NOT NULL, sequence INTEGER NOT NULL,
    kind TEXT NOT NULL, time_ns INTEGER NOT NULL, received_at_ns INTEGER NOT NULL, body TEXT NOT NULL,
    UNIQUE (device, boot, sequence));
CREATE INDEX records_by_time ON records (kind, time_ns);
CREATE TABLE quarantine (
    sha256 BLOB PRIMARY KEY, topic TEXT NOT NULL, raw BLOB NOT NULL, reason TEXT NOT NULL,
    received_at_ns INTEGER NOT NULL, times INTEGER NOT NULL DEFAULT 1);
CREATE TABLE devices (device TEXT PRIMARY KEY, status TEXT NOT NULL, seen_at_ns INTEGER NOT NULL);
INSERT INTO store VALUES ('%s');
PRAGMA user_version = {_VERSION};
COMMIT;
"""  # noqa: S608  # a number of ours


class Bad(NamedTuple):
    """A message that could not be taken, whole, and why."""

    topic: str
    raw: bytes
    reason: str


class Batch(NamedTuple):
    """What one commit takes in; each envelope beside the topic and bytes it came as."""

    envelopes: Sequence[tuple[Envelope, str, bytes]] = ()
    bad: Sequence[Bad] = ()
    statuses: Sequence[Status] = ()


class Inserted(NamedTuple):
    """What became of a batch."""

    new: int
    duplicates: int
    conflicts: int
    """Same (device, boot, sequence) as a stored record, another content: quarantined."""


class DeviceMeasurement(Record):
    """A measurement and where it comes from."""

    device: str
    received_at_ns: int
    measurement: Measurement


class DeviceStatus(Record):
    """The last a device said of itself."""

    seen_at_ns: int
    status: Status


class Quarantined(Record):
    """A message that was not taken."""

    topic: str
    raw: bytes
    reason: str
    received_at_ns: int
    times: int


class Totals(NamedTuple):
    """How much is in the store."""

    records: int
    quarantined: int
    devices: int


class Store:
    """One database file; safe to use from several threads, and while another process reads or writes."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open `path`, or make it if `create`.

        Raises:
            CallerError: there is no such file, and `create` is false.
            StoreError: it cannot be opened, is damaged, or a later ferryman wrote it.
        """
        if not create and not path.exists():
            raise CallerError(f"store {path}: no such file; run `ferryman collect` first, or name another")
        self.path = path
        self._lock = threading.Lock()
        try:
            self._connection = database.connect(path)
            if database.version(self._connection, path, _VERSION) == 0:
                self._create()
            self.id = str(self._connection.execute("SELECT id FROM store").fetchone()[0])
            """Random, made with the file."""
        except database.LaterVersionError as error:
            self._connection.close()
            raise StoreError(f"store {error}") from error
        except sqlite3.Error as error:
            raise StoreError(f"store {database.explain(error, path)}") from error

    def insert(self, batch: Batch, now_ns: int) -> Inserted:
        """Take in a batch in one commit, on disk when this returns.

        Raises:
            StoreError: the disk is full or broken; nothing was taken.
        """

        def work(connection: sqlite3.Connection) -> Inserted:
            new = 0
            conflicts = []
            for envelope, topic, raw in batch.envelopes:
                if self._insert_record(connection, envelope, now_ns):
                    new += 1
                elif not self._is_stored(connection, envelope):
                    reason = "conflict: another record of this device, boot and sequence is stored"
                    conflicts.append(Bad(topic, raw, reason))
            for bad in (*batch.bad, *conflicts):
                self._quarantine(connection, bad, now_ns)
            for status in batch.statuses:
                connection.execute(
                    "INSERT OR REPLACE INTO devices VALUES (?, ?, ?)",
                    (status.device, encode(status).decode(), now_ns),
                )
            return Inserted(new, len(batch.envelopes) - new - len(conflicts), len(conflicts))

        return self._write(work)

    def measurements(
        self, *, device: str | None = None, package: str | None = None, limit: int = 1000
    ) -> list[DeviceMeasurement]:
        """Measurements, the newest (by the device's clock) first.

        Args:
            device: only of this one.
            package: only of this one: its name, or its sha256.
            limit: at most so many.

        Raises:
            StoreError: the database cannot be read.
        """
        query = """
            SELECT device, received_at_ns, body FROM records WHERE kind = 'measurement'
            AND (:device IS NULL OR device = :device)
            AND (:package IS NULL OR json_extract(body, '$.package_name') = :package
                 OR json_extract(body, '$.package_sha256') = :package)
            ORDER BY time_ns DESC, sequence DESC LIMIT :limit"""
        arguments = {"device": device, "package": package, "limit": limit}
        return [
            DeviceMeasurement(device=name, received_at_ns=received, measurement=decode(body.encode(), Measurement))
            for name, received, body in self._read(query, arguments)
        ]

    def devices(self) -> list[DeviceStatus]:
        """Every device that ever said something of itself, by name.

        Raises:
            StoreError: the database cannot be read.
        """
        rows = self._read("SELECT status, seen_at_ns FROM devices ORDER BY device", {})
        return [DeviceStatus(status=decode(body.encode(), Status), seen_at_ns=seen) for body, seen in rows]

    def quarantine(self, *, limit: int = 1000) -> list[Quarantined]:
        """What was not taken, the newest first.

        Raises:
            StoreError: the database cannot be read.
        """
        query = """SELECT topic, raw, reason, received_at_ns, times FROM quarantine
                   ORDER BY received_at_ns DESC LIMIT :limit"""
        fields = ("topic", "raw", "reason", "received_at_ns", "times")
        rows = self._read(query, {"limit": limit})
        return [Quarantined(**dict(zip(fields, row, strict=True))) for row in rows]

    def totals(self) -> Totals:
        """Count.

        Raises:
            StoreError: the database cannot be read.
        """
        tables = ("records", "quarantine", "devices")
        return Totals(*(self._read(f"SELECT count(*) FROM {t}", {})[0][0] for t in tables))  # noqa: S608

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _create(self) -> None:
        try:
            self._connection.executescript(_SCHEMA % secrets.token_hex(8))
        except sqlite3.OperationalError:
            # Another process made it in the meantime: then it has its id, and the next line of the caller succeeds.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _insert_record(self, connection: sqlite3.Connection, envelope: Envelope, now_ns: int) -> bool:
        cursor = connection.execute(
            "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (*_key(envelope), envelope.kind, envelope.time_ns, now_ns, _body(envelope)),
        )
        return cursor.rowcount == 1

    def _is_stored(self, connection: sqlite3.Connection, envelope: Envelope) -> bool:
        stored = connection.execute(
            "SELECT kind, time_ns, body FROM records WHERE device = ? AND boot = ? AND sequence = ?",
            _key(envelope),
        ).fetchone()
        return bool(stored == (envelope.kind, envelope.time_ns, _body(envelope)))

    def _quarantine(self, connection: sqlite3.Connection, bad: Bad, now_ns: int) -> None:
        digest = hashlib.sha256(bad.topic.encode() + b"\0" + bad.raw).digest()
        connection.execute(
            "INSERT INTO quarantine VALUES (?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET times = times + 1",
            (digest, bad.topic, bad.raw, bad.reason, now_ns),
        )

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    result = work(self._connection)
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StoreError(f"store {database.explain(error, self.path)}") from error
            return result

    def _read(self, query: str, arguments: Mapping[str, object]) -> list[Any]:
        with self._lock:
            try:
                return self._connection.execute(query, arguments).fetchall()
            except sqlite3.Error as error:
                raise StoreError(f"store {database.explain(error, self.path)}") from error


def ranges(sequences: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Join sequences into (first, last) spans, both included, in order."""
    spans: list[tuple[int, int]] = []
    for sequence in sorted(set(sequences)):
        if spans and sequence == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], sequence)
        else:
            spans.append((sequence, sequence))
    return tuple(spans)


def _key(envelope: Envelope) -> tuple[str, str, int]:
    return envelope.device, envelope.boot, envelope.sequence


def _body(envelope: Envelope) -> str:
    return bytes(envelope.body).decode()
