"""Joules of an inference: an idle window, then one of runs, a source read beside them."""

from __future__ import annotations

import itertools
import operator
import random
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ferryman.profiler.joules import READINGS_MIN, Stretch, energy_of, window_of
from ferryman.profiler.meter import open_meter
from ferryman.profiler.samplers import hwmon_ina, odpm, pi_pmic, power_supply, rapl
from ferryman.profiler.samplers.base import Reading, Sampler
from ferryman.profiler.samplers.guard import Stated, answer, shown, stated, words
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
ANSWER_S = 20.0
"""Whatever does not answer for so long is left behind; three readings by adb give up sooner, after 5 s each."""
READINGS_MAX = 100_000
"""In a window: more would take longer to add up than to take, and tell no more."""
_TIME_MAX_NS = 1 << 62
_MARK_NS = 10_000_000
_FAILURES_MAX = 3
_MARGIN = 1.01
"""A window lasts a little longer than asked for, so that a clock's rounding does not make it too short."""
_SILENT = "read() did not answer within {:g} s"
Wait = Callable[[threading.Event, float], bool]
Burst = Callable[[int], list[tuple[int, int]]]
"""Has a device elsewhere run without a pause for so many nanoseconds at least: (our time, runs done by then), from the
first run's begin to the last one's end."""


def choose_source(root: Path = Path("/"), meter: str | None = None) -> Sampler | Unavailable:
    """The meter that is named, or the first of SOURCES this device has, or each one's reason why not.

    Raises:
        CallerError: the meter's name cannot be understood.
    """
    if meter is not None:
        return open_meter(meter)
    reasons = []
    for open_source in SOURCES:
        try:
            source = answer(partial(open_source, root), open_source.__module__, ANSWER_S)
        except SensorError as error:
            source = Unavailable(reason=str(error))
        if not isinstance(source, Unavailable):
            return source
        reasons.append(source.reason)
    return Unavailable(reason="; ".join(reasons))


def measure_energy(
    source: Sampler | Unavailable,
    run: Callable[[], object] = lambda: None,
    *,
    burst: Burst | None = None,
    idle_s: float = 10.0,
    window_s: float = 10.0,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    wait: Wait = threading.Event.wait,
) -> Energy | Unavailable:
    """Read a source while the process sleeps, then while it runs without a pause.

    A window lasts longer where the source is slow to give ten readings. Whoever reads sits in a thread that wakes at
    uneven intervals, so that it does not fall in step with the runs; it does the same in both windows, so what it costs
    is in `gross_j`, and not in `net_j`. A source that blocks, raises anything, or states nonsense is Unavailable; its
    code runs in threads that can be left behind.

    Args:
        source: closed afterwards.
        run: one inference; what it raises is raised here.
        burst: in its place where the runs are made elsewhere; it may raise SensorError.
        idle_s: of the idle window; 0 for none.
        window_s: of the runs.
        clock_ns: the clock of the source's readings.
        wait: for an event or so many seconds, as threading.Event.wait does.
    """
    if isinstance(source, Unavailable):
        return source
    reader = _Reader(source, clock_ns, wait)
    found: Energy | Unavailable
    failure = None
    try:
        found = _windows(
            reader, partial(_elsewhere, burst=burst) if burst else partial(_active, run=run), idle_s, window_s
        )
    except SensorError as error:
        found = Unavailable(reason=f"{reader.name}: {error}")
    finally:
        failure = reader.close()
    if failure is not None and isinstance(found, Energy):
        return Unavailable(reason=f"{reader.name}: {failure}")
    return found


def _windows(
    reader: _Reader, active_of: Callable[..., EnergyWindow], idle_s: float, window_s: float
) -> Energy | Unavailable:
    if window_s < WINDOW_MIN_S or 0 < idle_s < WINDOW_MIN_S:
        shorter_s = min(window_s, idle_s or window_s)
        return Unavailable(reason=f"too short: {shorter_s:g} s, expected at least {WINDOW_MIN_S:g} s of each window")
    reader.ask()
    idle: EnergyWindow | Unavailable = Unavailable(reason="not asked for")
    if idle_s > 0:
        idle = _idle(reader, idle_s)
    active = active_of(reader, window_s=window_s)
    unit = reader.stated.source.unit
    reader.ask()
    if reader.stated.source.unit != unit:
        raise SensorError(f"unit: expected {unit!r} as before, found {reader.stated.source.unit!r}")
    return energy_of(reader.stated.source, active, idle)


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


