"""What the data sheets of Texas Instruments' shunt meters say (INA219: SBOS448, INA226: SBOS547, INA3221: SBOS576)."""

from __future__ import annotations

from dataclasses import dataclass

SHUNT_TOLERANCE = 0.01
"""Of the resistor, where nobody says: the usual grade of these boards."""


@dataclass(frozen=True)
class Chip:
    """One kind; its current is the shunt's voltage over its resistance."""

    name: str
    channels: int
    gain_error: float
    """Largest of current and of bus voltage, added up, relative."""
    config: int
    """Register 0: continuous, averaging, so that a reading is the mean of its period."""
    period_s: float
    """Of one averaged conversion of all channels by that configuration."""
    shunt_lsb_v: float
    bus_lsb_v: float
    shunt_shift: int
    """Bits below the number in the register of the shunt's voltage."""
    bus_shift: int
    shunt_max: int
    """From here on, either way, the shunt's voltage is out of range."""
    identity: tuple[tuple[int, int], ...]
    """Registers, and what they hold in such a chip: maker and die; the INA219 has none."""


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="ina219",
            channels=1,
            gain_error=0.02,
            config=0x3FFF,  # 32 V, 320 mV, 128 conversions of both
            period_s=0.13620,
            shunt_lsb_v=10e-6,
            bus_lsb_v=4e-3,
            shunt_shift=0,
            bus_shift=3,
            shunt_max=32_000,
            identity=(),
        ),
        Chip(
            name="ina226",
            channels=1,
            gain_error=0.002,
            config=0x4527,  # 16 conversions of both, 1.1 ms each
            period_s=0.0352,
            shunt_lsb_v=2.5e-6,
            bus_lsb_v=1.25e-3,
            shunt_shift=0,
            bus_shift=0,
            shunt_max=0x7FFF,
            identity=((0xFE, 0x5449), (0xFF, 0x2260)),
        ),
        Chip(
            name="ina3221",
            channels=3,
            gain_error=0.005,
            config=0x7527,  # all channels, 16 conversions of both, 1.1 ms each
            period_s=0.1056,
            shunt_lsb_v=40e-6,
            bus_lsb_v=8e-3,
            shunt_shift=3,
            bus_shift=3,
            shunt_max=0x7FF8 >> 3,
            identity=((0xFE, 0x5449), (0xFF, 0x3220)),
        ),
    )
}
