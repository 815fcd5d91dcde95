"""Stored telemetry into a file, whole or not at all, however much it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ferryman.devices.fleet.exports.delimited import write_csv
from ferryman.devices.fleet.exports.line_protocol import write_lines
from ferryman.devices.fleet.exports.parquet import load, write_parquet
from ferryman.devices.fleet.exports.tables import EXPORTABLES, Row
from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.records import Exported
from ferryman.devices.fleet.query.who import who
from ferryman.devices.fleet.query.window import window
from ferryman.devices.fleet.store.store import Store
from ferryman.profiler.files import whole_file
from ferryman.profiler.report_words import printable
from ferryman.runtime.contracts.errors import CallerError

FORMATS = {".parquet": "parquet", ".csv": "csv", ".lp": "line protocol"}
_TOLD_ROWS = 10_000
_OF_DATABASE = ("", "-wal", "-shm", "-journal")
"""Files of SQLite, by how their names end."""


def export(
    store: Store,
    what: str,
    path: Path,
    *,
    now_ns: int,
    query: str | None = None,
    device: str | None = None,
    since: str | int | None = None,
    until: str | int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write a table of EXPORTABLES; the end of the file's name says how (FORMATS).

    Args:
        store: where from.
        what: samples, measurements, logs or rollups.
        path: of the file; what it held is replaced when all is written, and stays if that fails.
        now_ns: the present.
        query: only of these devices; see `ferryman.devices.fleet.rollout.query`.
        device: only of this one.
        since: from then on; None: all.
        until: before then; None: all.
        progress: told every so often how many rows are written.

    Raises:
        CallerError: an argument is none of its kind, there is no such device, pyarrow is missing, or the disk refused.
        StoreError: the database cannot be read.
    """
    if what not in EXPORTABLES:
        raise CallerError(f"{what[:100]!r} cannot be exported; there are: {', '.join(EXPORTABLES)}")
    if (form := FORMATS.get(path.suffix)) is None:
        raise CallerError(f"{path} ends in none of {', '.join(FORMATS)}, which says what to write; name another file")
    check_target(path)
    if form == "parquet":
        load()
    left_out = LeftOut()
    table = EXPORTABLES[what]
    within = window(since, until, now_ns, "")
    rows = _Counted(table.rows(store, within, who(store, query, device, left_out), left_out), progress)
    with whole_file(path) as file:
        if form == "parquet":
            write_parquet(table, rows, file)
        elif form == "csv":
            write_csv(table, rows, file)
        else:
            write_lines(what.removesuffix("s"), table, rows, file)
        size = file.tell() if file.seekable() else 0
    return Exported(
        what=what,
        path=str(path),
        format=form,
        rows=rows.count,
        bytes=size,
        first_ns=rows.first_ns,
        last_ns=rows.last_ns,
        left_out=left_out.words(),
    )


def check_target(path: Path, database: Path | None = None) -> None:
    """Refuse what an export must not be written to.

    Raises:
        CallerError: its name has control characters or is too long, it is no regular file, or one of the database's.
    """
    if not str(path).isprintable():
        raise CallerError(f"the file's name {printable(str(path))!r:.200} has control characters; name another file")
    try:
        target = path.resolve()
        if path.exists() and not path.is_file():
            raise CallerError(f"{path} is no regular file; name one, or a file that is not there yet")
        if database is not None:
            files = {one.with_name(one.name + end) for one in (database, database.resolve()) for end in _OF_DATABASE}
            if target in {one.resolve() for one in files}:
                raise CallerError(f"{path} would overwrite the database {database}; name another file")
    except (OSError, RuntimeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CallerError(f"cannot write {str(path)[:200]}: {why}; name another file") from error


class _Counted:
    """Rows, and how many of what times went by."""

    def __init__(self, rows: Iterator[Row], progress: Callable[[int], None]) -> None:
        self._rows, self._progress = rows, progress
        self.count = 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            self.count += 1
            time_ns: int = row["time"]
            self.first_ns = time_ns if self.first_ns is None else min(self.first_ns, time_ns)
            self.last_ns = time_ns if self.last_ns is None else max(self.last_ns, time_ns)
            if self.count % _TOLD_ROWS == 0:
                self._progress(self.count)
            yield row
