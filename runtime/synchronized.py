"""Whether something keeps the device's wall clock right, as the kernel tells; asking takes no rights."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from ferryman.runtime.contracts.record import Unavailable

_STA_UNSYNC = 0x40  # linux/timex.h
_TIMESYNCD = Path("/run/systemd/timesync/synchronized")
"""Made by systemd-timesyncd when it has set the clock in this boot."""


class _Timex(ctypes.Structure):
    """The beginning of `struct timex` (adjtimex(2)), and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def clock_synchronized() -> bool | Unavailable:
    """Whether the wall clock is kept synchronized, by NTP, PTP or another.

    A container has its host's clock, and so its answer. A sandbox may forbid the question (systemd's `ProtectClock=`
    does): then what systemd-timesyncd has noted counts, and without a note nobody knows.
    """
    timex = _Timex()  # modes 0: only read
    try:
        if _libc.adjtimex(ctypes.byref(timex)) >= 0:
            return not timex.status & _STA_UNSYNC
        problem = f"the kernel does not say (adjtimex: {os.strerror(ctypes.get_errno())})"
    except AttributeError:
        problem = "the C library has no adjtimex"
    if _TIMESYNCD.exists():
        return True
    return Unavailable(reason=f"{problem}, and systemd-timesyncd has left no note at {_TIMESYNCD}")
