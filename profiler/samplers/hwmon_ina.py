"""Texas Instruments' shunt meters under hwmon (kernel documentation, hwmon/ina2xx and hwmon/ina3221).

Several chips, and the channels of one, may sit in series, so they are never added up. Of three channels the one that
takes the most is read: what feeds the others takes more than they do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ferryman.profiler.samplers.base import Reading, stamped
from ferryman.profiler.samplers.ina import CHIPS, SHUNT_TOLERANCE
from ferryman.profiler.sysfs import SensorError, paths, read_int, read_text
from ferryman.runtime.contracts.energy import EnergySource
from ferryman.runtime.contracts.record import Unavailable

# Names of the driver, and its step of power times the shunt: in uW and uOhm, as the driver programs the chip.
_POWER_STEP = {"ina219": 2e8, "ina220": 2e8, "ina226": 6.25e7, "ina230": 6.25e7, "ina231": 6.25e7, "ina260": None}
_INA260_STEP_W = 0.01
_FACTOR = 3
"""Power and volts times amperes are read one after the other: further apart than this, it is no change of load."""


@dataclass
class InaSampler:
    """Implements `Sampler`."""

    watts: Callable[[], float]
    source: EnergySource
    period_s: float = 0.02
    settle_s: float = 0.0

    def read(self) -> Sequence[Reading]:
        """See `Sampler.read`."""
        return stamped(self.watts)

    def close(self) -> None:
        """Nothing is open."""


def open_source(root: Path = Path("/")) -> InaSampler | Unavailable:
    """The first chip that can be read, or why none can."""
    try:
        folders = paths(root / "sys/class/hwmon", "hwmon*")
    except SensorError as error:
        return Unavailable(reason=f"INA hwmon: {error}")
    reasons = []
    for folder in folders:
        try:
            name = read_text(folder / "name")
            if name in _POWER_STEP:
                return _single(folder, name)
            if name == "ina3221":
                return _triple(folder)
        except SensorError as error:
            reasons.append(str(error))
    return Unavailable(reason="INA hwmon: " + ("; ".join(reasons) or "no INA219/INA226/INA3221 chip"))


def _single(folder: Path, name: str) -> InaSampler:
    step = _POWER_STEP[name]
    shunt_uohm = None
    with suppress(SensorError):
        shunt_uohm = _positive(folder / "shunt_resistor")
    step_w: float | Unavailable = Unavailable(reason="no shunt_resistor")
    if step is None:
        step_w = _INA260_STEP_W
    elif shunt_uohm is not None:
        step_w = step / shunt_uohm / 1e6
    watts = _power(folder)
    _check(folder, watts())
    return InaSampler(
        watts=watts,
        source=_source(
            name, folder, f"{name} at {folder.name}", shunt_uohm, step_w, "covers whatever its shunt is in, alone"
        ),
    )


def _power(folder: Path) -> Callable[[], float]:
    return lambda: read_int(folder / "power1_input") / 1e6


def _check(folder: Path, watts: float) -> None:
    """A driver that counts in other units would be believed otherwise."""
    try:
        volts, amperes = read_int(folder / "in1_input") / 1e3, read_int(folder / "curr1_input") / 1e3
    except SensorError:
        return
    if amperes < 0:
        raise SensorError(f"{folder}: the current is negative; turn the shunt around")
    margin_w = 0.001 * (volts + amperes)  # of their last digits
    if not (watts + margin_w) * _FACTOR >= volts * amperes >= (watts / _FACTOR - margin_w):
        raise SensorError(f"{folder}: power1_input says {watts:g} W, volts times amperes {volts * amperes:g} W")


def _triple(folder: Path) -> InaSampler:
    found: list[tuple[float, int]] = []
    reasons = []
    for channel in (1, 2, 3):
        try:
            found.append((_channel(folder, channel)(), channel))
        except SensorError as error:
            reasons.append(str(error))
    if not found:
        raise SensorError("; ".join(reasons))
    watts, channel = max(found)
    if watts <= 0:
        raise SensorError(f"{folder}: no channel carries power; the most is {watts:g} W")
    label, shunt_uohm = f"channel {channel}", None
    with suppress(SensorError):
        label = read_text(folder / f"in{channel}_label")[:40]
    step_w: float | Unavailable = Unavailable(reason=f"no shunt{channel}_resistor")
    with suppress(SensorError):
        shunt_uohm = _positive(folder / f"shunt{channel}_resistor")
        volts = read_int(folder / f"in{channel}_input") / 1e3
        step_w = volts * max(1e-3, CHIPS["ina3221"].shunt_lsb_v / (shunt_uohm / 1e6))
    others = len(found) - 1
    note = f"the channel that takes the most; {others} other{'s' * (others != 1)} left out, for it may feed them"
    return InaSampler(
        watts=_channel(folder, channel), source=_source("ina3221", folder, label, shunt_uohm, step_w, note)
    )


def _channel(folder: Path, channel: int) -> Callable[[], float]:
    return lambda: read_int(folder / f"in{channel}_input") * read_int(folder / f"curr{channel}_input") / 1e6


def _source(
    name: str, folder: Path, rail: str, shunt_uohm: int | None, step_w: float | Unavailable, note: str
) -> EnergySource:
    renewed_s: float | Unavailable = Unavailable(reason="no update_interval")
    with suppress(SensorError):
        renewed_s = _positive(folder / "update_interval") / 1e3
    uncertainty: float | Unavailable = Unavailable(reason=f"see the data sheet of the {name}")
    if name in CHIPS:
        uncertainty = CHIPS[name].gain_error + SHUNT_TOLERANCE
        note += f"; its shunt is taken for a {100 * SHUNT_TOLERANCE:g} % part"
    # A wrong shunt value scales every reading, so it is part of the source's name.
    scale = "fixed shunt" if shunt_uohm is None else f"shunt {shunt_uohm / 1000:g} mOhm"
    return EnergySource(
        name=f"{name} hwmon, {scale}",
        rails=(rail,),
        unit="W",
        resolution=step_w,
        renewed_s=renewed_s,
        uncertainty=uncertainty,
        note=note,
    )


def _positive(path: Path) -> int:
    value = read_int(path)
    if value <= 0:
        raise SensorError(f"{path}: expected a positive number, found {value}")
    return value
