"""CSV (RFC 4180, UTF-8, LF): a head, then a row each; an empty cell is what is not known."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import msgspec

from ferryman.devices.fleet.exports.tables import Exportable, Kind, Row
from ferryman.devices.fleet.query.window import iso

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would run, as the first character of a cell of text."""
_ROWS = 1000


def write_csv(table: Exportable, rows: Iterable[Row], file: BinaryIO) -> None:
    """Write them as they come; times are RFC 3339 with nanoseconds, lists and objects JSON."""
    file.writelines(_blocks(table, rows))


def _blocks(table: Exportable, rows: Iterable[Row]) -> Iterator[bytes]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    for number, row in enumerate(rows, 1):
        writer.writerow([_cell(row.get(name), kind) for name, kind in table.columns.items()])
        if number % _ROWS == 0:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode()


def _cell(value: Any, kind: Kind) -> Any:  # noqa: ANN401  # whatever a column holds
    if value is None:
        return None
    if kind == "time":
        return iso(value)
    if kind in {"numbers", "object"}:
        return msgspec.json.encode(value, order="sorted").decode() if value else None
    if kind != "text":
        return value
    text = str(value).replace("\0", "\ufffd")
    return f"'{text}" if text.startswith(_FORMULA) else text
