"""CSV (RFC 4180 but for LF, UTF-8): a head, then a row each; an empty cell is what is not known."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Any, BinaryIO

import msgspec

from ferryman.devices.fleet.exports.tables import Exportable, Kind, Row, visible
from ferryman.devices.fleet.query.window import iso

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would run, as the first character of a cell of text."""
_QUOTED = re.compile('[",\r\n]')
_ROWS = 1000


def write_csv(table: Exportable, rows: Iterable[Row], file: BinaryIO) -> None:
    """Write them as they come; times are RFC 3339 with nanoseconds, lists and objects JSON."""
    file.write(f"{','.join(table.columns)}\n".encode())
    rows = iter(rows)
    while block := list(itertools.islice(rows, _ROWS)):
        lines = (",".join(_cell(row.get(name), kind) for name, kind in table.columns.items()) for row in block)
        file.write("".join(f"{line}\n" for line in lines).encode())


def _cell(value: Any, kind: Kind) -> str:  # noqa: ANN401  # whatever a column holds
    """Not by the module csv: it leaves a lone carriage return without quotes, and readers take that for a row's end."""
    if value is None:
        return ""
    if kind == "time":
        return iso(value)
    if kind in {"numbers", "object"}:
        text = visible(msgspec.json.encode(value, order="sorted").decode()) if value else ""
    elif kind == "text":
        text = visible(str(value))
        text = f"'{text}" if text.startswith(_FORMULA) else text
    else:
        return str(value)
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text
