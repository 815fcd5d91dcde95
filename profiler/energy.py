"""Joules over a window: a source read in the background, integrated at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ferryman.profiler.samplers import hwmon_ina, pi_pmic, power_supply, rapl
from ferryman.profiler.samplers.base import Sampler
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import Energy
from ferryman.runtime.contracts.record import Unavailable

# The wider its view of the device, the earlier; a battery comes last, for its numbers are the coarsest.
SOURCES: tuple[Callable[[Path], Sampler | Unavailable], ...] = (
    hwmon_ina.open_source,
    pi_pmic.open_source,
    rapl.open_source,
    power_supply.open_source,
)
WINDOW_MIN_S = 1.0
"""Below it, the sources' own rates (1 ms to 0.1 s per reading) are no longer small against the window."""
_READINGS_MIN = 2


def choose_source(root: Path = Path("/")) -> Sampler | Unavailable:
    """The first of SOURCES this device has, or each one's reason why not."""
    reasons = []
    for open_source in SOURCES:
        source = open_source(root)
        if not isinstance(source, Unavailable):
            return source
        reasons.append(source.reason)
    return Unavailable(reason="; ".join(reasons))


def integrate_j(unit: Literal["W", "J"], times_ns: Sequence[int], values: Sequence[float]) -> float:
    """Joules from powers (trapezoid rule) or from a counter (last less first)."""
    if unit == "J":
        return values[-1] - values[0]
    powers_w, seconds = np.asarray(values, np.float64), np.asarray(times_ns, np.float64) / 1e9
    return float(np.sum((powers_w[1:] + powers_w[:-1]) / 2 * np.diff(seconds)))


class Meter:
    """Reads a source from `start` to `stop`, in a thread of its own."""

    def __init__(self, source: Sampler | Unavailable) -> None:
        self._source = source
        self._readings: list[tuple[int, float]] = []
        self._failure: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="energy", daemon=True)

    def start(self) -> None:
        """Take the first reading and go on taking them."""
        self._take()
        if not isinstance(self._source, Unavailable):
            self._thread.start()

    def stop(self, runs: int) -> Energy | Unavailable:
        """Take the last reading and add up.

        Args:
            runs: inferences since `start`.
        """
        source = self._source
        if isinstance(source, Unavailable):
            return source
        self._stop.set()
        self._thread.join()
        self._take()
        if self._failure is not None:
            return Unavailable(reason=f"{source.source} failed during the window: {self._failure}")
        times_ns = tuple(t - self._readings[0][0] for t, _ in self._readings)
        values = tuple(value for _, value in self._readings)
        window_s = times_ns[-1] / 1e9
        if window_s < WINDOW_MIN_S or len(values) < _READINGS_MIN:
            return Unavailable(
                reason=f"too short: {len(values)} readings of {source.source} in {window_s:.3g} s, "
                f"expected at least {WINDOW_MIN_S:g} s; ask for more runs"
            )
        return Energy(
            energy_j=integrate_j(source.unit, times_ns, values),
            window_s=window_s,
            runs=runs,
            source=source.source,
            rails=source.rails,
            unit=source.unit,
            times_ns=times_ns,
            values=values,
        )

    def _watch(self) -> None:
        assert not isinstance(self._source, Unavailable)  # noqa: S101  # `start` made sure
        while not self._stop.wait(self._source.period_s) and self._failure is None:
            self._take()

    def _take(self) -> None:
        if isinstance(self._source, Unavailable) or self._failure is not None:
            return
        before_ns = time.perf_counter_ns()
        try:
            value = self._source.read()
        except SensorError as error:
            self._failure = str(error)
            return
        # A reading may take tens of milliseconds; its middle is the best guess at when it was true.
        self._readings.append(((before_ns + time.perf_counter_ns()) // 2, value))


def measure_energy(source: Sampler | Unavailable, run: Callable[[], object]) -> Energy | Unavailable:
    """Energy of runs."""
    return source if isinstance(source, Unavailable) else Unavailable(reason=f"{source.source}: not measured")
