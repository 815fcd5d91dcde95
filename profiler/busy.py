"""How much of the processors others take while something is measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ferryman.profiler.sysfs import SensorError, read_text
from ferryman.runtime.contracts.record import Unavailable

_IDLE_FIELDS = (3, 4)
"""idle and iowait, of the numbers in /proc/stat's first line (kernel documentation, filesystems/proc)."""
_FIELDS = 8
"""Up to steal; guest times that follow are in user time already."""


class Busy:
    """From when it is made: the share of all processors' time that went to others than this process."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._begin = self._read()

    def share(self) -> float | Unavailable:
        """0: this process had the device to itself, 1: it had nothing."""
        now = self._read()
        if isinstance(self._begin, Unavailable):
            return self._begin
        if isinstance(now, Unavailable):
            return now
        total_s, busy_s, own_s = (after - before for before, after in zip(self._begin, now, strict=True))
        if total_s <= 0:
            return Unavailable(reason="too short for the kernel's ticks")
        return min(max((busy_s - own_s) / total_s, 0.0), 1.0)

    def _read(self) -> tuple[float, float, float] | Unavailable:
        try:
            words = read_text(self._root / "proc/stat").split("\n", 1)[0].split()
        except SensorError as error:
            return Unavailable(reason=str(error))
        if words[0] != "cpu" or len(words) <= max(_IDLE_FIELDS) + 1 or not all(word.isdigit() for word in words[1:]):
            return Unavailable(reason=f"{self._root / 'proc/stat'}: expected processor times, found {words[:4]}")
        ticks = [int(word) for word in words[1 : _FIELDS + 1]]
        second = os.sysconf("SC_CLK_TCK")
        idle = sum(ticks[field] for field in _IDLE_FIELDS)
        return sum(ticks) / second, (sum(ticks) - idle) / second, time.process_time()
