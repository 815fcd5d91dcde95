"""What the collector keeps: records, what could not be taken, and who is there, in SQLite or PostgreSQL.

Inserting is idempotent on (device, boot, sequence). Queries answer with typed records, so that the command line, pages
and exports share them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import sqlalchemy
from sqlalchemy import Connection, Executable, Select, func, select

from ferryman.devices.fleet.store import schema, tables
from ferryman.devices.fleet.store.bulk import Span
from ferryman.devices.fleet.store.engine import Database, RefusedError, is_postgresql
from ferryman.devices.fleet.store.insert import Arrived, Batch, Inserted, Insertion, Memory, Row
from ferryman.devices.fleet.store.parts import in_parts
from ferryman.devices.fleet.store.quarantine import Bad, Quarantined
from ferryman.devices.fleet.store.ranges import ranges
from ferryman.runtime.contracts.drift import Drift
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Measurement
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record, decode

__all__ = ["Arrived", "Bad", "Batch", "Inserted", "Row", "Store", "open_store", "ranges"]

log = logging.getLogger(__name__)
T = TypeVar("T")


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


class _Named(Record):
    package_name: Any = None
    package_sha256: Any = None


def open_store(
    where: str | Path,
    *,
    create: bool = True,
    on_progress: Callable[[str], None] = lambda _: None,
    carries: bool = False,
) -> Store:
    """Open a store, and make it if need be; without `create` it is only read.

    Args:
        where: a file (SQLite), or postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE.
        create: whether to write; a file of an earlier version is rewritten for this one either way.
        on_progress: told how far that rewriting is.
        carries: to carry another store to it: it may be half done.

    Raises:
        CallerError: there is no such file, and `create` is false; or the URL cannot be read.
        StoreError: it cannot be opened, is damaged, something else, or a later ferryman wrote it.
    """
    if not create and not is_postgresql(where) and not _exists(Path(where)):
        raise CallerError(f"store {where}: no such file; run `ferryman collect` first, or name another")
    opened = Database(where, read_only=not create)
    try:
        store_id = schema.identify(opened, create=create, on_progress=on_progress, carries=carries)
        opened.stay()
        return Store(opened, store_id)
    except BaseException:
        opened.close()
        raise


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # such as a name that is too long
        raise CallerError(f"store {path}: {error.strerror}; name another") from error


class Store:
    """One database; safe to use from several threads, and while other processes read or write."""

    def __init__(self, opened: Database, store_id: str) -> None:
        """Use `open_store`."""
        self.id = store_id
        """Random, made with the store."""
        self.dialect = opened.dialect
        self.path = opened.path
        """None: it is no file."""
        self.name = opened.name
        """As errors call it; without a password."""
        self.read: Callable[[Executable], Sequence[sqlalchemy.Row[*tuple[Any, ...]]]] = opened.read
        self.stream: Callable[[Executable], Iterator[sqlalchemy.Row[*tuple[Any, ...]]]] = opened.stream
        self.connection: Callable[[], AbstractContextManager[Connection]] = opened.reading
        """One to read by, or to hold a lock of the server's."""
        self.close = opened.close
        self.not_rolled_up: set[Span] = set()
        """What was said to be refused, so that it is said once."""
        self._opened = opened
        self._memory = Memory()

    def write(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in one transaction, on disk when this returns; it may be called again after a deadlock.

        Raises:
            StoreError: it failed and nothing of it was kept; where the connection broke, that is not known.
        """
        return self._opened.write(work)

    def has(self, table: sqlalchemy.Table) -> bool:
        """Whether the table is there: one that only reads adds none that an earlier ferryman did not make.

        Raises:
            StoreError: the database cannot be read.
        """
        with self.connection() as connection:
            return sqlalchemy.inspect(connection).has_table(table.name)

    def insert(self, batch: Batch, now_ns: int) -> Inserted:
        """Take in a batch in one commit, on disk when this returns.

        Where the database refuses something in it as data, it takes several: the rest is stored, and the record or
        status that it refuses goes to quarantine.

        Raises:
            StoreError: nothing was taken, or that is not known; insert the same again, it is not stored twice.
        """
        try:
            insertion = Insertion(batch, now_ns, self._memory)
            inserted = self._opened.write(insertion.work)
        except RefusedError as error:
            log.warning("%s; looking for what it refuses", error)
            return in_parts(self.insert, batch, now_ns, error)
        insertion.committed()
        return inserted

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
        matching = _matching("measurement", device)
        if package is None:
            return int(self.read(matching.with_only_columns(func.count()))[0][0])
        return sum(_is_of(row.body, package) for row in self.stream(matching))

    def devices(self) -> list[DeviceStatus]:
        """Every device that ever said something of itself, by name.

        Raises:
            StoreError: the database cannot be read.
        """
        query = select(tables.devices.c.device, tables.devices.c.status, tables.devices.c.seen_ns).order_by(
            tables.devices.c.device
        )
        found = []
        for row in self.read(query):
            try:
                found.append(DeviceStatus(status=decode(row.status.encode(), Status), seen_at_ns=row.seen_ns))
            except ValueError as error:
                log.warning("the status that is kept of %s cannot be read: %s", row.device, error)
        return found

    def quarantine(self, *, limit: int = 1000) -> list[Quarantined]:
        """What was not taken, the newest first.

        Raises:
            StoreError: the database cannot be read.
        """
        kept = tables.quarantine.c
        query = select(kept.topic, kept.raw, kept.reason, kept.received_ns, kept.times)
        rows = self.read(query.order_by(kept.received_ns.desc()).limit(limit))
        fields = ("topic", "raw", "reason", "received_at_ns", "times")
        return [Quarantined(**dict(zip(fields, row, strict=True))) for row in rows]

    def totals(self) -> Totals:
        """Count.

        Raises:
            StoreError: the database cannot be read.
        """
        counts = (select(func.count()).select_from(t) for t in (tables.records, tables.quarantine, tables.devices))
        return Totals(*(self.read(count)[0][0] for count in counts))

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
        newest = (tables.records.c.time_ns.desc(), tables.records.c.sequence.desc())
        query = _matching(kind, device).order_by(*newest)
        if package is None:
            query = query.limit(limit)
        for row in self.stream(query):
            if package is not None and not _is_of(row.body, package):
                continue
            limit -= 1
            try:
                yield row.device, row.received_ns, decode(str(row.body).encode(), record)
            except ValueError as error:
                name = f"the {kind} of {row.device}, boot {row.boot}, sequence {row.sequence}"
                on_damaged(f"{name} is damaged: {error}")
            if limit <= 0:
                return


def _matching(kind: str, device: str | None) -> Select[Any]:
    records, sources = tables.records.c, tables.sources.c
    query = select(sources.device, sources.boot, records.sequence, records.received_ns, records.body)
    query = query.join_from(tables.records, tables.sources, records.source == sources.id)
    query = query.where(tables.of_kind(kind))
    return query if device is None else query.where(sources.device == device)


def _is_of(body: object, package: str) -> bool:
    """Whether the body names this package; a damaged one may be of any.

    Not the database's own functions for JSON: PostgreSQL's refuse a text with a zero character in it.
    """
    try:
        named = msgspec.json.decode(str(body).encode(), type=_Named)
    except ValueError:
        return True
    return package in (named.package_name, named.package_sha256)
