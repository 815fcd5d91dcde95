"""A row for each device."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import Select, func, select

from ferryman.devices.fleet.query.asked import checked_limit
from ferryman.devices.fleet.query.asked import shown as in_words
from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.newest_sample import Newest, newest_samples
from ferryman.devices.fleet.query.parts import empty, hours, parts
from ferryman.devices.fleet.query.records import DeviceRow, Devices
from ferryman.devices.fleet.query.who import IN_MAX, Known, Who, who
from ferryman.devices.fleet.query.window import window
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.errors import CallerError

LIMIT = 50
SORTS: dict[str, Callable[[DeviceRow], Any]] = {
    "name": lambda row: row.device,
    "seen": lambda row: -row.seen_ns,
    "offline": lambda row: (row.online, row.seen_ns),
    "errors": lambda row: -row.errors,
    "latency": lambda row: -(row.latency_p95_ms or 0),
    "temperature": lambda row: -(row.temperature_c or -1e9),
    "waiting": lambda row: -row.waiting,
    "dropped": lambda row: -row.dropped,
}
"""What comes first: the last seen, those offline for longest, the most errors, the slowest, the hottest and so on."""
_OF_WINDOW = frozenset({"errors", "latency"})
_OF_SAMPLE = frozenset({"temperature", "waiting"})


def device_rows(
    store: Store,
    *,
    now_ns: int,
    query: str | None = None,
    device: str | None = None,
    since: str | int | None = None,
    until: str | int | None = None,
    sort: str = "name",
    limit: int | None = LIMIT,
) -> Devices:
    """Tell of each device what it said last, and how it did over a window of whole hours.

    Args:
        store: where.
        now_ns: the present.
        query: only these; see `ferryman.devices.fleet.rollout.query`.
        device: only this one.
        since: where the window begins; None: an hour before its end.
        until: where it ends; None: now.
        sort: one of SORTS.
        limit: so many at most; None: all.

    Raises:
        CallerError: an argument is none of its kind, or there is no such device.
        StoreError: the database cannot be read.
    """
    limit = checked_limit(limit)
    if not isinstance(sort, str) or sort not in SORTS:
        raise CallerError(f"devices are not sorted by {in_words(sort)}, but by one of: {', '.join(SORTS)}")
    left_out = LeftOut()
    within = window(since, until, now_ns, "1h")
    span = hours(within, now_ns)
    devices = who(store, query, device, left_out)
    # Only what the order needs is read of all; the rest of those that are shown.
    newest: dict[str, Newest] = {}
    if sort in _OF_SAMPLE:
        newest = newest_samples(store, None if devices.names is None else sorted(devices.names), left_out)
    rows = [_row(name, known, newest.get(name)) for name, known in devices.known.items()]
    if sort in _OF_WINDOW:
        rows = _windowed(store, rows, span, devices, left_out)
    rows.sort(key=lambda row: (SORTS[sort](row), row.device))
    shown = rows if limit is None else rows[:limit]
    if len(shown) < len(rows):
        left_out.say(f"{len(rows) - len(shown):,} of {len(rows):,} devices; raise the limit, or narrow them down")
    names = [row.device for row in shown]
    if sort not in _OF_SAMPLE:
        newest = newest_samples(store, names if len(shown) < len(rows) or devices.names else None, left_out)
    by_name = {row.device: row for row in shown}
    shown = [_row(name, devices.known[name], newest.get(name), by_name[name]) for name in names]
    sure = _clocks(store, names)
    shown = [msgspec.structs.replace(row, clock_sure=sure.get(row.device)) for row in shown]
    if sort not in _OF_WINDOW:
        few = Who(devices.known, frozenset(names)) if len(shown) < len(rows) else devices
        shown = _windowed(store, shown, span, few, left_out)
    return Devices(
        rows=tuple(shown),
        total=len(rows),
        left_out=left_out.words(),
        since_ns=span[0] * 10**9,
        until_ns=min(within.until_ns, now_ns),
    )


def _row(name: str, known: Known, newest: Newest | None, windowed: DeviceRow | None = None) -> DeviceRow:
    status = known.status
    values = newest.sample.values if newest else {}
    throttled, waiting = values.get("throttled"), values.get("outbox_records")
    return DeviceRow(
        device=name,
        online=known.online,
        seen_ns=known.seen_ns,
        changed_ns=known.changed_ns,
        mode=status.mode,
        model=status.model,
        labels=dict(status.labels),
        ferryman=status.ferryman,
        package=status.package_name,
        package_sha256=status.package_sha256,
        release=status.release,
        inferences=windowed.inferences if windowed else 0,
        errors=windowed.errors if windowed else 0,
        latency_p50_ms=windowed.latency_p50_ms if windowed else None,
        latency_p95_ms=windowed.latency_p95_ms if windowed else None,
        sample_ns=newest.time_ns if newest else None,
        temperature_c=values.get("temperature_c"),
        throttled=None if throttled is None else bool(throttled),
        memory_used_mb=values.get("memory_used_mb"),
        clock_sure=None,
        waiting=status.outbox_pending if waiting is None else round(waiting),
        dropped=status.outbox_dropped,
        storage=status.storage,
    )


def _clocks(store: Store, names: list[str]) -> dict[str, bool]:
    """Whether the clock was sure when the last record of the last run of numbers was made."""
    found: dict[str, bool] = {}
    for begin in range(0, len(names), IN_MAX):
        rows = store.read(last_clocks(names[begin : begin + IN_MAX]))
        found |= {str(device): clock == tables.SURE for device, clock in rows if clock is not None}
    return found


def last_clocks(names: list[str]) -> Select[Any]:
    """Device, and the clock of its last record."""
    sources, records = tables.sources, tables.records
    last = select(func.max(sources.c.id)).where(sources.c.device.in_(names)).group_by(sources.c.device)
    clock = (
        select(records.c.clock)
        .where(records.c.source == sources.c.id)
        .order_by(records.c.source.desc(), records.c.sequence.desc())
        .limit(1)
        .scalar_subquery()
    )
    return select(sources.c.device, clock).where(sources.c.id.in_(last))


def _windowed(
    store: Store, rows: list[DeviceRow], span: tuple[int, int], devices: Who, left_out: LeftOut
) -> list[DeviceRow]:
    """The rows with what the window tells of them."""
    sketches: dict[str, Any] = defaultdict(empty)
    totals: Counter[tuple[str, str]] = Counter()
    for part in parts(store, span, devices, left_out, sketched=("latency_ms",), summed=("inferences", "errors")):
        if part.sketch is None:
            totals[part.device, part.metric] += round(part.total)
        else:
            sketches[part.device].merge(part.sketch)
    made = []
    for row in rows:
        p50, p95 = (
            map(float, sketches[row.device].get_quantiles([0.5, 0.95], True))
            if row.device in sketches
            else (None, None)
        )
        counts = totals[row.device, "inferences"], totals[row.device, "errors"]
        made.append(
            msgspec.structs.replace(row, inferences=counts[0], errors=counts[1], latency_p50_ms=p50, latency_p95_ms=p95)
        )
    return made
