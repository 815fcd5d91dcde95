"""When a device serves a smaller variant than the one that was picked: while it is hot, or its battery is low.

A step down is taken at once and a further one where that does not help; a step back only after a calm time, and at
other values than those that led down. Nothing is fetched: the variants are in the slot, nested ones in one file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ferryman.devices.agent.ready import BATTERY_MIN, Readings
from ferryman.runtime.contracts.manifest import Variant
from ferryman.runtime.contracts.record import Record, Unavailable
from ferryman.runtime.contracts.slot import Measured
from ferryman.runtime.golden import usable_interpreters

_LESS = 0.9
"""A variant is smaller where a call takes less than this share of the time, or where that is not known, of the work."""


class StepLimits(Record):
    """When to step down, and when to come back."""

    hot_c: float = 80.0
    """The hottest zone; boards hold their clocks down at about 80 to 85 degrees."""
    cool_c: float = 70.0
    battery_low: float = BATTERY_MIN
    """Share of a full charge, while the battery discharges."""
    battery_fine: float = 0.3
    again_s: float = 30.0
    """After a step, the device has so long to show that it helped."""
    calm_s: float = 120.0
    """It must be calm for so long before a step back."""


class Rung(NamedTuple):
    """What may answer."""

    variant: Variant
    interpreter: str


class StepDown:
    """How many rungs below the picked variant to serve; used by one thread, read by any."""

    def __init__(self, limits: StepLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits or StepLimits(), clock
        self.level = 0
        self.reason = ""
        """Why, in words; empty at level 0."""
        self._stepped: float | None = None
        self._calm_since: float | None = None

    def update(self, now: Readings, deepest: int) -> bool:
        """Take readings in; whether the level changed.

        Args:
            now: the readings.
            deepest: how many smaller variants there are.
        """
        at, before = self._clock(), self.level
        self.level = min(self.level, deepest)
        trouble = self._trouble(now)
        if trouble or not self._is_calm(now):
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = at
        if trouble and self.level < deepest and self._waited(self._stepped, at, self._limits.again_s):
            self.level, self._stepped = self.level + 1, at
        elif self.level and self._calm_since is not None and self._waited(self._calm_since, at, self._limits.calm_s):
            self.level, self._calm_since = self.level - 1, at
        self.reason = (trouble or self.reason) if self.level else ""
        return self.level != before

    @staticmethod
    def _waited(since: float | None, at: float, least_s: float) -> bool:
        return since is None or at - since >= least_s

    def _trouble(self, now: Readings) -> str:
        if not isinstance(now.throttled, Unavailable) and now.throttled:
            return f"the clock is held down ({', '.join(now.throttled)})"
        if not isinstance(now.hottest_c, Unavailable) and now.hottest_c >= self._limits.hot_c:
            return f"it is hot ({now.hottest_c:.0f} degrees)"
        if _discharges(now) and isinstance(now.battery, float) and now.battery < self._limits.battery_low:
            return f"the battery is low ({now.battery:.0%})"
        return ""

    def _is_calm(self, now: Readings) -> bool:
        cool = isinstance(now.hottest_c, Unavailable) or now.hottest_c < self._limits.cool_c
        charged = not _discharges(now) or isinstance(now.battery, Unavailable)
        return cool and (charged or float(now.battery) >= self._limits.battery_fine)  # type: ignore[arg-type]


def _discharges(now: Readings) -> bool:
    return now.power != "mains"


def ladder(variants: Sequence[Variant], measured: Sequence[Measured], top: Rung) -> tuple[Rung, ...]:
    """Smaller variants than `top`, the next smaller first, as the golden vectors showed them to be on this device.

    Where `top` is one of several nested networks, only those of the same kind count: they share its weights, and its
    process. Each runs on the interpreter of `top` where it can.
    """
    nested = [one for one in variants if one.share is not None and one.payload == top.variant.payload]
    among = nested if top.variant.share is not None and len(nested) > 1 else variants
    known = {(one.variant, one.interpreter): one.latency_ns for one in measured}
    rungs = []
    for variant in among:
        usable = usable_interpreters(variant)
        if variant.name == top.variant.name or not usable:
            continue
        interpreter = top.interpreter if top.interpreter in usable else next(iter(usable))
        rungs.append((_cost(known, Rung(variant, interpreter), top), Rung(variant, interpreter)))
    smaller = sorted((one for one in rungs if one[0] < _LESS), key=lambda one: -one[0])
    return tuple(rung for _, rung in smaller)


def _cost(known: dict[tuple[str, str], int | None], rung: Rung, top: Rung) -> float:
    """Of a call, over that of `top`: of what was measured, or of nested networks the work; 1 where neither is known."""
    mine, its = (known.get((one.variant.name, one.interpreter)) for one in (rung, top))
    if mine and its:
        return mine / its
    if rung.variant.share is not None and top.variant.share:
        return rung.variant.share / top.variant.share
    return 1.0
