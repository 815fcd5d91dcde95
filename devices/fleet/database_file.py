"""What every SQLite file of the host has in common: opened once, one commit at a time, errors that name the file."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ferryman.devices import database
from ferryman.runtime.contracts.errors import StoreError

T = TypeVar("T")


class DatabaseFile:
    """One database file; safe to use from several threads, and while another process reads or writes."""

    what: ClassVar[str]
    """What errors call it."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open `path`, or make it unless `read_only`, and see by `_identify` that it is ours.

        Raises:
            StoreError: it cannot be opened, is damaged, something else, or a later ferryman wrote it.
        """
        self.path = path
        self._lock = threading.Lock()
        try:
            self._connection = database.connect(path, read_only=read_only)
            try:
                self._identify(create=not read_only)
            except BaseException:
                self._connection.close()
                raise
        except database.LaterVersionError as error:
            raise StoreError(f"{self.what} {error}") from error
        except sqlite3.Error as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _identify(self, *, create: bool) -> None:
        """See that the file is ours before anything is written, and with `create` make it if it is new."""
        raise NotImplementedError

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in one commit, on disk when this returns."""
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
                raise self._error(error) from error
            return result

    def _read(self, query: str, arguments: Mapping[str, object] | Sequence[object] = ()) -> list[Any]:
        with self._lock:
            try:
                return self._connection.execute(query, arguments).fetchall()
            except sqlite3.Error as error:
                raise self._error(error) from error

    def _error(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"{self.what} {database.explain(error, self.path)}")
