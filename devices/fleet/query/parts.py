"""A metric over hours: from rollups, and from the samples themselves where an hour is in no rollup yet."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Select, select

from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.reading import decoded, stored
from ferryman.devices.fleet.query.records import Quantiles
from ferryman.devices.fleet.query.who import Who, in_turn, sources_of
from ferryman.devices.fleet.query.window import Window
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.profiler.drift import K, load
from ferryman.runtime.contracts.telemetry import Sample

HOUR_S, DAY_S = 3600, 86400
FRESH_MAX = 500
"""Hours of devices in no rollup whose samples one question reads itself; beyond, it takes what is rolled up and says so."""
_NAMED_MAX = 2000
"""Of more devices all rollups of the window are read."""


class Part(NamedTuple):
    """A metric of one device and package over one hour or day."""

    device: str
    metric: str
    package: str
    """SHA-256, or empty."""
    start_s: int
    count: int
    total: float
    least: float
    most: float
    sketch: Any
    """Of floats; None where it was not asked for."""


def hours(within: Window, now_ns: int) -> tuple[int, int]:
    """First hour of the window and the end of its last, in seconds: what begins within an hour counts whole."""
    until_ns = min(within.until_ns, max(now_ns, within.since_ns) + HOUR_S * 10**9)
    return within.since_ns // 10**9 // HOUR_S * HOUR_S, -(-until_ns // (HOUR_S * 10**9)) * HOUR_S


def parts(
    store: Store,
    span: tuple[int, int],
    devices: Who,
    left_out: LeftOut,
    *,
    sketched: Sequence[str] = (),
    summed: Sequence[str] = (),
    days: bool = True,
) -> Iterator[Part]:
    """What there is of some metrics in whole hours, in no order.

    Metrics are names in `Sample.values`; `latency_ms` is of all latencies, not of medians.

    Args:
        store: where.
        span: first hour and end, see `hours`.
        devices: of these.
        left_out: told of damaged samples and sketches, and of hours that are not rolled up.
        sketched: metrics with their distributions.
        summed: metrics without.
        days: whether whole days may come as one part; else all are hours.

    Raises:
        StoreError: the database cannot be read.
    """
    fresh = _fresh_hours(store, span, devices, left_out)
    instead = {start: frozenset(names) for start, names in fresh.items()}
    for metrics, sketches in ((sketched, True), (summed, False)):
        for begin, end, length in _lengths(span, fresh, days=days) if metrics else ():
            for names in _names(devices):
                for row in store.stream(rollups(metrics, (begin, end), length, names, sketches=sketches)):
                    part = Part(*row) if sketches else Part(*row, None)
                    if part.device in instead.get(part.start_s, ()) or not devices.means(part.device):
                        continue
                    where = f"{part.metric} of {part.device}"
                    if not sketches:
                        yield part
                    elif (made := read_sketch(part.sketch, where, left_out)) is not None:
                        yield part._replace(sketch=made)
    yield from _of_samples(store, fresh, left_out, sketched, summed)


def rollups(
    metrics: Sequence[str], span: tuple[int, int], length: int, names: Sequence[str] | None, *, sketches: bool
) -> Select[Any]:
    """Rows of `Part`; of all devices if `names` is None."""
    table = tables.rollups
    columns = [table.c[name] for name in Part._fields if name != "sketch" or sketches]
    found = select(*columns).where(table.c.metric.in_(metrics), table.c.span_s == length)
    if names is not None:
        found = found.where(table.c.device.in_(names))
    return found.where(table.c.start_s >= span[0], table.c.start_s < span[1])


def merged(sketches: Iterable[Any]) -> Any:  # noqa: ANN401  # datasketches has no type for all of its sketches
    """One sketch of all."""
    whole = empty()
    for one in sketches:
        whole.merge(one)
    return whole


def empty() -> Any:  # noqa: ANN401  # as above
    """A sketch to merge into."""
    return load().kll_floats_sketch(K)


def quantiles(sketch: Any) -> Quantiles | None:  # noqa: ANN401  # as above
    """None of an empty one."""
    if sketch.is_empty():
        return None
    p50, p90, p95, p99 = (float(value) for value in sketch.get_quantiles([0.5, 0.9, 0.95, 0.99], True))
    return Quantiles(count=sketch.n, p50=p50, p90=p90, p95=p95, p99=p99, most=float(sketch.get_max_value()))


def _names(devices: Who) -> list[list[str] | None]:
    if devices.names is None or len(devices.names) > _NAMED_MAX:
        return [None]
    return [*in_turn(sorted(devices.names))]


def _lengths(span: tuple[int, int], fresh: Mapping[int, object], *, days: bool) -> list[tuple[int, int, int]]:
    """Days where they are whole and no hour of them is read itself, hours at both ends."""
    begin, end = span
    first_day, last_day = -(-begin // DAY_S) * DAY_S, end // DAY_S * DAY_S
    if fresh:
        last_day = min(last_day, min(fresh) // DAY_S * DAY_S)
    if not days or last_day <= first_day:
        return [(begin, end, HOUR_S)]
    found = [(begin, first_day, HOUR_S), (first_day, last_day, DAY_S), (last_day, end, HOUR_S)]
    return [one for one in found if one[0] < one[1]]


def read_sketch(data: bytes, where: str, left_out: LeftOut) -> Any:  # noqa: ANN401  # as above
    """What a rollup holds; None of a damaged one, which `left_out` is told."""
    try:
        made = load().kll_floats_sketch.deserialize(bytes(data))
    except (ValueError, RuntimeError, IndexError, MemoryError) as error:
        left_out.damaged("rollup", where, error)
        return None
    if made.is_empty():
        left_out.damaged("rollup", where, "it is empty")
        return None
    return made


def _fresh_hours(store: Store, span: tuple[int, int], devices: Who, left_out: LeftOut) -> dict[int, list[str]]:
    """Hour -> devices whose samples of it are read themselves."""
    dirty = tables.dirty
    wanted = select(dirty.c.start_s, dirty.c.device).where(dirty.c.start_s >= span[0], dirty.c.start_s < span[1])
    found: dict[int, list[str]] = defaultdict(list)
    for start, device in store.read(wanted):
        if devices.means(str(device)):
            found[int(start)].append(str(device))
    pairs = sum(map(len, found.values()))
    if pairs > FRESH_MAX:
        left_out.say(
            f"samples of {pairs:,} hours of devices that are in no rollup yet; the collector goes on rolling up"
        )
        return {}
    return found


def _of_samples(
    store: Store,
    fresh: Mapping[int, Sequence[str]],
    left_out: LeftOut,
    sketched: Sequence[str],
    summed: Sequence[str],
) -> Iterator[Part]:
    for start, names in fresh.items():
        within = Window(start * 10**9, (start + HOUR_S) * 10**9)
        values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for few in in_turn(names):
            for one in stored(store, tables.SAMPLE, within, Who({}, frozenset(few), sources_of(store, few))):
                if (sample := decoded(one, "sample", Sample, left_out)) is None:
                    continue
                for metric in (*sketched, *summed):
                    values[one.device, metric, sample.package_sha256 or ""].extend(values_of(sample, metric))
        for (device, metric, package), found in values.items():
            if found:
                yield _summed_up(device, metric, package, start, found, sketch=metric in sketched)


def _summed_up(device: str, metric: str, package: str, start_s: int, values: Sequence[float], *, sketch: bool) -> Part:
    """Sum values up."""
    made = empty() if sketch else None
    if made is not None:
        made.update(np.asarray(values, np.float32))
    return Part(device, metric, package, start_s, len(values), math.fsum(values), min(values), max(values), made)


def values_of(sample: Sample, metric: str) -> Sequence[float]:
    """What a sample tells of a metric: of latency each that it has, or else its median."""
    if metric == "latency_ms" and sample.latencies_ms:
        return sample.latencies_ms
    return (sample.values[metric],) if metric in sample.values else ()
