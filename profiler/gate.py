"""Wait for a device to cool down, so that no case begins in the heat of the one before."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ferryman.profiler.conditions import temperatures_c
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.measurement import Gate, Reading
from ferryman.runtime.contracts.record import Unavailable

WAIT_MAX_S = 600.0
_POLL_S = 1.0


def wait_until_cool(
    below_c: float,
    root: Path = Path("/"),
    *,
    hottest: Callable[[], Reading | Unavailable] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Gate:
    """Return once the hottest zone is below `below_c`, or after ten minutes; at once where no zone can be read.

    Args:
        below_c: degrees.
        root: of the file system with the zones.
        hottest: asked in place of that, for a device that is elsewhere.
        sleep: a seam for tests.
        clock: another.
    """
    begin = clock()
    while True:
        now = hottest() if hottest else _hottest(root)
        opened = isinstance(now, Reading) and now.value < below_c
        waited_s = clock() - begin
        if opened or isinstance(now, Unavailable) or waited_s >= WAIT_MAX_S:
            return Gate(below_c=below_c, waited_s=waited_s, temperature_c=now, opened=opened)
        sleep(_POLL_S)


def _hottest(root: Path) -> Reading | Unavailable:
    try:
        return max(temperatures_c(root), key=lambda reading: reading.value)
    except SensorError as error:
        return Unavailable(reason=str(error))
