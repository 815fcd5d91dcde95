"""Texas Instruments shunt meters under hwmon (kernel documentation, hwmon/ina2xx): INA219, INA226 and their kin."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ferryman.profiler.sysfs import SensorError, paths, read_int, read_text
from ferryman.runtime.contracts.record import Unavailable

_CHIPS = ("ina219", "ina220", "ina226", "ina230", "ina231", "ina260")


@dataclass
class InaSampler:
    """Implements `Sampler`."""

    folder: Path
    source: str
    rails: tuple[str, ...]
    unit: Literal["W", "J"] = "W"
    period_s: float = 0.02

    def read(self) -> float:
        """See `Sampler.read`."""
        return read_int(self.folder / "power1_input") / 1e6


def open_source(root: Path = Path("/")) -> InaSampler | Unavailable:
    """The first chip that can be read, or why none can; several may sit in series, so they are never added up."""
    try:
        folders = paths(root / "sys/class/hwmon", "hwmon*")
    except SensorError as error:
        return Unavailable(reason=f"INA hwmon: {error}")
    reasons = []
    for folder in folders:
        try:
            name = read_text(folder / "name")
            if name in _CHIPS:
                sampler = InaSampler(folder, f"{name} hwmon, {_scale(folder)}", (f"{name} at {folder.name}",))
                sampler.read()
                return sampler
        except SensorError as error:
            reasons.append(str(error))
    return Unavailable(reason="INA hwmon: " + ("; ".join(reasons) or "no INA219/INA226 chip"))


def _scale(folder: Path) -> str:
    """A wrong shunt value scales every reading, so it is part of the source's name."""
    with suppress(SensorError):
        return f"shunt {read_int(folder / 'shunt_resistor') / 1000:g} mOhm"
    return "fixed shunt"
