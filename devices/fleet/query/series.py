"""Samples of a device, and one metric of it over time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from ferryman.devices.fleet.query.asked import check_names
from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.parts import Part, hours, merged, parts, values_of
from ferryman.devices.fleet.query.reading import Stored, decoded, newest, stored
from ferryman.devices.fleet.query.records import CLOCKS, Point, SampleRow, Samples, Series
from ferryman.devices.fleet.query.who import Who, who
from ferryman.devices.fleet.query.window import Window, window
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.devices.fleet.store.tables import DAY_S, HOUR_S
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.telemetry import Sample

LIMIT = 100_000
POINTS_MAX = 100_000


def samples(
    store: Store,
    *,
    now_ns: int,
    query: str | None = None,
    device: str | None = None,
    since: str | int | None = None,
    until: str | int | None = None,
    limit: int | None = LIMIT,
) -> Samples:
    """Give the newest samples, in order of time.

    Args:
        store: where.
        now_ns: the present.
        query: only of these devices; see `ferryman.devices.fleet.rollout.query`.
        device: only of this one.
        since: from then on; None: an hour before the end.
        until: before then; None: now.
        limit: so many at most; None: all, in memory.

    Raises:
        CallerError: an argument is none of its kind, or there is no such device.
        StoreError: the database cannot be read.
    """
    left_out = LeftOut()
    devices = who(store, query, device, left_out)

    def read(one: Stored) -> SampleRow | None:
        sample = decoded(one, "sample", Sample, left_out)
        return None if sample is None else sample_row(one, sample)

    within = window(since, until, now_ns, "1h")
    rows, more = newest(store, "sample", within, devices, limit, read)
    if more:
        left_out.say(f"samples older than these {len(rows):,}; raise the limit, narrow them down, or export them")
    return Samples(rows=tuple(reversed(rows)), total=None if more else len(rows), left_out=left_out.words())


def sample_row(one: Stored, sample: Sample) -> SampleRow:
    """With where it comes from."""
    return SampleRow(
        device=one.device,
        boot=one.boot,
        sequence=one.sequence,
        time_ns=one.time_ns,
        clock=CLOCKS[one.clock],
        received_ns=one.received_ns,
        period_s=sample.period_s,
        package_sha256=sample.package_sha256,
        values=sample.values,
        unavailable=sample.unavailable,
        latencies_ms=sample.latencies_ms,
    )


def series(
    store: Store,
    device: str,
    metric: str,
    *,
    now_ns: int,
    since: str | int | None = None,
    until: str | int | None = None,
    span_s: int = 0,
) -> Series:
    """Give a metric of a device over time.

    Args:
        store: where.
        device: its name.
        metric: a name in `Sample.values`.
        now_ns: the present.
        since: from then on; None: a day before the end.
        until: before then; None: now.
        span_s: length of what a point sums up, from 1970 on; 0: a point for each sample. Whole hours come from rollups,
            which outlive samples; shorter ones and samples from the samples.

    Raises:
        CallerError: an argument is none of its kind, there is no such device, or these are too many points.
        StoreError: the database cannot be read.
    """
    check_names(device=device, metric=metric)
    if span_s < 0:
        raise CallerError(f"a span is 0 or more seconds, found {span_s}")
    left_out = LeftOut()
    within = window(since, until, now_ns, "1d")
    devices = who(store, None, device, left_out)
    if span_s and span_s % HOUR_S == 0:
        found = _of_hours(store, metric, hours(within, now_ns), devices, left_out, span_s)
    else:
        found = _of_samples(store, metric, within, devices, left_out, span_s)
    points: list[Point] = []
    for point in found:
        points.append(point)
        if len(points) > POINTS_MAX:
            raise CallerError(f"a series has at most {POINTS_MAX:,} points; ask for a longer span, or a shorter window")
    return Series(device=device, metric=metric, span_s=span_s, points=tuple(points), left_out=left_out.words())


def _of_hours(
    store: Store, metric: str, span: tuple[int, int], devices: Who, left_out: LeftOut, span_s: int
) -> Iterator[Point]:
    spans: dict[int, list[Part]] = defaultdict(list)
    for part in parts(store, span, devices, left_out, sketched=(metric,), days=span_s % DAY_S == 0):
        spans[part.start_s // span_s * span_s].append(part)
    for start_s, its in sorted(spans.items()):
        count, (p50, p95) = (
            sum(one.values for one in its),
            merged(one.sketch for one in its).get_quantiles([0.5, 0.95], True),
        )
        yield Point(
            time_ns=start_s * 10**9,
            count=count,
            mean=math.fsum(one.total for one in its) / count,
            least=min(one.least for one in its),
            p50=float(p50),
            p95=float(p95),
            most=max(one.most for one in its),
        )


def _of_samples(
    store: Store, metric: str, within: Window, devices: Who, left_out: LeftOut, span_s: int
) -> Iterator[Point]:
    spans: dict[int, list[float]] = defaultdict(list)
    for one in stored(store, tables.SAMPLE, within, devices):
        if (sample := decoded(one, "sample", Sample, left_out)) is not None and (values := values_of(sample, metric)):
            begin_ns = one.time_ns // (span_s * 10**9) * (span_s * 10**9) if span_s else one.time_ns
            spans[begin_ns].extend(values)
    for begin_ns, its in sorted(spans.items()):
        p50, p95 = map(float, np.quantile(its, [0.5, 0.95], method="inverted_cdf"))
        yield Point(
            time_ns=begin_ns,
            count=len(its),
            mean=math.fsum(its) / len(its),
            least=min(its),
            p50=p50,
            p95=p95,
            most=max(its),
        )
