"""Joules, and where they come from: readings beside their source, what it covers, and how far to trust it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ferryman.runtime.contracts.record import Record, Unavailable

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Watts = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


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
    renewed_s: float | Unavailable
    """How often the source itself takes a new value; to read it more often brings nothing."""
    uncertainty: float | Unavailable
    """Of a reading, relative (0.01 is one percent), as its maker states it."""
    note: str = ""
    """What a reader must know: what is not covered, how sign and unit were told."""


class EnergyWindow(Record, tag="energy_window"):
    """Readings, and the joules of the window they lie in, as `ferryman.profiler.joules` adds them up."""

    energy_j: float
    window_s: float
    """Of powers: of the runs, none cut. Of a counter: from the first reading to the last."""
    runs: Annotated[float, msgspec.Meta(ge=0)]
    """Inferences within, a part of one where a counter's window cuts it; 0 of an idle window."""
    times_ns: tuple[Count, ...]
    """When each reading was taken, since the window began."""
    values: tuple[float, ...]
    """In the source's unit."""
    failed: Count = 0
    """Readings that could not be taken; their neighbours stand in."""

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
    """The true `gross_j` is within so much, at 95 %: sampling, resolution, and the source's uncertainty if known."""
    net_error_j: float | None
    """So of `net_j`."""

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


class PowerModel(Record):
    """What a device takes, by how busy its cores are: for an estimate, where nothing can be measured."""

    idle_w: Watts
    core_w: Watts
    """More, for each core that is busy."""
    source: str
    """Who says so."""


class EnergyEstimate(Record, tag="energy_estimate"):
    """Joules by a model, from processor time alone. Not a measurement: it never stands where `Energy` does."""

    model: PowerModel
    window_s: float
    cpu_s: float
    """Processor time of the process in the window, all its threads together."""
    runs: Annotated[float, msgspec.Meta(ge=0)]

    @property
    def gross_j(self) -> float:
        """Joules an inference, what the idle device takes included."""
        return (self.model.idle_w * self.window_s + self.model.core_w * self.cpu_s) / self.runs

    @property
    def net_j(self) -> float:
        """Joules an inference beyond the idle device."""
        return self.model.core_w * self.cpu_s / self.runs
