"""What can be exported: its columns, and its rows out of the store, one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select

from ferryman.devices.fleet.metrics import METRICS as OF_MEASUREMENT
from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.measured import measured
from ferryman.devices.fleet.query.parts import Part, can_be, read_sketch
from ferryman.devices.fleet.query.reading import Stored, decoded, stored
from ferryman.devices.fleet.query.records import CLOCKS
from ferryman.devices.fleet.query.who import Who
from ferryman.devices.fleet.query.window import Window
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.telemetry import METRICS, LogLine, Sample

Kind = Literal["time", "integer", "number", "text", "numbers", "object"]
"""`time`: nanoseconds since the epoch; `numbers`: a list; `object`: names and values."""
Row = dict[str, Any]
"""By column; what is not there is not known."""
Read = Callable[[Store, Window, Who, LeftOut], Iterator[Row]]


_STEERING = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What could steer a terminal or turn text round; tabs and line breaks are not in it."""


def visible(text: str) -> str:
    """With U+FFFD in place of control characters, for formats that people read."""
    return _STEERING.sub("\ufffd", text)


@dataclass(frozen=True)
class Exportable:
    """A table that can be written to a file."""

    columns: dict[str, Kind]
    tags: tuple[str, ...]
    """What line protocol names a series by; all else are its fields."""
    rows: Read


_NAME: dict[str, Kind] = {
    "time": "time",
    "device": "text",
    "boot": "text",
    "sequence": "integer",
    "clock": "text",
    "received": "time",
}


def _named(one: Stored) -> Row:
    """What names a record; with it, records of two exports that overlap are told apart."""
    return {
        "time": one.time_ns,
        "device": one.device,
        "boot": one.boot,
        "sequence": one.sequence,
        "clock": CLOCKS[one.clock],
        "received": one.received_ns,
    }


def _samples(store: Store, within: Window, devices: Who, left_out: LeftOut) -> Iterator[Row]:
    for one in stored(store, tables.SAMPLE, within, devices):
        if (sample := decoded(one, "sample", Sample, left_out)) is None:
            continue
        row = _named(one) | {"period_s": sample.period_s, "package_sha256": sample.package_sha256}
        row |= {name: value for name, value in sample.values.items() if name in METRICS}
        row["other"] = {name: value for name, value in sample.values.items() if name not in METRICS}
        yield row | {"unavailable": sample.unavailable, "latencies_ms": sample.latencies_ms}


def _logs(store: Store, within: Window, devices: Who, left_out: LeftOut) -> Iterator[Row]:
    for one in stored(store, "log", within, devices):
        if (line := decoded(one, "log line", LogLine, left_out)) is not None:
            yield _named(one) | {
                "level": line.level, "logger": line.logger, "message": line.message, "times": line.times
            }  # fmt: skip


def _measurements(store: Store, within: Window, devices: Who, left_out: LeftOut) -> Iterator[Row]:
    for one in stored(store, "measurement", within, devices):
        if (made := measured(one, left_out)) is None:
            continue
        found, values = made
        yield _named(one) | {
            "package": found.package_name,
            "package_sha256": found.package_sha256,
            "variant": found.variant,
            "form": found.form,
            "interpreter": found.interpreter,
            "interpreter_version": found.interpreter_version,
            "threads": found.spec.threads,
            **{name: value for name, value in values.items() if not isinstance(value, Unavailable)},
            "unavailable": {name: value.reason for name, value in values.items() if isinstance(value, Unavailable)},
        }


def _rollups(store: Store, within: Window, devices: Who, left_out: LeftOut) -> Iterator[Row]:
    table = tables.rollups
    wanted = (
        select(table)
        .where(table.c.start_s >= -(-within.since_ns // 10**9), table.c.start_s * 10**9 < within.until_ns)
        .order_by(table.c.device, table.c.metric, table.c.package, table.c.span_s, table.c.start_s)
    )
    for one in store.stream(wanted):
        count: Any = one.count
        part = Part(
            str(one.device), one.start_s, one.metric, one.package, count, one.total, one.least, one.most, sketch=None
        )
        if not devices.means(part.device) or not can_be(part, left_out):
            continue
        if (sketch := read_sketch(one.sketch, f"{one.metric} of {one.device}", left_out)) is None:
            continue
        p50, p95, p99 = map(float, sketch.get_quantiles([0.5, 0.95, 0.99], True))
        yield {
            "time": one.start_s * 10**9,
            "device": one.device,
            "metric": one.metric,
            "package_sha256": one.package or None,
            "span_s": one.span_s,
            "count": one.count,
            "mean": one.total / one.count,
            "least": one.least,
            "p50": p50,
            "p95": p95,
            "p99": p99,
            "most": one.most,
        }


EXPORTABLES: dict[str, Exportable] = {
    "samples": Exportable(
        {
            **_NAME,
            "period_s": "number",
            "package_sha256": "text",
            **dict.fromkeys(METRICS, "number"),
            "other": "object",
            "unavailable": "object",
            "latencies_ms": "numbers",
        },
        ("device", "package_sha256"),
        _samples,
    ),
    "measurements": Exportable(
        {
            **_NAME,
            **dict.fromkeys(("package", "package_sha256", "variant", "form", "interpreter"), "text"),
            "interpreter_version": "text",
            "threads": "integer",
            **dict.fromkeys(OF_MEASUREMENT, "number"),
            "unavailable": "object",
        },
        ("device", "interpreter", "package", "package_sha256", "variant"),
        _measurements,
    ),
    "logs": Exportable(
        {**_NAME, "level": "text", "logger": "text", "message": "text", "times": "integer"}, ("device", "level"), _logs
    ),
    "rollups": Exportable(
        {
            "time": "time",
            "device": "text",
            "metric": "text",
            "package_sha256": "text",
            "span_s": "integer",
            "count": "integer",
            **dict.fromkeys(("mean", "least", "p50", "p95", "p99", "most"), "number"),
        },
        ("device", "metric", "package_sha256", "span_s"),
        _rollups,
    ),
}
"""By name."""
