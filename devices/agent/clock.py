"""What time it is on the device, and whether to believe it.

A device without a battery-backed clock begins with a wrong time, and is set right once there is a network. So every
record carries CLOCK_BOOTTIME too, which only runs; a `ClockFix` tells what to add to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ferryman.runtime.contracts.telemetry import ClockFix
from ferryman.runtime.synchronized import clock_synchronized

NEVER_SET_NS = 1_750_000_000 * 10**9
"""A wall clock before this (June 2025) was never set, whatever the kernel says of it."""
STEP_NS = 10**9
"""By how much a clock must jump to be set right by another `ClockFix`; slewing moves both clocks alike."""
_TOGETHER_NS = 5_000_000
_TRIES = 5
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Reading(NamedTuple):
    """Both clocks at one moment."""

    time_ns: int
    """The wall clock, Unix epoch."""
    uptime_ns: int
    """CLOCK_BOOTTIME: since the kernel's boot, sleep included."""
    sure: bool
    """Whether something keeps the wall clock synchronised."""


Clock = Callable[[], Reading]


def read_clock() -> Reading:
    """Ask the kernel."""
    for _ in range(_TRIES):  # a process that is put to sleep between the two readings would see a jump
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        time_ns = time.time_ns()
        uptime_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if uptime_ns - before < _TOGETHER_NS:
            break
    return Reading(max(0, time_ns), uptime_ns, time_ns >= NEVER_SET_NS and clock_synchronized() is True)


def kernel_boot() -> str:
    """Name this run of the kernel."""
    return _BOOT_ID.read_text().strip()


def fix_for(reading: Reading, boot: str, known: ClockFix | None) -> ClockFix | None:
    """What to put on record of the clock: once for each boot in which it is sure, and again when it was stepped.

    Args:
        reading: of now.
        boot: the kernel's.
        known: what was put on record last.
    """
    offset_ns = reading.time_ns - reading.uptime_ns
    if not reading.sure or offset_ns < 0:
        return None
    if known is not None and known.kernel_boot == boot and abs(known.offset_ns - offset_ns) <= STEP_NS:
        return None
    return ClockFix(kernel_boot=boot, offset_ns=offset_ns)
