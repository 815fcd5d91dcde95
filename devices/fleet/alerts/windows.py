"""The last samples of every device, as one array, so that a rule looks at the whole fleet at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ferryman.runtime.contracts.telemetry import Sample

PERIODS = 32
"""Samples kept of a device."""
OLD_S = 3600.0
"""Older ones do not count."""
TIME, LATENCY, ENERGY, ANSWERED, FAILED, HELD_DOWN = range(6)
_METRICS = {
    LATENCY: "latency_ms",
    ENERGY: "energy_mj",
    ANSWERED: "inferences",
    FAILED: "errors",
    HELD_DOWN: "throttled",
}
_FIELDS = 6
Floats = NDArray[np.float64]


class Windows:
    """Rows of PERIODS samples; NaN where there is none, or it does not tell."""

    def __init__(self) -> None:
        self._all = np.full((0, PERIODS, _FIELDS), np.nan)
        self._next: list[int] = []

    def add_row(self) -> None:
        """For one more device."""
        self._next.append(0)
        if len(self._next) > len(self._all):
            more = np.full((max(64, len(self._all)), PERIODS, _FIELDS), np.nan)
            self._all = np.concatenate([self._all, more])

    def put(self, row: int, time_s: float, sample: Sample) -> None:
        """Add a sample; the oldest makes room."""
        found = [sample.values.get(name, np.nan) for name in _METRICS.values()]
        self._all[row, self._next[row]] = (time_s, *found)
        self._next[row] = (self._next[row] + 1) % PERIODS

    def clear(self, row: int) -> None:
        """Forget a device's samples: another package serves."""
        self._all[row] = np.nan

    def metric(self, field: int, now_s: float) -> Floats:
        """One field of all devices and periods, NaN where it is too old."""
        rows = self._all[: len(self._next)]
        fresh: Floats = np.where(rows[:, :, TIME] > now_s - OLD_S, rows[:, :, field], np.nan)
        return fresh

    def served(self, field: int, now_s: float) -> Floats:
        """The same, of periods with inferences only."""
        found: Floats = np.where(self.metric(ANSWERED, now_s) > 0, self.metric(field, now_s), np.nan)
        return found
