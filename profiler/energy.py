"""Joules of an inference: an idle window, then one of runs, a source read beside them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ferryman.profiler.joules import READINGS_MIN, Stretch, energy_of, window_of
from ferryman.profiler.meter import open_meter
from ferryman.profiler.samplers import hwmon_ina, odpm, pi_pmic, power_supply, rapl
from ferryman.profiler.samplers.base import Reading, Sampler
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import Energy, EnergyWindow
from ferryman.runtime.contracts.record import Unavailable

# The wider its view of the device, the earlier; a battery comes last, for its numbers are the coarsest.
SOURCES: tuple[Callable[[Path], Sampler | Unavailable], ...] = (
    hwmon_ina.open_source,
    pi_pmic.open_source,
    odpm.open_source,
    rapl.open_source,
    power_supply.open_source,
)
WINDOW_MIN_S = 10.0
"""Below it, sources that renew their value once a second tell next to nothing."""
_MARK_NS = 10_000_000
_FAILURES_MAX = 3
_MARGIN = 1.01
"""A window lasts a little longer than asked for, so that a clock's rounding does not make it too short."""
Wait = Callable[[threading.Event, float], bool]


def choose_source(root: Path = Path("/"), meter: str | None = None) -> Sampler | Unavailable:
    """The meter that is named, or the first of SOURCES this device has, or each one's reason why not.

    Raises:
        CallerError: the meter's name cannot be understood.
    """
    if meter is not None:
        return open_meter(meter)
    reasons = []
    for open_source in SOURCES:
        source = open_source(root)
        if not isinstance(source, Unavailable):
            return source
        reasons.append(source.reason)
    return Unavailable(reason="; ".join(reasons))


def measure_energy(
    source: Sampler | Unavailable,
    run: Callable[[], object],
    *,
    idle_s: float = 10.0,
    window_s: float = 10.0,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    wait: Wait = threading.Event.wait,
) -> Energy | Unavailable:
    """Read a source while the process sleeps, then while it runs without a pause.

    A window lasts longer where the source is slow to give ten readings. Whoever reads sits in a thread that wakes at
    uneven intervals, so that it does not fall in step with the runs; it does the same in both windows, so what it costs
    is in `gross_j`, and not in `net_j`.

    Args:
        source: closed afterwards.
        run: one inference; what it raises is raised here.
        idle_s: of the idle window; 0 for none.
        window_s: of the runs.
        clock_ns: the clock of the source's readings.
        wait: for an event or so many seconds, as threading.Event.wait does.
    """
    if isinstance(source, Unavailable):
        return source
    reader = _Reader(source, clock_ns, wait)
    try:
        if window_s < WINDOW_MIN_S or 0 < idle_s < WINDOW_MIN_S:
            shorter_s = min(window_s, idle_s or window_s)
            return Unavailable(
                reason=f"too short: {shorter_s:g} s, expected at least {WINDOW_MIN_S:g} s of each window"
            )
        idle: EnergyWindow | Unavailable = Unavailable(reason="not asked for")
        if idle_s > 0:
            idle = _idle(reader, idle_s)
        active = _active(reader, run, window_s)
        return energy_of(source.source, active, idle)
    except SensorError as error:
        return Unavailable(reason=f"{source.source.name}: {error}")
    finally:
        reader.end()
        source.close()


def _idle(reader: _Reader, idle_s: float) -> EnergyWindow:
    reader.start()
    reader.sleep(reader.settle_ns)
    begin_ns = reader.clock_ns()
    reader.sleep(reader.length_ns(idle_s))
    return reader.stop(Stretch(begin_ns, reader.clock_ns()))


def _active(reader: _Reader, run: Callable[[], object], window_s: float) -> EnergyWindow:
    reader.start()
    now_ns = reader.clock_ns()
    if reader.settle_ns:
        *_, (now_ns, _) = _runs(reader, run, now_ns, reader.settle_ns)
    marks = _runs(reader, run, now_ns, reader.length_ns(window_s))
    return reader.stop(Stretch(now_ns, marks[-1][0], tuple(marks)))


