"""The connection to the store's database, SQLite or PostgreSQL: one transaction at a time, errors with advice."""

from __future__ import annotations

import functools
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Executable, Row, event
from sqlalchemy.pool import QueuePool

from ferryman.devices import database
from ferryman.runtime.contracts.errors import CallerError, StoreError

T = TypeVar("T")
Dialect = Literal["sqlite", "postgresql"]
_SCHEMES = ("postgresql://", "postgres://")
_TRIES = 8
_PAGE_BYTES = 8192
_WRITER_CACHE_KIB = 65536
"""The indexes' inner pages, and what is being written: a page or two for each device."""
_READER_CACHE_KIB = 8192
_RETRIED = {"40001": "serialization failure", "40P01": "deadlock"}
"""SQLSTATE of what the server rolled back and asks to do again."""
_OF_DATA = ("22", "23", "54")
"""Classes of SQLSTATE: data exceptions, constraints, and what is longer than the server can store."""
_NO_CONNECTION = "see that the server runs, and that host, user, password and database in the URL are right"
_ADVICE = {
    "08": _NO_CONNECTION,
    "28": "check the user and the password in the URL",
    "3D": "make the database first: createdb",
    "25": "the server or the transaction only reads; name the primary server",
    "42501": "grant this user the right to make and write tables",
    "53100": "free some space on the server's disk",
    "53200": "the server is out of memory",
    "53300": "the server has no connection left; raise max_connections",
    "57P": "the server is being stopped or started; try again",
}


def is_postgresql(where: str | Path) -> bool:
    """Whether `where` is the URL of a server and not the path of a file."""
    return isinstance(where, str) and where.startswith(_SCHEMES)


class RefusedError(StoreError):
    """The data are none that the database can take; the same again will fail again."""


