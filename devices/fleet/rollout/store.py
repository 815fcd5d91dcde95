"""Rollouts on disk, in one SQLite file: each step is one commit, on disk before anything of it is sent."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ferryman.devices import database
from ferryman.devices.fleet.database_file import DatabaseFile
from ferryman.devices.fleet.rollout.records import Changes, Entry, Found, Plan, Progress, Row, Verb
from ferryman.runtime.contracts.errors import CallerError, StoreError
from ferryman.runtime.contracts.record import decode, encode

T = TypeVar("T")
DEFAULT = Path("ferryman-rollouts.sqlite")
_VERSION = 1
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE rollouts (id TEXT PRIMARY KEY, plan TEXT NOT NULL, progress TEXT NOT NULL);
CREATE TABLE rollout_devices (
    rollout TEXT NOT NULL, device TEXT NOT NULL, position INTEGER NOT NULL, version INTEGER NOT NULL, row TEXT NOT NULL,
    PRIMARY KEY (rollout, device)) WITHOUT ROWID;
CREATE TABLE audit (number INTEGER PRIMARY KEY AUTOINCREMENT, rollout TEXT NOT NULL, entry TEXT NOT NULL);
CREATE INDEX audit_of ON audit (rollout, number);
CREATE TABLE requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT, rollout TEXT NOT NULL, verb TEXT NOT NULL, who TEXT NOT NULL,
    why TEXT NOT NULL);
CREATE TABLE found (
    package TEXT NOT NULL, device TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (package, device)) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
COMMIT;
"""
_TABLES = {"rollouts", "rollout_devices", "audit", "requests", "found"}


class Request(NamedTuple):
    """What a person asks of a rollout that another process may drive."""

    number: int
    verb: Verb
    who: str
    why: str