def _elsewhere(reader: _Reader, burst: Burst, window_s: float) -> EnergyWindow:
    """As `_active`, of runs that someone else makes: what is read before the first is not theirs."""
    reader.start()
    marks = burst(reader.settle_ns + reader.length_ns(window_s))
    marks = [mark for mark in marks if mark[0] >= marks[0][0] + reader.settle_ns]
    if not marks:
        raise SensorError("the runs ended before the source had settled")
    return reader.stop(Stretch(marks[0][0], marks[-1][0], tuple(marks)), within=True)


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

    stated: Stated
    """By the source, when it was asked last."""

    def __init__(self, source: Sampler, clock_ns: Callable[[], int], wait: Wait) -> None:
        self._source, self.clock_ns, self._wait = source, clock_ns, wait
        self.name = f"meter {type(source).__name__}"
        self._uneven = random.Random(1)  # noqa: S311  # spreads readings, guards nothing
        self._stop, self._given_up = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """What the source states.

        Raises:
            SensorError: nonsense, or nothing.
        """
        self.stated = answer(lambda: stated(self._source), "what it states", ANSWER_S)
        self.name = self.stated.source.name

    @property
    def failed(self) -> bool:
        """Whether the source was given up."""
        return self._given_up.is_set()

    @property
    def settle_ns(self) -> int:
        """How long to wait after a change of load."""
        source = self.stated.source
        # A power that was renewed before the load changed still tells of the one before; a counter loses nothing.
        stale_s = source.renewed_s if source.unit == "W" and not isinstance(source.renewed_s, Unavailable) else 0.0
        return round(1e9 * max(self.stated.settle_s, stale_s))

    @property
    def _answer_s(self) -> float:
        """A reading may wait for the next value of a slow source, and the last comes after one that is under way."""
        return max(ANSWER_S, 2 * self.stated.period_s)

    def length_ns(self, seconds: float) -> int:
        """Of a window with enough readings in it; a counter's lies between two of them, which may be uneven."""
        period_s = self.stated.period_s
        edges_s = 3 * period_s if self.stated.source.unit == "J" else 0.0
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
        first = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(first,), name="energy", daemon=True)
        self._thread.start()
        if not first.wait(self._answer_s):
            self._thread = None
            raise SensorError(_SILENT.format(self._answer_s))
        if self.failed:
            raise SensorError(self._reason)

    def sleep(self, length_ns: int) -> None:
        """Unless the source is given up before."""
        self._wait(self._given_up, length_ns / 1e9)

    def stop(self, stretch: Stretch, *, within: bool = False) -> EnergyWindow:
        """Take the last reading and add up.

        Args:
            stretch: what was done since the source had settled.
            within: whether readings from before and after it are left out; so they are of a source that settles.

        Raises:
            SensorError: the source failed, gave too little, or nonsense.
        """
        if not self.end():
            raise SensorError(_SILENT.format(self._answer_s))
        if self.failed:
            raise SensorError(f"failed during the window: {self._reason}")
        readings = self._readings
        if self.settle_ns or within:
            readings = [reading for reading in readings if stretch.begin_ns <= reading[0] <= stretch.end_ns]
        window = window_of(self.stated.source, readings, stretch, self._failures)
        if window.window_s < WINDOW_MIN_S:
            raise SensorError(f"too short: {window.window_s:.4g} s, expected at least {WINDOW_MIN_S:g} s")
        return window

    def end(self) -> bool:
        """Read no more; whether the source let go of the thread."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is None:
            return True
        thread.join(self._answer_s)
        return not thread.is_alive()

    def close(self) -> str | None:
        """Let go of the source, whatever it does; what it did, if that was not right."""
        self.end()

        def let_go() -> None:
            try:
                self._source.close()
            except BaseException as error:
                raise SensorError(f"close(): {words(error)}") from error

        try:
            answer(let_go, "close()", ANSWER_S)
        except SensorError as error:
            return str(error)
        return None

    def _watch(self, first: threading.Event) -> None:
        while not self._take() and not self.failed:
            pass
        first.set()
        while not self.failed and not self._wait(self._stop, self.stated.period_s * self._uneven.uniform(0.5, 1.5)):
            self._take()
        if not self.failed:
            self._take()

    def _take(self) -> bool:
        try:
            self._keep(self._source.read())
        except BaseException as error:  # noqa: BLE001  # a meter of someone's own may raise anything; Ctrl-C comes elsewhere
            self._reason = words(error)
            self._failures += 1
            self._in_a_row += 1
            if self._in_a_row >= _FAILURES_MAX:
                self._given_up.set()
        else:
            self._in_a_row = 0
        return self._in_a_row == 0

    def _keep(self, readings: Iterable[object]) -> None:
        room = READINGS_MAX - len(self._readings)
        if not isinstance(readings, Iterable):
            raise SensorError(f"read(): expected readings, found {shown(readings)}")
        found = [_reading(reading) for reading in itertools.islice(readings, room + 1)]
        if len(found) > room:
            self._in_a_row = _FAILURES_MAX  # the next time would be no better
            raise SensorError(f"more than {READINGS_MAX:,} readings in a window; have the meter average them")
        self._readings.extend(found)


def _reading(reading: Any) -> Reading:  # noqa: ANN401  # whatever a meter hands over
    try:
        time_ns, value = reading
        found = operator.index(time_ns), float(value)
    except (TypeError, ValueError, OverflowError):
        found = (-1, 0.0)
    if not 0 <= found[0] < _TIME_MAX_NS:
        raise SensorError(f"read(): expected (nanoseconds, number) of each reading, found {shown(reading)}")
    return found
