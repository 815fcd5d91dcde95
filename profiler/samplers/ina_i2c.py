"""The same shunt meters without a driver, over an I2C bus: `i2c:1/0x40?chip=ina219&shunt=0.1`.

Bus access is smbus2's (extra `i2c`): kept, Python alone, no board library behind it. The registers are read here, for
packages that do so are of one chip each, and bring a hardware layer of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from ferryman.profiler.samplers.base import Reading, stamped
from ferryman.profiler.samplers.ina import CHIPS, Chip
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import EnergySource

_CONFIG = 0


class Bus(Protocol):
    """What is used of smbus2.SMBus; words are little-endian there, and registers big-endian."""

    def read_word_data(self, i2c_addr: int, register: int) -> int:
        """Read a register."""

    def write_word_data(self, i2c_addr: int, register: int, value: int) -> None:
        """Write one."""

    def close(self) -> None:
        """Let go of the bus."""


@dataclass
class I2cSampler:
    """Implements `Sampler`.

    Current is the shunt's voltage over its resistance: the register of calibration, which scales the chip's own
    registers of current and power and cuts their last bits, is not needed, and stays as another program set it.
    """

    bus: Bus
    address: int
    chip: Chip
    channel: int
    shunt_ohm: float
    source: EnergySource
    before: int
    """The configuration that was there, put back by `close`."""
    settle_s: float = field(init=False)
    period_s: float = field(init=False)

    def __post_init__(self) -> None:
        # Averages reach back by their own length.
        self.period_s = self.settle_s = self.chip.period_s

    def read(self) -> Sequence[Reading]:
        """See `Sampler.read`."""
        return stamped(self._watts)

    def close(self) -> None:
        """See `Sampler.close`."""
        with suppress(SensorError):
            _write(self.bus, self.address, _CONFIG, self.before)
        with suppress(OSError):
            self.bus.close()

    def _watts(self) -> float:
        chip, register = self.chip, 2 * self.channel - 1
        raw = _read(self.bus, self.address, register)
        steps = (raw - (raw >> 15 << 16)) >> chip.shunt_shift
        if not -chip.shunt_max < steps < chip.shunt_max:
            raise SensorError(f"{self.source.name}: more current than the shunt of {self.shunt_ohm:g} Ohm is good for")
        volts = (_read(self.bus, self.address, register + 1) >> chip.bus_shift) * chip.bus_lsb_v
        return volts * steps * chip.shunt_lsb_v / self.shunt_ohm


def open_chip(
    bus: Bus, address: int, name: str, shunt_ohm: float, tolerance: float, *, channel: int = 1, place: str = "i2c"
) -> I2cSampler:
    """Check that it is such a chip, configure it, and read it once.

    Args:
        bus: closed by the sampler.
        address: seven bits.
        name: of the chip, one of CHIPS.
        shunt_ohm: resistance of the shunt.
        tolerance: of that, relative.
        channel: from 1, of chips that have several.
        place: how users call it.

    Raises:
        SensorError: there is no such chip.
    """
    chip = CHIPS[name]
    for register, expected in chip.identity:
        found = _read(bus, address, register)
        if found != expected:
            raise SensorError(
                f"{place}: no {name}; expected {expected:#06x} in register {register:#x}, found {found:#06x}"
            )
    before = _read(bus, address, _CONFIG)
    _write(bus, address, _CONFIG, chip.config)
    source = EnergySource(
        name=f"{name} at {place}, shunt {1000 * shunt_ohm:g} mOhm",
        rails=(f"{name} channel {channel}" if chip.channels > 1 else name,),
        unit="W",
        # At 5 V, where these boards are used; the step goes with the voltage.
        resolution=5 * chip.shunt_lsb_v / shunt_ohm,
        renewed_s=chip.period_s,
        uncertainty=chip.gain_error + tolerance,
        note=f"covers whatever its shunt is in, alone; chip {100 * chip.gain_error:g} %, shunt {100 * tolerance:g} %",
    )
    sampler = I2cSampler(bus, address, chip, channel, shunt_ohm, source, before)
    sampler.read()
    return sampler


def open_bus(number: int) -> Bus:
    """The kernel's /dev/i2c-N.

    Raises:
        SensorError: it cannot be opened, or smbus2 is missing.
    """
    try:
        import smbus2
    except ImportError as error:
        raise SensorError("reading I2C takes smbus2: pip install ferryman[i2c]") from error
    try:
        bus: Bus = smbus2.SMBus(number)
    except OSError as error:
        raise SensorError(f"/dev/i2c-{number}: {error.strerror}") from error
    return bus


def _read(bus: Bus, address: int, register: int) -> int:
    try:
        word = bus.read_word_data(address, register)
    except OSError as error:
        raise SensorError(f"I2C {address:#x} register {register:#x}: {error.strerror}") from error
    return int.from_bytes((word & 0xFFFF).to_bytes(2, "little"), "big")


def _write(bus: Bus, address: int, register: int, value: int) -> None:
    try:
        bus.write_word_data(address, register, int.from_bytes(value.to_bytes(2, "little"), "big"))
    except OSError as error:
        raise SensorError(f"I2C {address:#x} register {register:#x}: {error.strerror}") from error
