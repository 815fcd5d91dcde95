"""Records as a DataFrame of pandas or polars, whichever is there; as a list where neither is."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Sequence
from importlib import import_module, util
from typing import Any, Literal, NamedTuple

import msgspec

from ferryman.devices.fleet.query.records import SampleRow
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record, Unavailable
from ferryman.runtime.contracts.telemetry import METRICS

Frame = Literal["pandas", "polars", "records"]
FRAMES: tuple[Frame, ...] = ("pandas", "polars", "records")
_Kind = Literal["time", "integer", "number", "flag", "text", "numbers"]
_PANDAS = {"integer": "Int64", "number": "Float64", "flag": "boolean", "text": "string", "numbers": "object"}
_NAT = -(1 << 63)


class _Column(NamedTuple):
    name: str
    kind: _Kind
    values: list[Any]


def check_frame(frame: str | None) -> Frame:
    """The one to make; None: pandas, else polars, else records.

    Raises:
        CallerError: there is no such frame, or its library is not installed.
    """
    if frame is None:
        return next((one for one in FRAMES[:2] if util.find_spec(one) is not None), "records")
    if frame not in FRAMES:
        raise CallerError(f"no frame {frame!r:.100}; there are: {', '.join(FRAMES)}")
    if frame != "records" and util.find_spec(frame) is None:
        raise CallerError(f"{frame} is not installed here; pip install {frame}, or ask for frame='records'")
    return frame


def to_frame(rows: Sequence[Record], kind: type[Record], frame: Frame) -> Any:  # noqa: ANN401  # of one library or another
    """A column for each field, also where there are no rows.

    Fields that end in `_ns` become UTC timestamps without it in their name; what is not known is null; names and values
    become JSON text, but for a sample's metrics, which become columns: `other.<metric>` of one that is called like a
    field.
    """
    if frame == "records":
        return list(rows)
    columns = _columns(rows, kind)
    return _pandas(columns) if frame == "pandas" else _polars(columns)


def _pandas(columns: Iterable[_Column]) -> Any:  # noqa: ANN401  # its types need not be installed
    import numpy as np

    pandas = import_module("pandas")
    made = {}
    for name, kind, values in columns:
        if kind == "time":
            nanoseconds = np.array([_NAT if value is None else value for value in values], np.int64)
            made[name] = pandas.DatetimeIndex(nanoseconds.view("datetime64[ns]")).tz_localize("UTC")
        else:
            made[name] = pandas.array(values, dtype=_PANDAS[kind])
    return pandas.DataFrame(made)


def _polars(columns: Iterable[_Column]) -> Any:  # noqa: ANN401  # as above
    polars = import_module("polars")
    dtypes = {
        "time": polars.Int64,
        "integer": polars.Int64,
        "number": polars.Float64,
        "flag": polars.Boolean,
        "text": polars.String,
        "numbers": polars.List(polars.Float64),
    }
    made = []
    for name, kind, values in columns:
        series = polars.Series(name, values, dtype=dtypes[kind])
        made.append(series.cast(polars.Datetime("ns", "UTC")) if kind == "time" else series)
    return polars.DataFrame(made)


def _columns(rows: Sequence[Record], kind: type[Record]) -> list[_Column]:
    found = []
    hints = typing.get_type_hints(kind)
    fields = {field.name: field.name.removesuffix("_ns") for field in msgspec.structs.fields(kind)}
    for field, column in fields.items():
        values = [getattr(row, field) for row in rows]
        if kind is SampleRow and field == "values":
            names = [*METRICS, *sorted({name for one in values for name in one} - METRICS.keys())]
            found += [
                _Column(
                    f"other.{name}" if name in fields.values() else name, "number", [one.get(name) for one in values]
                )
                for name in names
            ]
            continue
        as_kind = _kind(field, hints[field])
        if as_kind == "text":
            values = [
                msgspec.json.encode(one, order="sorted").decode() if isinstance(one, dict) else one for one in values
            ]
        elif as_kind == "numbers":
            values = [list(one) for one in values]
        else:
            values = [None if isinstance(one, Unavailable) else one for one in values]
        found.append(_Column(column, as_kind, values))
    return found


def _kind(name: str, hint: Any) -> _Kind:  # noqa: ANN401  # any annotation
    """Of a field: by its type, and times by their name."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(one for one in typing.get_args(hint) if one not in {type(None), Unavailable})
    if typing.get_origin(hint) is tuple:
        return "numbers"
    if hint is int:
        return "time" if name.endswith("_ns") else "integer"
    return "number" if hint is float else "flag" if hint is bool else "text"
