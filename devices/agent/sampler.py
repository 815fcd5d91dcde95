"""How the device does, period by period: a record of kind `sample`, and the newest one for dashboards that subscribe.

It runs in a thread of its own and waits for nothing but its sensors, so it never keeps a request waiting.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from ferryman.devices import topics
from ferryman.devices.agent.outbox import Counts
from ferryman.devices.agent.power import PowerMeter
from ferryman.devices.agent.ready import battery_share
from ferryman.devices.agent.tally import Served, ServedTally, significant
from ferryman.devices.mqtt import Link, Message
from ferryman.profiler.conditions import clocks_mhz, temperatures_c, throttled
from ferryman.profiler.sysfs import SensorError, read_text
from ferryman.runtime.contracts.energy import EnergyWindow
from ferryman.runtime.contracts.errors import DeviceError, LinkError
from ferryman.runtime.contracts.record import Unavailable, encode
from ferryman.runtime.contracts.telemetry import Sample

log = logging.getLogger(__name__)

PERIOD_S = 60.0
LIVE_PERIODS = 3
"""So many periods the newest sample stands for the present."""
_REASON_CHARS = 160


def _clock_mhz(fs: Path) -> float:
    try:
        cpuinfo = read_text(fs / "proc/cpuinfo")
    except SensorError:
        cpuinfo = ""
    clocks = clocks_mhz(fs, cpuinfo)
    return sum(clocks) / len(clocks)


SENSORS: tuple[tuple[str, Callable[[Path], float]], ...] = (
    ("temperature_c", lambda fs: max(reading.value for reading in temperatures_c(fs))),
    ("clock_mhz", _clock_mhz),
    ("throttled", lambda fs: float(any(not reason.endswith(" before") for reason in throttled(fs)))),
    ("battery_percent", lambda fs: 100 * battery_share(fs)),
)
"""Metric -> how to read it below the root of a file system; raises SensorError."""


def missing_sensors(fs: Path = Path("/")) -> frozenset[str]:
    """The metrics of SENSORS that cannot be read."""
    readings = _Readings()
    for name, read in SENSORS:
        readings.read(name, lambda read=read: read(fs))  # type: ignore[misc]
    return frozenset(readings.unavailable)


class Sources(NamedTuple):
    """Whom a sampler asks, beside the kernel."""

    tally: ServedTally
    counts: Callable[[], Counts]
    """Of the outbox; raises DeviceError."""
    package: Callable[[], str | None]
    """The SHA-256 of what is active."""
    disk: Path
    """Where the slots are."""
    power: PowerMeter | None = None
    fs: Path = Path("/")
    """Root of the file system to read sensors from."""


class _Readings:
    """Values as they come, and a reason for each that does not."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.unavailable: dict[str, str] = {}

    def put(self, name: str, value: float | str) -> None:
        """A number, or why there is none."""
        if isinstance(value, str):
            self.unavailable[name] = value[:_REASON_CHARS]
        elif not math.isfinite(value):
            self.unavailable[name] = f"the sensor says {value}"
        else:
            self.values[name] = significant(value)

    def read(self, name: str, take: Callable[[], float]) -> None:
        """From a sensor that may be missing."""
        try:
            self.put(name, take())
        except (SensorError, DeviceError, psutil.Error, OSError, ValueError) as error:
            self.put(name, str(error) or type(error).__name__)


