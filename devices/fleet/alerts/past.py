"""What inferences of a device took in the past: medians over the hours and days of `rollups`, by their sketches.

The past of a package is its own on that device (and so of one kind of device), over PAST_S, the current hour and the
one before left out. A package that has served there for less than NEW_S is compared with the one before it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from sqlalchemy import select

from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.drift import read_sketch

log = logging.getLogger(__name__)

HOUR_S, DAY_S = 3600, 86_400
PAST_S = 7 * DAY_S
NEW_S = DAY_S
KEPT_S = 6 * HOUR_S
"""So long a past that was read is good."""
AT_ONCE = 25
"""Devices whose past is read in one go."""
METRICS = ("latency_ms", "energy_mj")


class Past(NamedTuple):
    """Of one metric of one device."""

    median: float
    values: int
    before: str | None
    """The package that was, where the present one is new; None: it is of the present one."""


class Rolled(NamedTuple):
    """One row of `rollups`."""

    package: str
    span_s: int
    start_s: int
    sketch: bytes


class Pasts:
    """Of every device (by row), read a few at a time."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, str], Past | None] = {}
        self._read: dict[int, tuple[str | None, float]] = {}

    def of(self, row: int, metric: str) -> Past | None:
        """What is known; None: nothing."""
        return self._found.get((row, metric))

    def refresh(self, store: Store, wanted: Mapping[int, tuple[str, str | None]], now_s: float) -> None:
        """Read the past of some devices that lack it: row -> name and package.

        Raises:
            StoreError: the store cannot be read.
        """
        due = []
        for row, (name, package) in wanted.items():
            known = self._read.get(row)
            if known is None or known[0] != package or now_s - known[1] > KEPT_S:
                due.append((row, name, package))
        due = due[:AT_ONCE]
        if not due:
            return
        rows = _read(store, [name for _, name, _ in due], now_s)
        for row, name, package in due:
            self._read[row] = (package, now_s)
            for metric in METRICS:
                self._found[row, metric] = past(rows.get((name, metric), ()), package or "", now_s)


def past(rows: Sequence[Rolled], package: str, now_s: float) -> Past | None:
    """The past that `package` is to be compared with; None: there is none."""
    by_package: dict[str, list[Rolled]] = defaultdict(list)
    for one in rows:
        by_package[one.package].append(one)
    own = by_package.pop(package, [])
    since_s = min((one.start_s for one in own), default=now_s)
    if by_package and now_s - since_s < NEW_S:
        older = {name: max(one.start_s for one in found) for name, found in by_package.items()}
        before = max(older, key=lambda name: older[name])
        found = _median(by_package[before])
        return None if found is None else Past(*found, before)
    found = _median([one for one in own if one.start_s < (now_s // HOUR_S - 1) * HOUR_S])
    return None if found is None else Past(*found, None)


def _median(rows: Iterable[Rolled]) -> tuple[float, int] | None:
    rows = list(rows)
    days = {one.start_s for one in rows if one.span_s == DAY_S}
    chosen = [one for one in rows if one.span_s == DAY_S or one.start_s // DAY_S * DAY_S not in days]
    held = []
    for one in chosen:
        try:
            values, weights = read_sketch(one.sketch)
        except ValueError as error:
            log.warning("alerts: a rollup is left out: %s", error)
            continue
        held.append((values, weights))
    if not sum(len(values) for values, _ in held):
        return None
    values = np.concatenate([values for values, _ in held])
    weights = np.concatenate([weights for _, weights in held])
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    at = np.searchsorted(reached, reached[-1] / 2)
    return float(values[order][at]), int(reached[-1])


def _read(store: Store, devices: Sequence[str], now_s: float) -> dict[tuple[str, str], list[Rolled]]:
    kept = tables.rollups.c
    query = select(kept.device, kept.metric, kept.package, kept.span_s, kept.start_s, kept.sketch).where(
        kept.device.in_(devices),
        kept.span_s.in_((HOUR_S, DAY_S)),
        kept.metric.in_(METRICS),
        kept.start_s >= int(now_s - PAST_S),
    )
    found: dict[tuple[str, str], list[Rolled]] = defaultdict(list)
    for device, metric, *rest in map(tuple, store.read(query)):
        found[device, metric].append(Rolled(*rest))
    return found
