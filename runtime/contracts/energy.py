"""Joules, and where they come from: readings beside their source, what it covers, and how far to trust it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ferryman.runtime.contracts.record import Record, Unavailable

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class EnergySource(Record):
    """Provenance of a reading."""

    name: str
    """What it is, with whatever scales its numbers (a shunt, a calibration)."""
    rails: tuple[str, ...]
    """What it covers, under its own names."""
    unit: Literal["W", "J"]
    """Of a reading: power, integrated by the trapezoid rule, or a counter of joules, first taken from last."""
    resolution: float | Unavailable
    """Smallest step of a reading, in `unit`."""
    uncertainty: float | Unavailable
    """Of a reading, relative (0.01 is one percent), as its maker states it."""
    note: str = ""
    """What a reader must know: what is not covered, how sign and unit were told."""


class EnergyWindow(Record, tag="window"):
    """Readings from the first to the last, and their joules."""

    energy_j: float
    window_s: float
    """From the first reading to the last; all runs lie within."""
    runs: Count
    """Inferences within; 0 of an idle window."""
    times_ns: tuple[Count, ...]
    """When each reading was taken, from the first one on."""
    values: tuple[float, ...]
    """In the source's unit."""

    @property
    def power_w(self) -> float:
        """Mean power."""
        return self.energy_j / self.window_s

    @property
    def rate_hz(self) -> float:
        """Readings a second, as they were achieved."""
        return (len(self.times_ns) - 1) / self.window_s


class Energy(Record, tag="energy"):
    """A window of runs, and an idle one before it with the session open."""

    source: EnergySource
    active: EnergyWindow
    idle: EnergyWindow | Unavailable
    error_j: float
    """Half of the 95 % confidence interval of one inference's gross joules: sampling, source, resolution."""

    @property
    def gross_j(self) -> float:
        """Joules an inference, what the idle device takes included."""
        return self.active.energy_j / self.active.runs

    @property
    def net_j(self) -> float | None:
        """Joules an inference beyond the idle device; None where idle was not measured."""
        if isinstance(self.idle, Unavailable):
            return None
        return (self.active.energy_j - self.idle.power_w * self.active.window_s) / self.active.runs
