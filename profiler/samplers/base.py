"""What a source of energy readings is, and what several of them need."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import EnergySource

Reading = tuple[int, float]
"""When, by time.perf_counter_ns(), and the value in the source's unit."""


class Sampler(Protocol):
    """One source, opened and read once with success."""

    period_s: float
    """How often it is worth reading."""
    settle_s: float
    """How long after a change of load its readings may still tell of the one before; 0 of one that answers at once."""

    @property
    def source(self) -> EnergySource:
        """Provenance; asked once more after the last reading, when more may be known of it."""

    def read(self) -> Sequence[Reading]:
        """Take a reading, or hand over those that came by themselves since the last call.

        Raises:
            SensorError: it cannot be read, or makes no sense. It is asked again, and given up after three times.
        """

    def close(self) -> None:
        """Let go of the device; not raising."""


def stamped(take: Callable[[], float]) -> tuple[Reading]:
    """One reading with its time: the middle of the call is the best guess at when it was true."""
    before_ns = time.perf_counter_ns()
    value = take()
    return (((before_ns + time.perf_counter_ns()) // 2, value),)


class Unwrapped:
    """Makes a counter that starts over at `span` one that goes on, from 0 when it was made."""

    def __init__(self, name: str, span: int, first: int) -> None:
        self._name, self._span, self._last, self.total = name, span, first, 0
        self._check(first)

    def add(self, now: int) -> int:
        """The total after a reading; take one at least twice in a span.

        Raises:
            SensorError: the counter is out of its span, or fell other than by starting over.
        """
        self._check(now)
        step = (now - self._last) % self._span
        # A counter that falls a little would seem to have gone nearly once around.
        if step > self._span // 2:
            raise SensorError(f"{self._name}: {now} does not follow {self._last} in a range of {self._span}")
        self._last = now
        self.total += step
        return self.total

    def _check(self, now: int) -> None:
        if not 0 <= now <= self._span:
            raise SensorError(f"{self._name}: {now} is outside its range of {self._span}")


class Inbox:
    """Readings that come by themselves, in another thread, until someone asks for them."""

    KEPT_MAX = 100_000

    def __init__(self, name: str, silence_s: float) -> None:
        self._name, self._silence_s = name, silence_s
        self._readings: deque[Reading] = deque(maxlen=self.KEPT_MAX)
        self._arrived = threading.Event()
        self._failure: str | None = None
        self._heard_ns = time.perf_counter_ns()

    def put(self, value: float) -> None:
        """A reading is here, now."""
        self._heard_ns = time.perf_counter_ns()
        self._readings.append((self._heard_ns, value))
        self._failure = None
        self._arrived.set()

    def fail(self, reason: str) -> None:
        """None can come, until the next one does; of several reasons the first stands."""
        self._failure = self._failure or reason
        self._arrived.set()

    def wait(self, timeout_s: float) -> None:
        """For the first one.

        Raises:
            SensorError: none came, or none can.
        """
        if not self._arrived.wait(timeout_s):
            raise SensorError(f"{self._name}: no reading within {timeout_s:g} s")
        self.take()

    def take(self) -> list[Reading]:
        """Those that came since the last call; there may be none.

        Raises:
            SensorError: none can come, or none came for too long.
        """
        found = []
        while self._readings:
            found.append(self._readings.popleft())
        if not found and self._failure is not None:
            raise SensorError(f"{self._name}: {self._failure}")
        silent_s = (time.perf_counter_ns() - self._heard_ns) / 1e9
        if not found and silent_s > self._silence_s:
            raise SensorError(f"{self._name}: no reading for {silent_s:.3g} s")
        return found
