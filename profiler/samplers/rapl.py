"""Energy counters of x86 processors (kernel documentation, power/powercap).

Counted: every `package`, and its `dram`, which the package does not hold. Left out, for they would count twice:
`core` and `uncore` (parts of the package), `psys` (holds the package), and intel-rapl-mmio (the package once more).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ferryman.profiler.sysfs import SensorError, paths, read_int, read_text
from ferryman.runtime.contracts.record import Unavailable

_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")


@dataclass
class _Zone:
    name: str
    counter: Path
    range_uj: int
    last_uj: int
    total_uj: int = 0

    def read(self) -> int:
        """Microjoules since it was opened; read at least once per wrap (minutes to hours)."""
        now_uj = read_int(self.counter)
        step_uj = now_uj - self.last_uj
        if step_uj < 0:
            step_uj += self.range_uj
        if not 0 <= step_uj <= self.range_uj:
            raise SensorError(f"{self.counter}: {now_uj} does not follow {self.last_uj} in a range of {self.range_uj}")
        self.last_uj = now_uj
        self.total_uj += step_uj
        return self.total_uj


@dataclass
class RaplSampler:
    """Implements `Sampler`."""

    zones: list[_Zone]
    source: str = "RAPL powercap"
    rails: tuple[str, ...] = field(init=False)
    unit: Literal["W", "J"] = "J"
    period_s: float = 1.0

    def __post_init__(self) -> None:
        self.rails = tuple(zone.name for zone in self.zones)

    def read(self) -> float:
        """See `Sampler.read`."""
        return sum(zone.read() for zone in self.zones) / 1e6


def open_source(root: Path = Path("/")) -> RaplSampler | Unavailable:
    """The counters of this machine, or why they cannot be read."""
    folder = root / "sys/class/powercap"
    zones: dict[str, _Zone] = {}
    try:
        for path in paths(folder, "intel-rapl:*"):
            if _ZONE.fullmatch(path.name) and (name := _counted_name(folder, path)) and name not in zones:
                zones[name] = _Zone(
                    name=name,
                    counter=path / "energy_uj",
                    range_uj=read_int(path / "max_energy_range_uj"),
                    last_uj=read_int(path / "energy_uj"),
                )
    except SensorError as error:
        return Unavailable(reason=f"RAPL powercap: {error}")
    if not any(name.startswith("package") for name in zones):
        return Unavailable(reason=f"RAPL powercap: no package counter in {folder}")
    return RaplSampler(list(zones.values()))


def _counted_name(folder: Path, zone: Path) -> str | None:
    name = read_text(zone / "name")
    if name.startswith("package"):
        return name
    if name == "dram" and zone.name.count(":") > 1:
        return f"{read_text(folder / zone.name.rpartition(':')[0] / 'name')} {name}"
    return None
