r"""InfluxDB line protocol: a line each, `ferryman_<table>,<tags> <fields> <nanoseconds>`.

https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/ (special characters). It has no way to write a
backslash in a tag that every reader takes alike, and none for line breaks: in tags they become `_`, in strings line
breaks become the two characters `\n`. Lists and reasons of what is unavailable have no place in it and are not written.
A device's own metric that is called like a column is the field `other.<metric>`: a point has a field once, of one type.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from ferryman.devices.fleet.exports.tables import Exportable, Kind, Row

_SPECIAL = re.compile(r"[,= ]")
_UNTOLD = re.compile(r"[\\\x00-\x1f\x7f]")
_LINES = 1000


def write_lines(name: str, table: Exportable, rows: Iterable[Row], file: BinaryIO) -> None:
    """Write them as they come; one without any field is not written, as the protocol asks for one."""
    block: list[str] = []
    for row in rows:
        if (made := line(name, table, row)) is not None:
            block.append(made)
        if len(block) == _LINES:
            file.write("".join(block).encode())
            block.clear()
    file.write("".join(block).encode())


def line(name: str, table: Exportable, row: Row) -> str | None:
    """One point with its line end; None: it has no field."""
    tags = "".join(f",{key(tag)}={key(str(row[tag]))}" for tag in sorted(table.tags) if row.get(tag) not in {None, ""})
    fields = ",".join(f"{key(field)}={value}" for field, value in _fields(table, row))
    return f"ferryman_{name}{tags} {fields} {row['time']}\n" if fields else None


@functools.lru_cache(maxsize=4096)
def key(text: str) -> str:
    """A tag's key or value, or a field's key."""
    return _SPECIAL.sub(r"\\\g<0>", _UNTOLD.sub("_", text))


def string(text: str) -> str:
    """A field's value in quotes."""
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\r", "\\r").replace("\n", "\\n").replace("\0", "\ufffd") + '"'


def _fields(table: Exportable, row: Row) -> Iterator[tuple[str, str]]:
    for name, kind in table.columns.items():
        value = row.get(name)
        if name in table.tags or name == "time" or value is None:
            continue
        if name == "other":
            for other, one in value.items():
                if (number := _number(one)) is not None:
                    yield (f"other.{other}" if other in table.columns else other), number
        elif (made := _field(value, kind)) is not None:
            yield name, made


def _field(value: Any, kind: Kind) -> str | None:  # noqa: ANN401  # whatever a column holds
    if kind in {"time", "integer"}:
        return f"{value}i"
    if kind == "number":
        return _number(value)
    return string(str(value)) if kind == "text" else None


def _number(value: float) -> str | None:
    """None: the protocol has no word for it."""
    return repr(float(value)) if math.isfinite(value) else None
