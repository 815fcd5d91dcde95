"""How a fleet does, on one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import msgspec
from sqlalchemy import Select, func, select

from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.newest_sample import Newest, error_percent, newest_samples
from ferryman.devices.fleet.query.parts import empty, hours, parts, quantiles
from ferryman.devices.fleet.query.reading import decoded, stored
from ferryman.devices.fleet.query.records import FleetStatus, Worst
from ferryman.devices.fleet.query.who import Known, Who, is_silent, who
from ferryman.devices.fleet.query.window import Window, window
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.telemetry import Sample

WORST = 5
RATE_NS = 5 * 60 * 10**9
STALE_NS = 3600 * 10**9
"""A sample older than this is no device's present."""


class _Dropped(Record):
    """What is needed of a record of kind `dropped`."""

    records: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


def fleet_status(
    store: Store,
    *,
    now_ns: int,
    query: str | None = None,
    device: str | None = None,
    since: str | int | None = None,
    worst: int = WORST,
) -> FleetStatus:
    """Sum up a fleet.

    Args:
        store: where.
        now_ns: the present.
        query: only these devices; see `ferryman.devices.fleet.rollout.query`.
        device: only this one.
        since: where the window begins, as `parse_time` reads it; None: an hour ago. Whole hours count.
        worst: so many devices that stand out, of each kind.

    Raises:
        CallerError: the query or the time is none, or there is no such device.
        StoreError: the database cannot be read.
    """
    left_out = LeftOut()
    within = window(since, None, now_ns, "1h")
    devices = who(store, query, device, left_out)
    span = hours(within, now_ns)
    statuses = [one.status for one in devices.known.values()]
    sketch, totals = empty(), Counter[str]()
    for part in parts(store, span, devices, left_out, sketched=("latency_ms",), summed=("inferences", "errors")):
        if part.sketch is None:
            totals[part.metric] += round(part.total)
        else:
            sketch.merge(part.sketch)
    newest = {
        name: one
        for name, one in newest_samples(store, _few(devices), left_out).items()
        if devices.means(name) and one.time_ns >= now_ns - STALE_NS
    }
    from_ns = span[0] * 10**9
    return FleetStatus(
        now_ns=now_ns,
        since_ns=from_ns,
        devices=len(statuses),
        online=sum(one.online for one in devices.known.values()),
        silent=sum(is_silent(one.online, one.seen_ns, now_ns) for one in devices.known.values()),
        ferryman=_counts(one.ferryman or "unknown" for one in statuses),
        models=_counts(one.model or "unknown" for one in statuses),
        packages=_counts(map(_package, statuses)),
        releases=_counts(one.release or "-" for one in statuses),
        open_alerts=_open_alerts(store, devices),
        samples_per_minute=_rate(store, devices, now_ns),
        drops=_drops(store, Window(from_ns, within.until_ns), devices, left_out),
        dropped_total=sum(one.outbox_dropped for one in statuses),
        waiting=sum(_waiting(one, newest) for one in devices.known.values()),
        inferences=totals["inferences"],
        errors=totals["errors"],
        latency_ms=quantiles(sketch),
        worst_error_percent=_worst(newest, error_percent, worst),
        worst_latency_ms=_worst(newest, lambda sample: sample.values.get("latency_ms"), worst),
        worst_temperature_c=_worst(newest, lambda sample: sample.values.get("temperature_c"), worst),
        left_out=left_out.words(),
    )


def _few(devices: Who) -> list[str] | None:
    return None if devices.names is None else sorted(devices.names)


def _counts(values: Iterable[str]) -> dict[str, int]:
    """The most frequent first."""
    return dict(Counter(values).most_common())


def _package(status: Status) -> str:
    return f"{status.package_name} ({status.package_sha256[:12]})" if status.package_sha256 else "-"


def _waiting(one: Known, newest: Mapping[str, Newest]) -> int:
    """By the newest sample where there is one: a status is only sent on connecting."""
    found = newest.get(one.status.device)
    waiting = found.sample.values.get("outbox_records") if found else None
    return one.status.outbox_pending if waiting is None else round(waiting)


def _open_alerts(store: Store, devices: Who) -> dict[str, int]:
    table = tables.alerts
    rows = store.read(select(table.c.device, table.c.severity).where(table.c.until_ns.is_(None)))
    return _counts(str(severity) for device, severity in rows if devices.means(device))


def _rate(store: Store, devices: Who, now_ns: int) -> float:
    rows = store.read(samples_since(now_ns - RATE_NS, now_ns))
    return sum(int(count) for device, count in rows if devices.means(str(device))) * 60e9 / RATE_NS


def samples_since(since_ns: int, until_ns: int) -> Select[Any]:
    """Device and number of samples, a row a source; counted within, so that each source is looked up in the index."""
    sources, records = tables.sources, tables.records
    count = (
        select(func.count())
        .where(records.c.source == sources.c.id, tables.of_kind(tables.SAMPLE))
        .where(records.c.time_ns >= since_ns, records.c.time_ns < until_ns)
        .scalar_subquery()
    )
    return select(sources.c.device, count)


def _drops(store: Store, within: Window, devices: Who, left_out: LeftOut) -> int:
    found = (decoded(one, "drop report", _Dropped, left_out) for one in stored(store, "dropped", within, devices))
    return sum(one.records for one in found if one is not None)


def _worst(newest: Mapping[str, Newest], of: Callable[[Sample], float | None], most: int) -> tuple[Worst, ...]:
    """Those with the most of it; nobody stands out with nothing."""
    values = ((of(one.sample), device, one.time_ns) for device, one in newest.items())
    told = [(value, device, time_ns) for value, device, time_ns in values if value is not None and value > 0]
    told.sort(key=lambda one: (-one[0], one[1]))
    return tuple(Worst(device=device, value=value, time_ns=time_ns) for value, device, time_ns in told[:most])
