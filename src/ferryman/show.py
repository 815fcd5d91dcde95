"""How measurements are shown and written; `profile` and `report` share it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Measurement
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.say import echo

_DETAILED_MAX = 8
"""Of more measurements a terminal gets no operators, layers and sustained runs; files get all of them."""


def check_targets(csv: Path | None, html: Path | None, trace: Path | None, *read: Path | None) -> None:
    """Refuse, before anything is measured, what could not be written after, or would overwrite what is `read`.

    Raises:
        CallerError: a file's folder is not there, or may not be written in; or two names are of one file.
    """
    from ferryman.profiler.export import samples_path

    files = [file for file in (csv, html, trace) if file is not None]
    taken = {path.resolve(): path for path in read if path is not None}
    for file in (*files, *([samples_path(csv)] if csv else ())):
        if file.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK):
            raise CallerError(f"cannot write {file}; name a file in a folder that is there and may be written in")
        if file.exists() and not file.is_file():
            continue  # a terminal or a pipe takes everything
        if (other := taken.get(file.resolve())) is not None:
            raise CallerError(f"{file} would overwrite {other}; name another file")
        taken[file.resolve()] = file


def show(
    found: Sequence[tuple[str, Measurement]],
    *,
    as_json: bool = False,
    csv: Path | None = None,
    html: Path | None = None,
    trace: Path | None = None,
    left_out: Sequence[str] = (),
) -> None:
    """Print tables or JSON lines, and write what was asked for.

    Raises:
        CallerError: what a page needs is not installed, or the disk refused.
    """
    if as_json:
        for _, measurement in found:
            echo(encode(measurement))
    else:
        _print_tables(found)
    if csv:
        from ferryman.profiler.export import write_csv

        echo(f"table: {csv}, raw samples: {write_csv(found, csv)[1]}", err=True)
    if trace:
        from ferryman.profiler.trace import write_trace

        write_trace(found, trace)
        echo(f"trace: {trace} (open it in ui.perfetto.dev)", err=True)
    if html:
        from ferryman.profiler.report import write_html

        write_html(found, html, left_out=left_out)
        echo(f"page: {html}", err=as_json)


def _print_tables(found: Sequence[tuple[str, Measurement]]) -> None:
    from ferryman.profiler.report import table

    width, colour = layout()
    say(table(found, width=width, colour=colour, details=len(found) <= _DETAILED_MAX))
    if len(found) > _DETAILED_MAX and any(m.sustained or m.operators or m.layers for _, m in found):
        echo(f"operators, layers and sustained runs of {len(found)} measurements are in the page", err=True)


def layout() -> tuple[int, bool]:
    """Columns that tables may take, and whether they may have colours."""
    from ferryman.profiler.report import WIDTH

    live = sys.stdout.isatty()
    width = shutil.get_terminal_size((WIDTH, 0)).columns if live else int(_columns() or WIDTH)
    return width, live and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def say(text: str) -> None:
    """Print what a terminal of another encoding can show of it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    echo(text.encode(encoding, "replace").decode(encoding), coloured=True)


def _columns() -> str:
    """What the user's shell says of the width, for a pipe."""
    columns = os.environ.get("COLUMNS", "")
    return columns if columns.isdecimal() and int(columns) else ""
