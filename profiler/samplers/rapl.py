"""Energy counters of x86 processors (kernel documentation, power/powercap).

Counted: every `package`, and its `dram`, which the package does not hold. Left out, for they would count twice:
`core` and `uncore` (parts of the package), `psys` (holds the package), and intel-rapl-mmio (the package once more).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ferryman.profiler.samplers.base import Reading, Unwrapped, stamped
from ferryman.profiler.sysfs import SensorError, paths, read_int, read_text
from ferryman.runtime.contracts.energy import EnergySource
from ferryman.runtime.contracts.record import Unavailable

_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")


class _Zone:
    """A counter of microjoules that starts over, after minutes to hours."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "energy_uj"
        span = read_int(folder / "max_energy_range_uj")
        if span <= 0:
            raise SensorError(f"{folder / 'max_energy_range_uj'}: expected a positive number, found {span}")
        self._counter = Unwrapped(str(self._path), span, read_int(self._path))

    def read_uj(self) -> int:
        return self._counter.add(read_int(self._path))


@dataclass
class RaplSampler:
    """Implements `Sampler`."""

    zones: dict[str, _Zone]
    period_s: float = 0.5
    settle_s: float = 0.0
    source: EnergySource = field(init=False)

    def __post_init__(self) -> None:
        self.source = EnergySource(
            name="RAPL powercap",
            rails=tuple(self.zones),
            unit="J",
            resolution=Unavailable(reason="a unit of the processor's (often 61 uJ), which powercap does not pass on"),
            renewed_s=1e-3,
            uncertainty=Unavailable(reason="not published"),
            note="the processor and its memory; without the board, disks and the power supply's losses",
        )

    def read(self) -> Sequence[Reading]:
        """See `Sampler.read`."""
        return stamped(lambda: sum(zone.read_uj() for zone in self.zones.values()) / 1e6)

    def close(self) -> None:
        """Nothing is open."""


def open_source(root: Path = Path("/")) -> RaplSampler | Unavailable:
    """The counters of this machine, or why they cannot be read."""
    folder = root / "sys/class/powercap"
    zones: dict[str, _Zone] = {}
    try:
        for path in paths(folder, "intel-rapl:*"):
            if _ZONE.fullmatch(path.name) and (name := _counted_name(folder, path)) and name not in zones:
                zones[name] = _Zone(path)
    except SensorError as error:
        return Unavailable(reason=f"RAPL powercap: {error}")
    if not any(name.startswith("package") for name in zones):
        return Unavailable(reason=f"RAPL powercap: no package counter in {folder}")
    return RaplSampler(zones)


def _counted_name(folder: Path, zone: Path) -> str | None:
    name = read_text(zone / "name")
    if name.startswith("package"):
        return name
    if name == "dram" and zone.name.count(":") > 1:
        return f"{read_text(folder / zone.name.rpartition(':')[0] / 'name')} {name}"
    return None
