"""What the collector keeps, in one SQLite file: records, what could not be taken, and who is there.

Inserting is idempotent on (device, boot, sequence). Queries answer with typed records, so that the command line, pages
and exports share them.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from ferryman.devices import database
from ferryman.devices.fleet.database_file import DatabaseFile
from ferryman.devices.fleet.store import quarantine
from ferryman.devices.fleet.store.quarantine import Bad, Quarantined
from ferryman.runtime.contracts.drift import Drift
from ferryman.runtime.contracts.envelope import EnvelopeV1
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


_TABLES = {"store", "records", "quarantine", "devices"}


_MATCHING = """
    kind = :kind AND (:device IS NULL OR device = :device)
    AND (:package IS NULL OR NOT json_valid(body)
         OR coalesce(:package IN (json_extract(body, '$.package_name'), json_extract(body, '$.package_sha256')), 1))"""
"""A damaged one may be of any package."""


class Batch(NamedTuple):
    """What one commit takes in; each envelope beside the topic and bytes it came as."""

    envelopes: Sequence[tuple[EnvelopeV1, str, bytes]] = ()
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


class DeviceDrift(Record):
    """A drift record and where it comes from."""

    device: str
    received_at_ns: int
    drift: Drift


class DeviceStatus(Record):
    """The last a device said of itself."""

    seen_at_ns: int
    status: Status


class Totals(NamedTuple):
    """How much is in the store."""

    records: int
    quarantined: int
    devices: int


class Store(DatabaseFile):
    """One database file; safe to use from several threads, and while another process reads or writes."""

    what = "store"

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open `path`, and make it if need be; without `create` it is only read.

        Raises:
            CallerError: there is no such file, and `create` is false.
            StoreError: it cannot be opened, is damaged, something else, or a later ferryman wrote it.
        """
        if not create and not path.exists():
            raise CallerError(f"store {path}: no such file; run `ferryman collect` first, or name another")
        super().__init__(path, read_only=not create)

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
                quarantine.keep(connection, bad, now_ns)
            if batch.bad or conflicts:
                quarantine.make_room(connection, self.path, now_ns)
            for status in batch.statuses:
                connection.execute(
                    "INSERT OR REPLACE INTO devices VALUES (?, ?, ?)",
                    (status.device, encode(status).decode(), now_ns),
                )
            return Inserted(new, len(batch.envelopes) - new - len(conflicts), len(conflicts))

        return self._write(work)

    def measurements(
        self,
        *,
        device: str | None = None,
        package: str | None = None,
        limit: int = 1000,
        on_damaged: Callable[[str], None] = lambda _: None,
    ) -> list[DeviceMeasurement]:
        """Measurements, the newest (by the device's clock) first.

        Args:
            device: only of this one.
            package: only of this one: its name, or its sha256.
            limit: at most so many; `count_measurements` tells of how many.
            on_damaged: told of each that can no longer be read, and is left out.

        Raises:
            StoreError: the database cannot be read.
        """
        return [
            DeviceMeasurement(device=name, received_at_ns=received, measurement=body)
            for name, received, body in self._decoded("measurement", Measurement, device, package, limit, on_damaged)
        ]

    def drift(
        self,
        *,
        device: str | None = None,
        package: str | None = None,
        limit: int = 1000,
        on_damaged: Callable[[str], None] = lambda _: None,
    ) -> list[DeviceDrift]:
        """Drift records, the newest first; arguments and errors are those of `measurements`."""
        return [
            DeviceDrift(device=name, received_at_ns=received, drift=body)
            for name, received, body in self._decoded("drift", Drift, device, package, limit, on_damaged)
        ]

    def count_measurements(self, *, device: str | None = None, package: str | None = None) -> int:
        """How many `measurements` there are without a limit, damaged ones among them.

        Raises:
            StoreError: the database cannot be read.
        """
        query = f"SELECT count(*) FROM records WHERE {_MATCHING}"  # noqa: S608  # a text of ours
        return int(self._read(query, {"kind": "measurement", "device": device, "package": package})[0][0])

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

    def _decoded(
        self,
        kind: str,
        record: type[T],
        device: str | None,
        package: str | None,
        limit: int,
        on_damaged: Callable[[str], None],
    ) -> Iterator[tuple[str, int, T]]:
        """Device, time of receipt and body of the records of a kind, the newest first."""
        query = f"""
            SELECT device, boot, sequence, received_at_ns, body FROM records WHERE {_MATCHING}
            ORDER BY time_ns DESC, sequence DESC LIMIT :limit"""  # noqa: S608  # a text of ours
        arguments = {"kind": kind, "device": device, "package": package, "limit": limit}
        for name, boot, sequence, received, body in self._read(query, arguments):
            try:
                yield name, received, decode(str(body).encode(), record)
            except ValueError as error:
                on_damaged(f"the {kind} of {name}, boot {boot}, sequence {sequence} is damaged: {error}")

    def _identify(self, *, create: bool) -> None:
        """Read the store's id; nothing is written before the file is known to be a store, or empty."""
        connection = self._connection
        connection.text_factory = _text
        found = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if found or not create:
            if not found >= _TABLES:
                raise StoreError(
                    f"store {self.path} is no store of ferryman (expected tables {', '.join(sorted(_TABLES))}, found "
                    f"{', '.join(sorted(found)) or 'none'}); name the file that `ferryman collect` wrote, or a new one"
                )
            database.version(connection, self.path, _VERSION)
        if create:
            database.write_ahead(connection)
            if not found:
                self._create()
        row = connection.execute("SELECT id FROM store").fetchone()
        if row is None:
            raise database.DamagedError("its table `store` is empty")
        self.id = str(row[0])
        """Random, made with the file."""

    def _create(self) -> None:
        try:
            self._connection.executescript(_SCHEMA % secrets.token_hex(8))
        except sqlite3.OperationalError:
            # Another process made it in the meantime: then it has its id, and the next line of the caller succeeds.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _insert_record(self, connection: sqlite3.Connection, envelope: EnvelopeV1, now_ns: int) -> bool:
        cursor = connection.execute(
            "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (*_key(envelope), envelope.kind, envelope.time_ns, now_ns, _body(envelope)),
        )
        return cursor.rowcount == 1

    def _is_stored(self, connection: sqlite3.Connection, envelope: EnvelopeV1) -> bool:
        stored = connection.execute(
            "SELECT kind, time_ns, body FROM records WHERE device = ? AND boot = ? AND sequence = ?",
            _key(envelope),
        ).fetchone()
        return bool(stored == (envelope.kind, envelope.time_ns, _body(envelope)))


def ranges(sequences: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Join sequences into (first, last) spans, both included, in order."""
    spans: list[tuple[int, int]] = []
    for sequence in sorted(set(sequences)):
        if spans and sequence == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], sequence)
        else:
            spans.append((sequence, sequence))
    return tuple(spans)


def _text(data: bytes) -> str:
    """Damaged text shall not keep the rows around it from being read."""
    return data.decode(errors="replace")


def _key(envelope: EnvelopeV1) -> tuple[str, str, int]:
    return envelope.device, envelope.boot, envelope.sequence


def _body(envelope: EnvelopeV1) -> str:
    return bytes(envelope.body).decode()