class RolloutStore(DatabaseFile):
    """One database file; safe to use from several threads and processes."""

    what = "rollouts"

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open `path`, and make it if need be; without `create` it must be there.

        Raises:
            CallerError: there is no such file, and `create` is false.
            StoreError: it cannot be opened, is damaged, something else, or a later ferryman wrote it.
        """
        if not create and not path.exists():
            raise CallerError(f"no rollouts in {path}, which is not there; name their file with --database")
        super().__init__(path)

    def add(self, plan: Plan, progress: Progress, rows: Iterable[Row], entry: Entry) -> None:
        """Take in a new rollout, in one commit; its devices stay in this order.

        Raises:
            StoreError: the disk is full or broken; nothing was taken.
        """

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO rollouts VALUES (?, ?, ?)", (plan.id, _json(plan), _json(progress)))
            connection.executemany(
                "INSERT INTO rollout_devices VALUES (?, ?, ?, ?, ?)",
                ((plan.id, row.device, position, row.version, _json(row)) for position, row in enumerate(rows)),
            )
            connection.execute("INSERT INTO audit (rollout, entry) VALUES (?, ?)", (plan.id, _json(entry)))

        self._write(work)

    def commit(self, plan: Plan, changes: Changes, handled: Iterable[Request] = ()) -> None:
        """Keep a step and strike out the requests that it was about, in one commit, on disk when this returns.

        Raises:
            StoreError: the disk is full or broken; nothing was kept.
        """

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE rollouts SET progress = ? WHERE id = ?", (_json(changes.progress), plan.id))
            connection.executemany(
                "UPDATE rollout_devices SET version = ?, row = ? WHERE rollout = ? AND device = ?",
                ((row.version, _json(row), plan.id, row.device) for row in changes.rows),
            )
            connection.executemany(
                "INSERT INTO audit (rollout, entry) VALUES (?, ?)", ((plan.id, _json(one)) for one in changes.entries)
            )
            connection.executemany(
                "INSERT OR REPLACE INTO found VALUES (?, ?, ?)",
                ((plan.package_sha256, one.device, _json(one)) for one in changes.found),
            )
            connection.executemany("DELETE FROM requests WHERE number = ?", ((one.number,) for one in handled))

        self._write(work)

    def ask(self, rollout: str, verb: Verb, who: str, why: str = "") -> None:
        """Leave a request for whoever drives the rollout.

        Raises:
            StoreError: the disk is full or broken.
        """
        self._write(
            lambda connection: connection.execute(
                "INSERT INTO requests (rollout, verb, who, why) VALUES (?, ?, ?, ?)", (rollout, verb, who, why)
            )
        )

    def requests(self, rollout: str) -> list[Request]:
        """Those that wait, in order.

        Raises:
            StoreError: the database cannot be read.
        """
        query = "SELECT number, verb, who, why FROM requests WHERE rollout = ? ORDER BY number"
        return [Request(*row) for row in self._read(query, (rollout,))]

    def find(self, rollout: str | None) -> tuple[Plan, Progress]:
        """A rollout by its id, or the beginning or end of it; None: the last that was started.

        Raises:
            CallerError: there is none, or several begin or end so.
            StoreError: the database cannot be read.
        """
        part = (rollout or "").replace("*", "").replace("?", "").replace("[", "")
        query = "SELECT plan, progress FROM rollouts WHERE id GLOB ? OR id GLOB ? ORDER BY id DESC"
        found = self._read(query, (f"{part}*", f"*{part}"))
        if not found or (rollout and len(found) > 1):
            which = "several rollouts begin or end with" if found else "no rollout"
            raise CallerError(f"{which} {rollout or 'yet'} in {self.path}; see `ferryman rollout list`")
        return self._decoded(found[0][0], Plan), self._decoded(found[0][1], Progress)

    def ids(self) -> list[str]:
        """Of all rollouts, the oldest first; also of one that is damaged.

        Raises:
            StoreError: the database cannot be read.
        """
        return [found for (found,) in self._read("SELECT id FROM rollouts ORDER BY id")]

    def rows(self, rollout: str) -> list[Row]:
        """A rollout's devices, in the order in which they are asked.

        Raises:
            StoreError: the database cannot be read.
        """
        query = "SELECT row FROM rollout_devices WHERE rollout = ? ORDER BY position"
        return [self._decoded(row, Row) for (row,) in self._read(query, (rollout,))]

    def versions(self) -> dict[str, int]:
        """Device -> the version of the last `Desired` that any rollout here sent it.

        Raises:
            StoreError: the database cannot be read.
        """
        return dict(self._read("SELECT device, max(version) FROM rollout_devices GROUP BY device"))

    def found(self, package_sha256: str) -> list[Found]:
        """What devices measured of a package.

        Raises:
            StoreError: the database cannot be read.
        """
        query = "SELECT body FROM found WHERE package = ? ORDER BY device"
        return [self._decoded(body, Found) for (body,) in self._read(query, (package_sha256,))]

    def log(self, rollout: str) -> list[Entry]:
        """The audit log of a rollout, the oldest first.

        Raises:
            StoreError: the database cannot be read.
        """
        query = "SELECT entry FROM audit WHERE rollout = ? ORDER BY number"
        return [self._decoded(entry, Entry) for (entry,) in self._read(query, (rollout,))]

    @contextmanager
    def driving(self, rollout: str) -> Iterator[bool]:
        """Be the one process that drives a rollout; yields false where another is."""
        with self.path.with_name(f"{self.path.name}.{rollout}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _identify(self, *, create: bool) -> None:  # noqa: ARG002  # it is always written to
        """See that the file is ours before anything is written."""
        connection = self._connection
        found = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if found and not found >= _TABLES:
            raise StoreError(
                f"{self.path} is no file of rollouts (expected tables {', '.join(sorted(_TABLES))}, found "
                f"{', '.join(sorted(found))}); name another with --database"
            )
        if found:
            database.version(connection, self.path, _VERSION)
        database.write_ahead(connection)
        if not found:
            try:
                connection.executescript(_SCHEMA)
            except sqlite3.OperationalError:  # another process made it meanwhile
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                connection.execute("SELECT 1 FROM found")

    def _decoded(self, text: str, kind: type[T]) -> T:
        try:
            return decode(text.encode(), kind)
        except ValueError as error:
            raise StoreError(f"{self.path} is damaged: {error}; restore it from a copy, or start a new one") from error


def _json(record: Any) -> str:  # noqa: ANN401  # any record
    return encode(record).decode()
