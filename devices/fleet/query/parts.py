"""A metric over hours and days: from rollups, and from samples themselves where an hour is in no rollup yet.

How rollups are made is told in `ferryman.devices.fleet.store.rollup`. What matters here: a row that is `sealed` holds
samples that are deleted, and what came late is to be added to it; every other row holds all or, while it is `dirty`,
some of what a lower level tells as well, which then counts in its stead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from datasketches import kll_floats_sketch
from sqlalchemy import Select, select

from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.reading import decoded, stored
from ferryman.devices.fleet.query.records import Quantiles
from ferryman.devices.fleet.query.sane import check, least_of
from ferryman.devices.fleet.query.who import Who, in_turn, sources_of
from ferryman.devices.fleet.query.window import Window
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.sketches import K, summarise
from ferryman.devices.fleet.store.store import Store
from ferryman.devices.fleet.store.tables import DAY_S, HOUR_S
from ferryman.runtime.contracts.telemetry import VALUE_MAX, Sample

FRESH_MAX = 1000
"""Hours of devices in no rollup whose samples one question reads; beyond, it takes what is rolled up and says so."""
_NAMED_MAX = 2000
"""Of more devices all rollups of the window are read."""
Sketch = Any
"""A `kll_floats_sketch`, which has no types."""


class Part(NamedTuple):
    """A metric of one device and package over one hour or day."""

    device: str
    start_s: int
    metric: str
    package: str
    """SHA-256, or empty."""
    values: int
    total: float
    least: float
    most: float
    sketch: Sketch
    """None where it was not asked for."""


class _Dirty(NamedTuple):
    """What is not rolled up: starts, each with its devices."""

    hours: dict[int, set[str]]
    days: dict[int, set[str]]


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

    Metrics are names in `Sample.values`; `latency_ms` is of all inferences, not of medians.

    Args:
        store: where.
        span: first hour and end, see `hours`.
        devices: of these.
        left_out: told of damaged samples and sketches, of hours that are not rolled up, and of those that the store
            keeps as days only.
        sketched: metrics with their distributions.
        summed: metrics without.
        days: whether whole days may come as one part; else all are hours.

    Raises:
        StoreError: the database cannot be read.
    """
    dirty = _dirty(store, span, devices, left_out)
    first_day, last_day = -(-span[0] // DAY_S) * DAY_S, span[1] // DAY_S * DAY_S
    whole = days and first_day < last_day
    if whole:
        for part, sealed in _rolled_up(store, (first_day, last_day), DAY_S, devices, sketched, summed, left_out):
            if sealed or part.device not in dirty.days.get(part.start_s, ()):
                yield part
    spans = [(span[0], first_day), (last_day, span[1])] if whole else [span]
    _say_days_only(store, spans, devices, (*sketched, *summed), left_out)
    if whole:
        spans += [(day, day + DAY_S) for day in dirty.days if first_day <= day < last_day]
    for one in spans:
        for part, sealed in _rolled_up(store, one, HOUR_S, devices, sketched, summed, left_out):
            day = part.start_s // DAY_S * DAY_S
            if whole and first_day <= day < last_day and part.device not in dirty.days[day]:
                continue
            if sealed or part.device not in dirty.hours.get(part.start_s, ()):
                yield part
    yield from _of_samples(store, dirty.hours, left_out, sketched, summed)


def rollups(
    metrics: Sequence[str], span: tuple[int, int], length: int, names: Sequence[str] | None, *, sketches: bool
) -> Select[Any]:
    """Rows as `Part`, then `sealed`; of all devices if `names` is None."""
    table = tables.rollups
    columns = [table.c[name] for name in ("device", "start_s", "metric", "package", "count", "total", "least", "most")]
    if sketches:
        columns.append(table.c.sketch)
    found = select(*columns, table.c.sealed).where(table.c.metric.in_(metrics), table.c.span_s == length)
    if names is not None:
        found = found.where(table.c.device.in_(names))
    return found.where(table.c.start_s >= span[0], table.c.start_s < span[1])


def merged(sketches: Iterable[Sketch]) -> Sketch:
    """One sketch of all."""
    whole = empty()
    for one in sketches:
        whole.merge(one)
    return whole


def empty() -> Sketch:
    """A sketch to merge into."""
    return kll_floats_sketch(K)


def quantiles(sketch: Sketch) -> Quantiles | None:
    """None of an empty one."""
    if sketch.is_empty():
        return None
    p50, p90, p95, p99 = (float(value) for value in sketch.get_quantiles([0.5, 0.9, 0.95, 0.99], True))
    return Quantiles(count=sketch.n, p50=p50, p90=p90, p95=p95, p99=p99, most=float(sketch.get_max_value()))


def read_sketch(data: bytes, where: str, left_out: LeftOut) -> Sketch:
    """What a rollup holds; None of a damaged one, which `left_out` is told."""
    try:
        made = kll_floats_sketch.deserialize(bytes(data))
    except (ValueError, RuntimeError, IndexError, MemoryError) as error:
        left_out.damaged("rollup", where, error)
        return None
    if made.is_empty() or not (made.get_min_value() >= -VALUE_MAX and made.get_max_value() <= VALUE_MAX):
        left_out.damaged("rollup", where, "it is empty" if made.is_empty() else "its sketch is out of bounds")
        return None
    return made


def can_be(row: Part, left_out: LeftOut) -> bool:
    """Whether a rollup's numbers can be; if not, `left_out` is told."""
    try:
        check("values", (row.values,), 1)
        check(row.metric, (row.least, row.most, row.total / row.values), least_of(row.metric))
        if row.metric in ("inferences", "errors"):
            check(f"the sum of {row.metric}", (row.total,), 0)
    except ValueError as error:
        left_out.damaged("rollup", f"{row.metric} of {row.device}", error)
        return False
    return True


def values_of(sample: Sample, metric: str) -> Sequence[float]:
    """What a sample tells of a metric: of latency each that it has, or else its median."""
    if metric == "latency_ms" and sample.latencies_ms:
        return sample.latencies_ms
    return (sample.values[metric],) if metric in sample.values else ()


def _rolled_up(
    store: Store,
    span: tuple[int, int],
    length: int,
    devices: Who,
    sketched: Sequence[str],
    summed: Sequence[str],
    left_out: LeftOut,
) -> Iterator[tuple[Part, bool]]:
    """Rows of one length, and whether each is sealed."""
    for metrics, sketches in ((sketched, True), (summed, False)):
        for names in _names(devices) if metrics and span[0] < span[1] else ():
            for row in store.stream(rollups(metrics, span, length, names, sketches=sketches)):
                part, sealed = Part._make(row[:-1] if sketches else (*row[:-1], None)), bool(row[-1])
                if not devices.means(part.device) or not can_be(part, left_out):
                    continue
                if sketches:
                    made = read_sketch(part.sketch, f"{part.metric} of {part.device}", left_out)
                    if made is None:
                        continue
                    part = part._replace(sketch=made)
                yield part, sealed


def _names(devices: Who) -> list[Sequence[str] | None]:
    if devices.names is None or len(devices.names) > _NAMED_MAX:
        return [None]
    return list(in_turn(sorted(devices.names)))


def _dirty(store: Store, span: tuple[int, int], devices: Who, left_out: LeftOut) -> _Dirty:
    """Of both lengths; without hours, where they are too many to be read."""
    table = tables.dirty
    first = span[0] // DAY_S * DAY_S
    wanted = select(table.c.span_s, table.c.start_s, table.c.device).where(
        table.c.start_s >= first, table.c.start_s < span[1]
    )
    found = _Dirty(defaultdict(set), defaultdict(set))
    statements = [wanted if names is None else wanted.where(table.c.device.in_(names)) for names in _names(devices)]
    for length, start, device in (row for statement in statements for row in store.read(statement)):
        if not devices.means(str(device)):
            continue
        found.days[int(start) // DAY_S * DAY_S].add(str(device))
        if length == HOUR_S and start >= span[0]:
            found.hours[int(start)].add(str(device))
    waiting = sum(map(len, found.hours.values()))
    if waiting > FRESH_MAX:
        left_out.say(
            f"samples of {waiting:,} hours of devices that are not rolled up yet; the collector does when they end"
        )
        return _Dirty({}, found.days)
    return found


def _say_days_only(
    store: Store, spans: Sequence[tuple[int, int]], devices: Who, metrics: Sequence[str], left_out: LeftOut
) -> None:
    """Tell of days of which hours were asked, and whose hours were deleted: how many of them were, nobody knows."""
    gone = {
        (row.device, row.start_s)
        for begin, end in spans
        for names in (_names(devices) if begin < end else ())
        for row in store.stream(
            rollups(metrics, (begin // DAY_S * DAY_S, end), DAY_S, names, sketches=False)
            .where(tables.rollups.c.sealed == 1)
        )
        if devices.means(str(row.device))
    }  # fmt: skip
    if gone:
        first, last = (f"{datetime.fromtimestamp(of(day for _, day in gone), UTC):%Y-%m-%d}" for of in (min, max))
        days = first if first == last else f"{first} to {last}"
        left_out.say(
            f"hours of {len(gone):,} days of devices ({days}), of which the store keeps whole days only; where days "
            "count, a window from midnight UTC has them"
        )


def _of_samples(
    store: Store,
    fresh: Mapping[int, set[str]],
    left_out: LeftOut,
    sketched: Sequence[str],
    summed: Sequence[str],
) -> Iterator[Part]:
    wanted = {*sketched, *summed, "inferences"}  # what latencies are weighed by
    for start, named in fresh.items():
        within = Window(start * 10**9, (start + HOUR_S) * 10**9)
        for few in in_turn(sorted(named)):
            samples: dict[str, list[Sample]] = defaultdict(list)
            for one in stored(store, tables.SAMPLE, within, Who({}, frozenset(few), sources_of(store, few))):
                if (sample := decoded(one, "sample", Sample, left_out)) is not None:
                    values = {name: value for name, value in sample.values.items() if name in wanted}
                    samples[one.device].append(msgspec.structs.replace(sample, values=values))
            for device, its in samples.items():
                for (metric, package), made in summarise(its).items():
                    if metric in (*sketched, *summed):
                        sketch = kll_floats_sketch.deserialize(made.sketch) if metric in sketched else None
                        numbers = made.count, made.total, made.least, made.most
                        yield Part(device, start, metric, package, *numbers, sketch)
