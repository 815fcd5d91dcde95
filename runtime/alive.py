"""Threads that show that they go on: each says so now and then, and who supervises the process asks which have not.

Waiting is progress as long as it is bounded: what waits for a worker process says so again and again. A thread that is
caught in a call that does not return, or for a lock that nobody gives back, says nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class _Pulse:
    def __init__(self, name: str, within_s: float | None) -> None:
        self.name, self.within_s = name, within_s
        self.last = time.monotonic()
        self.died = False


_pulses: list[_Pulse] = []
_here = threading.local()


@contextmanager
def watched(name: str, within_s: float | None) -> Iterator[None]:
    """Watch this thread within the block; one that leaves it by an exception has died, and stays known as dead.

    Args:
        name: of the thread, in words.
        within_s: how long it may be without `beat`; None: for ever, and only its death is noticed.
    """
    pulse, before = _Pulse(name, within_s), getattr(_here, "pulse", None)
    _pulses.append(pulse)
    _here.pulse = pulse
    try:
        yield
    except Exception:
        pulse.died = True
        raise
    finally:
        _here.pulse = before
        if not pulse.died:
            _pulses.remove(pulse)


def beat() -> None:
    """Show that this thread goes on; does nothing in one that nobody watches."""
    if (pulse := getattr(_here, "pulse", None)) is not None:
        pulse.last = time.monotonic()


def silent() -> list[str]:
    """What is wrong with threads that do not go on, in words; empty: nothing."""
    now, found = time.monotonic(), []
    for pulse in _pulses.copy():
        if pulse.died:
            found.append(f"{pulse.name} has died")
        elif pulse.within_s is not None and now - pulse.last > pulse.within_s:
            found.append(f"{pulse.name} has not gone on for {now - pulse.last:.0f} s (bound {pulse.within_s:g} s)")
    return found
