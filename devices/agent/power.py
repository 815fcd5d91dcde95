"""Mean power of the device, from a meter that is read all the time in a thread of its own."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from contextlib import suppress

from ferryman.profiler.joules import Stretch, window_of
from ferryman.profiler.samplers.base import Reading, Sampler
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import EnergyWindow
from ferryman.runtime.contracts.record import Unavailable

log = logging.getLogger(__name__)

DEVICE = "device"
"""Names whatever the device itself has."""
READ_S = 1.0
"""How often a meter is read, unless it renews its value less often."""
AGAIN_S = 60.0
"""After it failed, or was not there."""
_KEPT_MAX = 10_000
_FAILURES_MAX = 3


class PowerMeter:
    """Reads a meter until `stop`; `take` never waits for it."""

    def __init__(self, name: str) -> None:
        """Nothing is opened yet.

        Args:
            name: as `ferryman.profiler.meter` reads it, or DEVICE.

        Raises:
            CallerError: the name cannot be understood.
        """
        if name != DEVICE:
            from ferryman.profiler.meter import check_meter

            check_meter(name)
        self._name = name
        self._lock = threading.Lock()
        self._readings: deque[Reading] = deque(maxlen=_KEPT_MAX)
        self._source: Sampler | None = None
        self._reason = "the meter is being opened"
        self._since_ns = time.perf_counter_ns()

    def run(self, stop: threading.Event) -> None:
        """Read until `stop` is set; not raising."""
        while not stop.is_set():
            try:
                self._read(stop)
            except Exception as error:  # a meter of someone's own may raise anything
                log.debug("meter %s", self._name, exc_info=True)
                self._say(f"meter {self._name}: {type(error).__name__}: {error}")
            stop.wait(AGAIN_S)

    def take(self) -> EnergyWindow | Unavailable:
        """Energy since the last call."""
        now_ns = time.perf_counter_ns()
        with self._lock:
            begin_ns, self._since_ns = self._since_ns, now_ns
            source, reason, readings = self._source, self._reason, list(self._readings)
            self._readings.clear()
            if readings and source is not None and source.source.unit == "J":
                self._readings.append(readings[-1])  # a counter goes on from there
        if source is None:
            return Unavailable(reason=reason)
        try:
            return window_of(source.source, readings, Stretch(begin_ns, now_ns))
        except SensorError as error:
            return Unavailable(reason=f"{source.source.name}: {error}")

    def _read(self, stop: threading.Event) -> None:
        source = self._open()
        if isinstance(source, Unavailable):
            self._say(source.reason)
            return
        try:
            with self._lock:
                self._source = source
            failures = 0
            while failures < _FAILURES_MAX:
                try:
                    readings = list(source.read())
                except SensorError as error:
                    failures, reason = failures + 1, str(error)
                else:
                    failures = 0
                    with self._lock:
                        self._readings.extend(readings)
                # Unevenly, so as not to fall in step with what it measures.
                if stop.wait(max(READ_S, source.period_s) * random.uniform(0.5, 1.5)):  # noqa: S311  # no secret
                    return
            self._say(f"{source.source.name}: {reason}")
        finally:
            with suppress(Exception):
                source.close()

    def _open(self) -> Sampler | Unavailable:
        if self._name == DEVICE:
            from ferryman.profiler.energy import choose_source

            return choose_source()
        from ferryman.profiler.meter import open_meter

        return open_meter(self._name)

    def _say(self, reason: str) -> None:
        with self._lock:
            if reason != self._reason:
                log.warning("no power: %s", reason)
            self._source, self._reason = None, reason
            self._readings.clear()