class Sampler:
    """Takes samples; `run` is a thread's."""

    def __init__(
        self,
        sources: Sources,
        record: Callable[[Sample], None],
        tell: Callable[[Sample], None],
        period_s: float = PERIOD_S,
    ) -> None:
        """Nothing is read yet.

        Args:
            sources: whom to ask.
            record: puts a sample on record.
            tell: takes the newest sample, of now, where anyone is connected to hear it.
            period_s: how often.
        """
        self._sources, self._record, self._tell, self._period_s = sources, record, tell, period_s
        self._process = psutil.Process()
        self._began = time.monotonic()
        self._cpu = _cpu_s()

    def run(self, stop: threading.Event) -> None:
        """Take a sample every period until `stop` is set, and a last one then; not raising."""
        due = time.monotonic() + self._period_s
        while not stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._period_s, time.monotonic())
            self._turn(self._tell)
        self._turn(lambda _: None)

    def _turn(self, tell: Callable[[Sample], None]) -> None:
        try:
            *earlier, newest = self.take()
            for sample in (*earlier, newest):
                self._record(sample)
            tell(newest)
        except Exception:
            log.exception("no sample was taken")

    def take(self) -> list[Sample]:
        """The period since the last call: of each package that served; the last has the device's state, too."""
        now = time.monotonic()
        period_s, self._began = now - self._began, now
        served = self._sources.tally.take()
        active = self._sources.package()
        if not served:
            served = [Served(active or "", 0, 0, None, ())]
        earlier = [_sample(period_s, one, _of_served(one)) for one in served[:-1]]
        newest = _of_served(served[-1])
        self._read_device(newest)
        energy = self._sources.power.take() if self._sources.power else Unavailable(reason="no meter is named")
        _read_energy(newest, energy, sum(one.inferences for one in served))
        return [*earlier, _sample(period_s, served[-1], newest)]

    def _read_device(self, into: _Readings) -> None:
        sources = self._sources
        before, self._cpu = self._cpu, _cpu_s()
        busy_s, total_s = self._cpu[0] - before[0], self._cpu[1] - before[1]
        into.put("cpu_percent", 100 * max(busy_s, 0.0) / total_s if total_s > 0 else "too short for the kernel's ticks")
        memory = psutil.virtual_memory()
        into.put("memory_used_mb", (memory.total - memory.available) / 1e6)
        into.read("agent_memory_mb", lambda: self._rss_bytes() / 1e6)
        into.read("disk_free_mb", lambda: psutil.disk_usage(str(sources.disk)).free / 1e6)
        for name, read in SENSORS:
            into.read(name, lambda read=read: read(sources.fs))  # type: ignore[misc]
        try:
            counts = sources.counts()
        except DeviceError as error:
            into.put("outbox_records", str(error))
            into.put("outbox_mb", str(error))
        else:
            into.put("outbox_records", counts.records)
            into.put("outbox_mb", counts.bytes / 1e6)

    def _rss_bytes(self) -> int:
        """Of this process and those it started; pages they share count for each."""
        total = int(self._process.memory_info().rss)
        for child in self._process.children(recursive=True):
            try:
                total += int(child.memory_info().rss)
            except psutil.Error:  # it has just ended
                continue
        return total


def live(link: Link, device: str, period_s: float) -> Callable[[Sample], None]:
    """Publishes each sample retained on the device's live topic, where there is a connection; it expires."""
    topic, expiry_s = topics.live(device), math.ceil(LIVE_PERIODS * period_s)

    def tell(sample: Sample) -> None:
        try:
            link.publish(Message(topic=topic, payload=encode(sample), retain=True, qos=0, expiry_s=expiry_s))
        except LinkError as error:
            log.debug("sample not told: %s", error)

    return tell


def _sample(period_s: float, served: Served, readings: _Readings) -> Sample:
    return Sample(
        period_s=significant(period_s),
        values=readings.values,
        unavailable=readings.unavailable,
        latencies_ms=served.latencies_ms,
        package_sha256=served.package_sha256 or None,
    )


def _of_served(served: Served) -> _Readings:
    readings = _Readings()
    readings.put("inferences", served.inferences)
    readings.put("errors", served.errors)
    readings.put("latency_ms", "no inference was answered" if served.median_ms is None else served.median_ms)
    return readings


def _read_energy(into: _Readings, energy: EnergyWindow | Unavailable, inferences: int) -> None:
    if isinstance(energy, Unavailable):
        into.put("power_w", energy.reason)
        into.put("energy_mj", energy.reason)
        return
    into.put("power_w", energy.power_w)
    none = "no inference was answered"
    into.put("energy_mj", energy.energy_j * 1e3 / inferences if inferences else none)


def _cpu_s() -> tuple[float, float]:
    """Busy and total time of all processors since boot; guests' time is in user time already."""
    times = psutil.cpu_times()
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total
