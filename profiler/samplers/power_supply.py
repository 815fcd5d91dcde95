"""Battery of a phone, a laptop or a UPS HAT (kernel ABI, sysfs-class-power): power drawn while it discharges."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ferryman.profiler.sysfs import SensorError, paths, read_int, read_text
from ferryman.runtime.contracts.record import Unavailable

_CURRENT_MIN_UA = 10_000
"""Some drivers report milliamperes; no device that runs models takes less than 10 mA."""


@dataclass
class BatterySampler:
    """Implements `Sampler`; drivers renew their numbers about once a second."""

    folder: Path
    source: str
    rails: tuple[str, ...]
    unit: Literal["W", "J"] = "W"
    period_s: float = 0.5

    def read(self) -> float:
        """See `Sampler.read`."""
        status = read_text(self.folder / "status")
        if status != "Discharging":
            raise SensorError(f"{self.folder}: the battery is {status.lower()[:20]}; unplug the device to measure")
        if os.access(self.folder / "power_now", os.F_OK):
            return abs(read_int(self.folder / "power_now")) / 1e6
        # The sign of a discharging current differs from driver to driver; the status has told the direction.
        current_ua = abs(read_int(self.folder / "current_now"))
        if current_ua < _CURRENT_MIN_UA:
            raise SensorError(f"{self.folder}: current_now is {current_ua}, too small for microamperes; unit uncertain")
        return current_ua * read_int(self.folder / "voltage_now") / 1e12


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
                sampler = BatterySampler(folder, f"power_supply {folder.name}", ("whole device",))
                sampler.read()
                return sampler
        except SensorError as error:
            reasons.append(str(error))
    return Unavailable(reason="power_supply: " + ("; ".join(reasons) or "no battery"))


def _of_peripheral(folder: Path) -> bool:
    """A mouse's battery says `Device`; one that feeds the system says `System` or nothing."""
    try:
        return read_text(folder / "scope") == "Device"
    except SensorError:
        return False
