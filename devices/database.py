"""How ferryman opens SQLite files: write-ahead log, every commit on disk, waiting for other processes."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

BUSY_TIMEOUT_S = 30.0


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a database in autocommit mode (or create it, unless `read_only`); `write_ahead` before the first write.

    Raises:
        sqlite3.Error: as `explain` tells.
    """
    # Not mode=ro, which leaves the write-ahead log's files beside a file that had none.
    uri = f"{path.absolute().as_uri()}?mode={'rw' if read_only else 'rwc'}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    if read_only:
        connection.execute("PRAGMA query_only=ON")
    return connection


def write_ahead(connection: sqlite3.Connection) -> None:
    """Turn a connection to write-ahead log, every commit on disk; transactions are begun explicitly.

    Raises:
        sqlite3.Error: as `explain` tells.
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # in WAL mode: fsync before a commit can be seen
    connection.execute("PRAGMA journal_size_limit=4194304")


class DamagedError(sqlite3.DatabaseError):
    """The file is a database, and lacks what ferryman put there."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    sqlite_errorname = "SQLITE_CORRUPT"


class LaterVersionError(Exception):
    """The file was written by a later ferryman."""


def version(connection: sqlite3.Connection, path: Path, known: int) -> int:
    """Read the version of the file's schema; 0: it is new.

    Raises:
        LaterVersionError: it is above `known`.
    """
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > known:
        raise LaterVersionError(
            f"{path}: a later ferryman wrote it (version {found}, this one knows {known}); "
            "upgrade ferryman, or move the file away"
        )
    return found


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether the file is not, or no longer, a database."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_full(error: BaseException | None) -> bool:
    """Whether the disk has no room, fails, or was made read-only because it does."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}


def explain(error: sqlite3.Error, path: Path) -> str:
    """What went wrong with `path` and what to do."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    advice = {
        sqlite3.SQLITE_FULL: "free some space on its disk",
        sqlite3.SQLITE_IOERR: "check the disk's free space and health",
        sqlite3.SQLITE_CANTOPEN: "check that its folder exists and may be written",
        sqlite3.SQLITE_READONLY: "check its permissions",
        sqlite3.SQLITE_BUSY: "another process holds it; find it with fuser",
        sqlite3.SQLITE_CORRUPT: "move it away; a new one is made",
        sqlite3.SQLITE_NOTADB: "name ferryman's database, or move this file away: what writes makes a new one",
        sqlite3.SQLITE_ERROR: "its tables are not ferryman's; move it away, and a new one is made",
    }.get(code, "see the error's name in SQLite's documentation")
    return f"{path}: {error} ({name}); {advice}"
