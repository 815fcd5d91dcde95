"""How measurements are shown and written; `profile` and `report` share it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Measurement
from ferryman.runtime.contracts.record import encode


def check_targets(*files: Path | None) -> None:
    """Refuse, before anything is measured, what could not be written after.

    Raises:
        CallerError: a file's folder is not there, or may not be written in.
    """
    for file in files:
        if file is not None and (file.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK)):
            raise CallerError(f"cannot write {file}; name a file in a folder that is there and may be written in")


def show(
    found: Sequence[tuple[str, Measurement]],
    *,
    as_json: bool = False,
    csv: Path | None = None,
    html: Path | None = None,
    trace: Path | None = None,
    left_out: Sequence[str] = (),
) -> None:
    """Print a table or JSON lines, and write what was asked for."""
    import ferryman.profiler.report as page

    if as_json:
        for _, measurement in found:
            click.echo(encode(measurement))
    else:
        click.echo(page.table(found))
    if html:
        page.write_html(found, html, left_out=left_out)
        click.echo(f"page: {html}", err=as_json)
