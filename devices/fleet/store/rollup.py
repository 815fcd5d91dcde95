"""Hours and days of samples as summaries: each sample counts exactly once, however late it comes.

An hour is made of its samples, a day of its hours. What changes is made anew from them; where they were deleted by
retention (`sealed`), what comes late is merged in and deleted in the same transaction.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection, RowMapping, delete, insert, select

from ferryman.devices.fleet.store import spans
from ferryman.devices.fleet.store.bulk import Span, mark_dirty
from ferryman.devices.fleet.store.engine import RefusedError
from ferryman.devices.fleet.store.sketches import Summary, merge, summarise
from ferryman.devices.fleet.store.store import Store
from ferryman.devices.fleet.store.tables import DAY_S, HOUR_S, rollups
from ferryman.runtime.contracts.telemetry import Sample

log = logging.getLogger(__name__)
_SLICE_MAX = 32
_SLICE_S = 0.05
"""A transaction takes so many, and fewer where that takes longer: those who insert wait meanwhile, on SQLite for all of
it, on PostgreSQL for the hours in it."""
_PAUSE_S = 0.005
_Key = tuple[str, str]
_Place = tuple[int, str]
_FIRST = (-1, "")
_decoder = msgspec.json.Decoder(Sample)


def roll_up(store: Store, now_ns: int) -> int:
    """Bring the rollups of all hours that have ended, and of their days, up to date; how many were made.

    Safe with several processes at once, and killed at any moment: what was not committed is done next time.

    Raises:
        StoreError: as for `Store.write`; call it again.
    """
    return sum(_all(store, span_s, now_ns // 10**9) for span_s in (HOUR_S, DAY_S))


def _all(store: Store, span_s: int, now_s: int) -> int:
    done, limit, after = 0, 1, _FIRST
    while True:
        began = time.monotonic()
        try:
            taken = store.write(partial(_some, span_s=span_s, now_s=now_s, limit=limit, after=after))
        except RefusedError as error:
            if limit > 1:  # the others go on: one at a time up to it
                limit = 1
                continue
            if (span := store.write(partial(_skip, span_s=span_s, now_s=now_s, after=after))) is None:
                continue
            after = (span[2], span[0])
            if span not in store.not_rolled_up:
                log.error("the samples of device %s in the %d s from %d cannot be rolled up: %s", *span, error)  # noqa: TRY400  # said in full
            store.not_rolled_up.add(span)
            continue
        if not taken:
            return done
        done += len(taken)
        after = max((start_s, device) for device, _, start_s in taken)
        limit = max(1, min(_SLICE_MAX, 2 * limit, int(limit * _SLICE_S / (time.monotonic() - began))))
        time.sleep(_PAUSE_S)  # those who insert come in between


def _skip(connection: Connection, span_s: int, now_s: int, after: _Place) -> Span | None:
    """Leave the next as it is; it is tried again the next time, and retention does not delete it."""
    for span in spans.take_dirty(connection, span_s, now_s, 1, after):
        mark_dirty(connection, [span])
        return span
    return None


def _some(connection: Connection, span_s: int, now_s: int, limit: int, after: _Place) -> list[Span]:
    taken = spans.take_dirty(connection, span_s, now_s, limit, after)
    for span in taken:
        (_hour if span_s == HOUR_S else _day)(connection, span)
    if span_s == HOUR_S:
        mark_dirty(connection, ((device, DAY_S, start_s // DAY_S * DAY_S) for device, _, start_s in taken))
    return taken


def _hour(connection: Connection, span: Span) -> None:
    rows = spans.samples(connection, span)
    kept = _kept(connection, span)
    sealed = any(row["sealed"] for row in kept)
    found = summarise(_read(rows))
    _replace(connection, span, _merged(kept, found) if sealed else found, sealed=sealed)
    if sealed:
        spans.delete_samples(connection, span)


def _day(connection: Connection, span: Span) -> None:
    device, _, start_s = span
    kept = _kept(connection, span)
    sealed = any(row["sealed"] for row in kept)
    hours = _kept(connection, (device, HOUR_S, start_s), start_s + DAY_S)
    held: list[Span] = []
    if sealed:
        # They are merged and deleted with their samples; one that has news waits until they are in it.
        held = [
            one for one in sorted({(device, HOUR_S, row["start_s"]) for row in hours}) if spans.hold(connection, one)
        ]
        hours = [row for row in hours if (device, HOUR_S, row["start_s"]) in held]
    parts: dict[_Key, list[Summary]] = defaultdict(list)
    for row in hours:
        parts[row["metric"], row["package"]].append(summary(row))
    found = {key: one for key, several in parts.items() if (one := merge(several)) is not None}
    _replace(connection, span, _merged(kept, found) if sealed else found, sealed=sealed)
    for hour in held:
        spans.delete_samples(connection, hour)
        _replace(connection, hour, {}, sealed=False)
    spans.release(connection, held)


def summary(row: RowMapping) -> Summary:
    """Of a row of the table."""
    return Summary(row["count"], row["total"], row["least"], row["most"], row["sketch"])


def _kept(connection: Connection, span: Span, until_s: int | None = None) -> list[RowMapping]:
    device, span_s, start_s = span
    start = rollups.c.start_s
    query = select(rollups).where(rollups.c.device == device, rollups.c.span_s == span_s)
    query = query.where(start == start_s if until_s is None else start.between(start_s, until_s - 1))
    return list(connection.execute(query).mappings())


def _merged(kept: list[RowMapping], found: dict[_Key, Summary]) -> dict[_Key, Summary]:
    merged = dict(found)
    for row in kept:
        key = (row["metric"], row["package"])
        one = merge([summary(row), *([found[key]] if key in found else [])])
        if one is not None:
            merged[key] = one
    return merged


def _replace(connection: Connection, span: Span, found: dict[_Key, Summary], *, sealed: bool) -> None:
    device, span_s, start_s = span
    where = (rollups.c.device == device, rollups.c.span_s == span_s, rollups.c.start_s == start_s)
    connection.execute(delete(rollups).where(*where))
    fixed = {"device": device, "span_s": span_s, "start_s": start_s, "sealed": int(sealed)}
    rows: list[dict[str, Any]] = [
        {**fixed, "metric": metric, "package": package, **vars(one)} for (metric, package), one in found.items()
    ]
    if rows:
        connection.execute(insert(rollups), rows)


def _read(rows: list[tuple[int, int, str]]) -> list[Sample]:
    found = []
    for source, sequence, body in rows:
        try:
            found.append(_decoder.decode(body))
        except ValueError as error:
            log.warning(
                "the sample of source %d, sequence %d is no sample and in no rollup: %s", source, sequence, error
            )
    return found
