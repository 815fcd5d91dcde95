"""Apache Parquet through pyarrow: exact types, times as UTC timestamps in nanoseconds, zstd."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, BinaryIO

import msgspec

from ferryman.devices.fleet.exports.tables import Exportable, Kind, Row
from ferryman.runtime.contracts.errors import CallerError

GROUP_ROWS = 20_000
"""Rows of a row group, which is what is in memory at once."""


def write_parquet(table: Exportable, rows: Iterable[Row], file: BinaryIO) -> None:
    """Write them a row group at a time; objects are JSON text.

    Raises:
        CallerError: pyarrow is not installed.
    """
    arrow, parquet = load()
    kinds = {
        "time": arrow.timestamp("ns", tz="UTC"),
        "integer": arrow.int64(),
        "number": arrow.float64(),
        "text": arrow.string(),
        "object": arrow.string(),
        "numbers": arrow.list_(arrow.float64()),
    }
    schema = arrow.schema([(name, kinds[kind]) for name, kind in table.columns.items()])
    rows = iter(rows)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(itertools.islice(rows, GROUP_ROWS)):
            columns = {name: _cells([row.get(name) for row in group], kind) for name, kind in table.columns.items()}
            writer.write_table(arrow.table(columns, schema=schema))


def load() -> tuple[Any, Any]:
    """Pyarrow and its Parquet.

    Raises:
        CallerError: it is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise CallerError(f"Parquet needs pyarrow ({error}): pip install 'ferryman[parquet]', or write .csv") from error
    return pa, parquet


def _cells(values: list[Any], kind: Kind) -> list[Any]:
    if kind == "object":
        return [msgspec.json.encode(one, order="sorted").decode() if one else None for one in values]
    return values