def _runs(reader: _Reader, run: Callable[[], object], begin_ns: int, length_ns: int) -> list[tuple[int, int]]:
    """Run for so long; (time, runs done by then) now and then, at the begin and at the end."""
    clock_ns, until_ns = reader.clock_ns, begin_ns + length_ns
    now_ns = mark_ns = begin_ns
    done, marks = 0, [(begin_ns, 0)]
    while now_ns < until_ns and not reader.failed:
        run()
        done += 1
        now_ns = clock_ns()
        if now_ns >= mark_ns + _MARK_NS:
            marks.append((now_ns, done))
            mark_ns = now_ns
    if now_ns > mark_ns:
        marks.append((now_ns, done))
    return marks


class _Reader:
    """Reads a source between `start` and `stop`, in a thread of its own; may be started again."""

    def __init__(self, source: Sampler, clock_ns: Callable[[], int], wait: Wait) -> None:
        self.source, self.clock_ns, self._wait = source, clock_ns, wait
        self._uneven = random.Random(1)  # noqa: S311  # spreads readings, guards nothing
        self._stop, self._given_up = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def failed(self) -> bool:
        """Whether the source was given up."""
        return self._given_up.is_set()

    @property
    def settle_ns(self) -> int:
        """How long to wait after a change of load."""
        source = self.source.source
        # A power that was renewed before the load changed still tells of the one before; a counter loses nothing.
        stale_s = source.renewed_s if source.unit == "W" and not isinstance(source.renewed_s, Unavailable) else 0.0
        return round(1e9 * max(self.source.settle_s, stale_s))

    def length_ns(self, seconds: float) -> int:
        """Of a window with enough readings in it; a counter's lies between two of them, which may be uneven."""
        period_s = self.source.period_s
        edges_s = 3 * period_s if self.source.source.unit == "J" else 0.0
        return round(1e9 * (_MARGIN * max(seconds, (READINGS_MIN + 2) * period_s) + edges_s))

    def start(self) -> None:
        """Take the first reading and go on taking them.

        Raises:
            SensorError: the first one cannot be taken.
        """
        self._readings: list[Reading] = []
        self._failures = self._in_a_row = 0
        self._reason = ""
        self._stop, self._given_up = threading.Event(), threading.Event()
        while not self._take():
            if self._in_a_row >= _FAILURES_MAX:
                raise SensorError(self._reason)
        self._thread = threading.Thread(target=self._watch, name="energy", daemon=True)
        self._thread.start()

    def sleep(self, length_ns: int) -> None:
        """Unless the source is given up before."""
        self._wait(self._given_up, length_ns / 1e9)

    def stop(self, stretch: Stretch) -> EnergyWindow:
        """Take the last reading and add up.

        Args:
            stretch: what was done since the source had settled.

        Raises:
            SensorError: the source failed, gave too little, or nonsense.
        """
        self.end()
        if self._in_a_row < _FAILURES_MAX:
            self._take()
        if self._in_a_row >= _FAILURES_MAX:
            raise SensorError(f"failed during the window: {self._reason}")
        readings = self._readings
        if self.settle_ns:
            readings = [reading for reading in readings if stretch.begin_ns <= reading[0] <= stretch.end_ns]
        window = window_of(self.source.source, readings, stretch, self._failures)
        if window.window_s < WINDOW_MIN_S:
            raise SensorError(f"too short: {window.window_s:.4g} s, expected at least {WINDOW_MIN_S:g} s")
        return window

    def end(self) -> None:
        """Read no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        while not self._wait(self._stop, self.source.period_s * self._uneven.uniform(0.5, 1.5)):
            self._take()
            if self._in_a_row >= _FAILURES_MAX:
                self._given_up.set()
                return

    def _take(self) -> bool:
        try:
            self._readings.extend(self.source.read())
        except Exception as error:  # noqa: BLE001  # a meter of someone's own may raise anything
            self._reason = str(error) if isinstance(error, SensorError) else f"{type(error).__name__}: {error}"
            self._failures += 1
            self._in_a_row += 1
        else:
            self._in_a_row = 0
        return self._in_a_row == 0