class Database:
    """A SQLite file or a PostgreSQL database; safe to use from several threads and processes."""

    def __init__(self, where: str | Path, *, read_only: bool) -> None:
        """Make ready to connect; nothing is opened or written yet.

        Raises:
            CallerError: the URL cannot be read, or psycopg is not installed.
        """
        self.path: Path | None = None
        self._file: tuple[int, int] | None = None
        self.dialect: Dialect
        if is_postgresql(where):
            self.dialect = "postgresql"
            self.name, self._engine = _postgresql(str(where), read_only=read_only)
            self._readers = self._engine
        else:
            self.dialect = "sqlite"
            self.path = Path(where)
            self.name = str(where)
            # Each connection has a cache of its own; only the one that writes gains by a large one.
            self._engine = _sqlite(self.path, self._check_file, read_only=read_only, cache_kib=_WRITER_CACHE_KIB)
            self._readers = _sqlite(self.path, self._check_file, read_only=read_only, cache_kib=_READER_CACHE_KIB)
        self._writing = threading.Lock()

    def stay(self) -> None:
        """Write from now on only while the file is where it is now; what is written to a deleted one is lost."""
        self._file = self._found()

    def _found(self) -> tuple[int, int] | None:
        try:
            found = None if self.path is None else self.path.stat()
        except OSError:
            found = None
        return None if found is None else (found.st_dev, found.st_ino)

    @contextmanager
    def _at_its_place(self) -> Iterator[None]:
        """Looked at before, so that nothing goes into another file, and after, so that nothing is lost."""
        try:
            self._check_file()
        except StoreError:
            self._let_go()
            raise
        yield
        self._check_file()

    def _let_go(self) -> None:
        """Bring what is in the log into the file, wherever that is now, and open it anew when it is back."""
        with suppress(StoreError, *_errors()), self._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
        self.close()

    def _check_file(self) -> None:
        if self._file is not None and self._found() != self._file:
            raise StoreError(
                f"store {self.name}: the file was deleted, moved or replaced while it was open; put it back where it "
                "was, or start anew to go on with the one that is there now"
            )

    def write(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in one transaction, on disk when this returns; it may be called again if the server says so.

        Raises:
            StoreError: it failed and nothing of it was kept; where the connection broke, that is not known.
        """
        tries = 0
        while True:
            tries += 1
            try:
                with self._one_writer(), self._at_its_place(), self._engine.connect() as connection:
                    if self.dialect == "sqlite":
                        connection.exec_driver_sql("BEGIN IMMEDIATE")
                    result = work(connection)
                    connection.commit()
                    return result
            except (OverflowError, ValueError) as error:  # the driver cannot even say it to the database
                raise RefusedError(f"store {self.name}: {type(error).__name__}: {error}") from error
            except _errors() as error:
                if getattr(_driver_error(error), "sqlstate", None) not in _RETRIED or tries == _TRIES:
                    raise self.error(error) from error
            time.sleep(random.uniform(0, 0.01 * 2**tries))  # noqa: S311  # only spreads those who collided

    def read(self, select: Executable) -> Sequence[Row[*tuple[Any, ...]]]:
        """All rows of a query.

        Raises:
            StoreError: the database cannot be read.
        """
        with self.reading() as connection:
            return connection.execute(select).all()

    def stream(self, select: Executable) -> Iterator[Row[*tuple[Any, ...]]]:
        """The rows of a query, not all in memory at once.

        Raises:
            StoreError: the database cannot be read.
        """
        with self.reading() as connection, connection.execution_options(yield_per=500).execute(select) as rows:
            yield from rows

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read by; what it raises becomes a StoreError."""
        try:
            with self._readers.connect() as connection:
                yield connection
        except _errors() as error:
            raise self.error(error) from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
        self._readers.dispose()

    def error(self, error: BaseException) -> StoreError:
        """What went wrong and what to do, without the password."""
        cause = _driver_error(error)
        if isinstance(cause, database.LaterVersionError):
            return StoreError(f"store {cause}")
        if _is_of_data(cause):
            return RefusedError(f"store {self.name}: {' '.join(str(cause).split())}")
        if self.path is not None and isinstance(cause, sqlite3.Error):
            return StoreError(f"store {database.explain(cause, self.path)}")
        state = getattr(cause, "sqlstate", None) or ""
        text = " ".join(str(cause).split())
        advice = next((_ADVICE[key] for key in (state, state[:3], state[:2]) if key in _ADVICE), None)
        if advice is None:
            lost = getattr(error, "connection_invalidated", False) or not state
            advice = _NO_CONNECTION if lost else "see the error in PostgreSQL's documentation"
        if getattr(error, "connection_invalidated", False):
            advice = f"the connection broke, so it is not known whether this was committed; {advice}, and do it again"
        return StoreError(f"store {self.name}: {text} (SQLSTATE {state or 'none'}); {advice}")

    @contextmanager
    def _one_writer(self) -> Iterator[None]:
        """SQLite has one writer: threads of this process wait here, and not by polling the file."""
        if self.dialect == "sqlite":
            with self._writing:
                yield
        else:
            yield


def _sqlite(path: Path, check: Callable[[], None], *, read_only: bool, cache_kib: int) -> sqlalchemy.Engine:
    def connect() -> sqlite3.Connection:
        check()  # not to make an empty one where ours was
        connection = database.connect(path, read_only=read_only)
        # Damaged text shall not keep the rows around it from being read.
        connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
        connection.execute(f"PRAGMA cache_size=-{cache_kib}")
        connection.execute("PRAGMA wal_autocheckpoint=4000")
        if not read_only:
            connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")  # these two: of a new file only
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA synchronous=FULL")
        return connection

    # Last in, first out: who writes alone has the same connection again, with its cache.
    return sqlalchemy.create_engine(
        "sqlite://", creator=connect, poolclass=QueuePool, pool_size=4, max_overflow=16, pool_use_lifo=True
    )


def _postgresql(url: str, *, read_only: bool) -> tuple[str, sqlalchemy.Engine]:
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise CallerError(f"a PostgreSQL store needs psycopg: pip install 'ferryman[postgresql]' ({error})") from error
    try:
        parsed = sqlalchemy.make_url("postgresql+psycopg://" + url.split("://", 1)[1])
    except (sqlalchemy.exc.ArgumentError, ValueError):
        # Not the error itself, nor the URL: they hold the password.
        raise CallerError("the store's URL is not postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE") from None
    name = "postgresql://" + parsed.set(password=None, query={}).render_as_string().split("://", 1)[1]
    engine = sqlalchemy.create_engine(
        parsed,
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=4,
        max_overflow=16,
        connect_args={"connect_timeout": 10, "application_name": "ferryman"},
    )
    if read_only:

        @event.listens_for(engine, "connect")
        def only_read(connection: Any, _: object) -> None:  # noqa: ANN401  # the driver's own
            connection.read_only = True

    return name, engine


def _driver_error(error: BaseException) -> BaseException:
    return error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig is not None else error


def sqlstate(error: BaseException) -> str:
    """What the server called the cause of an error of ours; empty: it did not."""
    cause = error.__cause__
    return str(getattr(_driver_error(cause), "sqlstate", None) or "") if cause is not None else ""


def _is_of_data(cause: BaseException) -> bool:
    state = getattr(cause, "sqlstate", None) or ""
    if state:
        return state[:2] in _OF_DATA
    # Drivers refuse some before they ask: a NUL, an integer beyond 64 bits, a type, a text that is too long.
    named = {kind.__name__ for kind in type(cause).__mro__}
    return bool(named & {"DataError", "IntegrityError"}) or isinstance(cause, sqlite3.InterfaceError)


@functools.cache
def _errors() -> tuple[type[Exception], ...]:
    """What connections raise."""
    ours = (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, database.LaterVersionError)
    try:
        import psycopg
    except ImportError:
        return ours
    return (*ours, psycopg.Error)


def upsert(connection: Connection) -> Callable[..., Any]:
    """The dialect's INSERT with `on_conflict_do_nothing` and `on_conflict_do_update`."""
    from sqlalchemy.dialects import postgresql, sqlite

    return postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
