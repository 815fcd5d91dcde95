"""Every certificate the authority has signed, in one SQLite file: written down before it is given out."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ferryman.devices import database
from ferryman.runtime.contracts.errors import CallerError

VERSION = 1
_SCHEMA = """
CREATE TABLE certificates (
    serial TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    roles TEXT NOT NULL,
    key_sha256 TEXT NOT NULL,
    issued_s INTEGER NOT NULL,
    expires_s INTEGER NOT NULL,
    revoked_s INTEGER,
    pem BLOB NOT NULL
) STRICT;
CREATE INDEX certificates_by_name ON certificates (name, issued_s);
"""
_NEWEST = "(SELECT max(rowid) FROM certificates GROUP BY name)"
_COLUMNS = "serial, name, roles, key_sha256, issued_s, expires_s, revoked_s, pem"


class Entry(NamedTuple):
    """One certificate; times in seconds of the Unix epoch."""

    serial: str
    """Hexadecimal."""
    name: str
    roles: str
    """`device`, `server`, or a host's, with commas between."""
    key_sha256: str
    issued_s: int
    expires_s: int
    revoked_s: int | None
    """None: it is not."""
    pem: bytes

    def state(self, now: dt.datetime) -> str:
        """`good`, `revoked` or `expired`."""
        if self.revoked_s is not None:
            return "revoked"
        return "good" if now.timestamp() < self.expires_s else "expired"


class Registry:
    """The file; several processes may have it open, and `writing` lets one at a time decide and write."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it.

        Raises:
            CallerError: it cannot be used, or a later ferryman wrote it.
        """
        self._path = path
        with self._explained():
            self._connection = database.connect(path)
            path.chmod(0o600)
            database.write_ahead(self._connection)
            with self.writing():
                if database.version(self._connection, path, VERSION) == 0:
                    for statement in _SCHEMA.split(";"):
                        self._connection.execute(statement)
                    self._connection.execute(f"PRAGMA user_version={VERSION}")

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """All or nothing, on the disk when it ends; other processes wait.

        Raises:
            CallerError: it cannot be written.
        """
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def add(self, entry: Entry) -> None:
        """Write a certificate down; within `writing`."""
        self._connection.execute(f"INSERT INTO certificates ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", entry)  # noqa: S608

    def of(self, name: str) -> list[Entry]:
        """All certificates of one name, the newest first."""
        return self._select("WHERE name = ? ORDER BY issued_s DESC, rowid DESC", name)

    def find(self, serial: str) -> Entry | None:
        """The certificate of that serial number, in hexadecimal; None: it was not signed here."""
        return next(iter(self._select("WHERE serial = ?", serial)), None)

    def newest(self) -> list[Entry]:
        """The newest certificate of every name, by name."""
        return self._select(f"WHERE rowid IN {_NEWEST} ORDER BY name")

    def ruled(self) -> list[Entry]:
        """Of `newest` those that the access rules name: hosts, and whoever is revoked."""
        return self._select(f"WHERE rowid IN {_NEWEST} AND (roles <> 'device' OR revoked_s IS NOT NULL) ORDER BY name")

    def revoked(self, now: dt.datetime) -> list[Entry]:
        """Those that are revoked and have not expired."""
        return self._select("WHERE revoked_s IS NOT NULL AND expires_s > ? ORDER BY serial", int(now.timestamp()))

    def revoke(self, name: str, now: dt.datetime) -> list[Entry]:
        """Revoke all certificates of one name that have not expired; within `writing`. Returns those."""
        now_s = int(now.timestamp())
        doomed = [one for one in self.of(name) if one.revoked_s is None and one.expires_s > now_s]
        self._connection.executemany(
            "UPDATE certificates SET revoked_s = ? WHERE serial = ?", [(now_s, one.serial) for one in doomed]
        )
        return doomed

    def _select(self, where: str, *values: object) -> list[Entry]:
        with self._explained():
            rows = self._connection.execute(f"SELECT {_COLUMNS} FROM certificates {where}", values)  # noqa: S608
            return [Entry(*row) for row in rows]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if database.is_corrupt(error) or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR:
                raise CallerError(
                    f"the authority's registry {self._path} cannot be read: {error}; restore it from a backup: a new "
                    "one would not know who is revoked"
                ) from error
            raise CallerError(f"the authority's registry {database.explain(error, self._path)}") from error
        except database.LaterVersionError as error:
            raise CallerError(
                f"a later ferryman wrote the authority's registry {self._path}; upgrade ferryman here"
            ) from error
