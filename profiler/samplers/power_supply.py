"""Battery of a phone, a laptop or a UPS HAT (kernel ABI, sysfs-class-power): power drawn while it discharges.

Drivers keep to the ABI's units and signs loosely. The direction is what `status` says, and the current's sign is only
noted. Its unit, uA by the ABI and mA in some drivers, is guessed from its size, and then checked: what the current
adds up to must be what the charge counter fell by, as far as that moves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ferryman.profiler.samplers.base import Reading, stamped
from ferryman.profiler.sysfs import SensorError, paths, read_text, to_int
from ferryman.runtime.contracts.energy import EnergySource
from ferryman.runtime.contracts.record import Unavailable

Properties = Callable[[str], str]
"""A property's text by its name in sysfs, of one moment.

Raises:
    SensorError: it is not there, or cannot be read.
"""
CELL_UV = range(1_000_000, 100_000_001)
"""Of any battery that feeds a device."""
_MICRO_MIN = 10_000
"""No device that runs models takes less than 10 mA or 10 mW: what is smaller is in thousandths."""
_AGREE = 2.0
"""Counters are coarse, so current and counter agree within this factor; units differ by 1,000."""
_STEPS_MIN = 2


@dataclass
class _Way:
    """How power is told: a rate, and the counter that it drains."""

    rate: str
    counters: tuple[str, ...]
    unit: str


_WAYS = (
    _Way("power_now", ("energy_now",), "uW"),
    _Way("current_now", ("charge_counter", "charge_now"), "uA"),
)


class BatterySampler:
    """Implements `Sampler`; gauges renew their numbers about once a second."""

    settle_s = 2.0

    def __init__(
        self,
        name: str,
        fetch: Callable[[], Properties],
        period_s: float = 0.5,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """Read once.

        Args:
            name: what users call it.
            fetch: takes the properties of now.
            period_s: how often.
            clock_ns: of the readings.

        Raises:
            SensorError: it does not discharge, or tells nothing of power.
        """
        self.period_s = period_s
        self._name, self._fetch, self._clock_ns = name, fetch, clock_ns
        properties = self._discharging()
        self._way = _choose_way(properties, name)
        raw = to_int(properties(self._way.rate), self._way.rate)
        if raw == 0:
            raise SensorError(f"{name}: {self._way.rate} is 0")
        self._to_micro = 1 if abs(raw) >= _MICRO_MIN else 1000
        self._negative = raw < 0
        self._check = _Check()
        self._watts(properties)

    @property
    def source(self) -> EnergySource:
        """See `Sampler.source`."""
        way, check = self._way, self._check
        taken = way.unit if self._to_micro == 1 else way.unit.replace("u", "m")
        told = f"unit uncertain: taken for {taken} by its size, and no counter moved to check it against"
        if check.agrees:
            told = (
                f"unit {taken}, checked: the counter fell by {check.fell:,} u{way.unit[1]}h, "
                f"the readings add up to {check.drawn:,.0f}"
            )
        sign = "negative" if self._negative else "positive"
        return EnergySource(
            name=self._name,
            rails=("whole device",),
            unit="W",
            resolution=Unavailable(reason="of the fuel gauge, which the kernel does not pass on"),
            renewed_s=Unavailable(reason="of the fuel gauge, often about 1 s"),
            uncertainty=Unavailable(reason="of the fuel gauge, which the kernel does not pass on"),
            note=f"{way.rate}, {sign} while discharging; {told}",
        )

    def read(self) -> Sequence[Reading]:
        """See `Sampler.read`."""
        return stamped(lambda: self._watts(self._discharging()))

    def close(self) -> None:
        """Nothing is open."""

    def _discharging(self) -> Properties:
        properties = self._fetch()
        status = properties("status")
        if status != "Discharging":
            raise SensorError(f"{self._name}: the battery is {status.lower()[:20]}; unplug the device to measure")
        return properties

    def _watts(self, properties: Properties) -> float:
        rate = abs(to_int(properties(self._way.rate), self._way.rate)) * self._to_micro
        for counter in self._way.counters:
            with suppress(SensorError):
                self._check.add(self._clock_ns(), rate, to_int(properties(counter), counter))
                break
        if self._check.contradicts:
            raise SensorError(
                f"{self._name}: unit uncertain: {self._way.rate} adds up to {self._check.drawn:,.0f}, while "
                f"the counter fell by {self._check.fell:,}"
            )
        if self._way.unit == "uW":
            return rate / 1e6
        microvolts = to_int(properties("voltage_now"), "voltage_now")
        if microvolts not in CELL_UV:
            raise SensorError(f"{self._name}: voltage_now is {microvolts}, no battery's microvolts; unit uncertain")
        return rate * microvolts / 1e12


class _Check:
    """Compares a rate with the counter it drains, from one step of the counter to another."""

    def __init__(self) -> None:
        self.fell = 0
        """Since its first step, in the counter's unit."""
        self.drawn = 0.0
        """The rate, added up over the same time."""
        self._steps = 0
        self._sum = 0.0
        self._last: tuple[int, int] | None = None
        self._begin: int | None = None

    def add(self, now_ns: int, rate: int, counter: int) -> None:
        """A reading of both."""
        last, self._last = self._last, (now_ns, counter)
        if last is None:
            return
        if self._begin is not None:
            self._sum += rate * (now_ns - last[0]) / 3.6e12
        if counter != last[1]:
            if self._begin is None:
                self._begin = counter
            else:
                self._steps += 1
                self.fell, self.drawn = self._begin - counter, self._sum

    @property
    def agrees(self) -> bool:
        """Enough steps, and they say the same."""
        return self._steps >= _STEPS_MIN and self.drawn / _AGREE <= self.fell <= self.drawn * _AGREE

    @property
    def contradicts(self) -> bool:
        """Enough steps, and they say something else."""
        return self._steps >= _STEPS_MIN and not self.agrees


def open_source(root: Path = Path("/")) -> BatterySampler | Unavailable:
    """The first battery that feeds this device, or why none can be read."""
    try:
        folders = paths(root / "sys/class/power_supply", "*")
    except SensorError as error:
        return Unavailable(reason=f"power_supply: {error}")
    reasons = []
    for folder in folders:
        try:
            if read_text(folder / "type") in {"Battery", "UPS"} and not _of_peripheral(folder):
                return BatterySampler(f"power_supply {folder.name}", _files(folder))
        except SensorError as error:
            reasons.append(str(error))
    return Unavailable(reason="power_supply: " + ("; ".join(reasons) or "no battery"))


def _files(folder: Path) -> Callable[[], Properties]:
    return lambda: lambda name: read_text(folder / name)


def _choose_way(properties: Properties, name: str) -> _Way:
    reasons = []
    for way in _WAYS:
        try:
            to_int(properties(way.rate), way.rate)
        except SensorError as error:
            reasons.append(str(error))
        else:
            return way
    raise SensorError(f"{name}: neither power nor current: " + "; ".join(reasons))


def _of_peripheral(folder: Path) -> bool:
    """A mouse's battery says `Device`; one that feeds the system says `System` or nothing."""
    try:
        return read_text(folder / "scope") == "Device"
    except SensorError:
        return False
