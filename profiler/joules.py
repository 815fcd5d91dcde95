"""Readings to joules, and how wrong they may be: values in, values out.

The error is half of an interval that holds the true value in at least 95 % of the cases: the root of the sum of the
squares of three parts, each a standard deviation times 2.2. That is a little more than the normal distribution's 1.96
and metrology's 2, for the deviations are themselves estimates.

- sampling: powers between two readings are unknown. Their variance is told from neighbours, (v[i+1] - v[i])^2 / 2, so
  that a slow change counts as little as it misleads the trapezoid rule; a row of equal values is one reading, for a
  source may renew its value less often than it is read; where it states how often, as many as it renewed in that time.
  With w[i] the seconds each reading stands for,
  sampling = s * sqrt(sum w[i]^2), widened by Student's distribution where readings are few.
  A counter misses what came after its last renewal, at both ends: power * renewal, a difference of two uniform errors.
- resolution: a step q is a uniform error of q / sqrt(12); of powers it may be the same at each reading, of a counter it
  is one at each end. Where the source does not state q, it is the smallest step seen.
- uncertainty: what the source's maker states, taken as this interval; it scales, so it is relative.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferryman.profiler.samplers.base import Reading
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import Energy, EnergySource, EnergyWindow
from ferryman.runtime.contracts.record import Unavailable

READINGS_MIN = 10
_VALUE_MAX = 1e15
"""Of a reading: no device's, and its square is still a number."""
POWER_MIN_W, POWER_MAX_W = 1e-3, 1e4
"""No device that runs models takes less or more: beyond, a unit or a sign is wrong."""
_COVERAGE = 2.2
_UNIFORM, _TWO_UNIFORM = _COVERAGE / math.sqrt(12), _COVERAGE / math.sqrt(6)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stretch:
    """What was done while readings were taken, by time.perf_counter_ns()."""

    begin_ns: int
    end_ns: int
    marks: tuple[tuple[int, int], ...] = ()
    """(time, runs done by then), ascending, first and last at the ends; none when idle."""

    def runs_between(self, first_ns: int, last_ns: int) -> float:
        """Runs within, the first and the last by the part that is."""
        if not self.marks:
            return 0.0
        times, done = np.asarray(self.marks, np.float64).T
        first, last = np.interp([first_ns, last_ns], times, done)
        return float(last - first)


def window_of(source: EnergySource, readings: Sequence[Reading], stretch: Stretch, failed: int = 0) -> EnergyWindow:
    """Add up.

    Args:
        source: of the readings.
        readings: in order. Of powers, those within the stretch count, and the first and the last of them hold up to
            its ends; of a counter all count, and the window is from the first to the last.
        stretch: what they are of.
        failed: how many could not be taken.

    Raises:
        SensorError: too few readings, or they make no sense; says which.
    """
    powers = source.unit == "W"
    if powers:
        readings = [reading for reading in readings if stretch.begin_ns < reading[0] < stretch.end_ns]
    if len(readings) < READINGS_MIN:
        seconds = (stretch.end_ns - stretch.begin_ns) / 1e9
        raise SensorError(f"too short: {len(readings)} readings in {seconds:.3g} s, expected at least {READINGS_MIN}")
    begin_ns, end_ns = (stretch.begin_ns, stretch.end_ns) if powers else (readings[0][0], readings[-1][0])
    times_ns = tuple(time_ns - begin_ns for time_ns, _ in readings)
    values = tuple(float(value) for _, value in readings)
    _check(times_ns, values, source)
    window_s = (end_ns - begin_ns) / 1e9
    energy_j = integrate_j(window_s, times_ns, values) if powers else values[-1] - values[0]
    power_w = energy_j / window_s
    if not POWER_MIN_W <= power_w <= POWER_MAX_W:
        raise SensorError(f"{power_w:g} W on average make no sense: a wrong sign or unit, or a sensor that is stuck")
    return EnergyWindow(
        energy_j=energy_j,
        window_s=window_s,
        runs=stretch.runs_between(begin_ns, end_ns),
        times_ns=times_ns,
        values=values,
        failed=failed,
    )


def integrate_j(window_s: float, times_ns: Sequence[int], powers_w: Sequence[float]) -> float:
    """Joules by the trapezoid rule; before the first reading and after the last, power is that of the reading."""
    return float(_weights_s(window_s, times_ns) @ np.asarray(powers_w, np.float64))


def energy_of(source: EnergySource, active: EnergyWindow, idle: EnergyWindow | Unavailable) -> Energy:
    """Both windows, with their errors.

    Raises:
        SensorError: the sensor is stuck: every reading of both is the same; or no run lies between its readings.
    """
    if not active.runs > 0:
        raise SensorError("no run lies between its readings; does it tell our time?")
    seen = set(active.values) | (set() if isinstance(idle, Unavailable) else set(idle.values))
    if len(seen) == 1:
        raise SensorError(
            f"every reading is {active.values[0]:g} {source.unit}: it is stuck, or too coarse for this load"
        )
    error_j = _own_error_j(source, active)
    scale = 0.0 if isinstance(source.uncertainty, Unavailable) else source.uncertainty
    net_error_j = None
    if isinstance(idle, EnergyWindow):
        idle_error_j = _own_error_j(source, idle) * active.window_s / idle.window_s
        # What scales every reading scales their difference, too.
        net_j = active.energy_j - idle.power_w * active.window_s
        net_error_j = math.hypot(error_j, idle_error_j, scale * net_j) / active.runs
    energy = Energy(
        source=source,
        active=active,
        idle=idle,
        error_j=math.hypot(error_j, scale * active.energy_j) / active.runs,
        net_error_j=net_error_j,
    )
    if not all(map(math.isfinite, (energy.gross_j, energy.net_j or 0.0, energy.error_j, net_error_j or 0.0))):
        raise SensorError("its readings add up to no number")
    return energy


def _check(times_ns: Sequence[int], values: Sequence[float], source: EnergySource) -> None:
    if not all(math.isfinite(value) for value in values):
        raise SensorError("a reading is no number")
    if max(map(abs, values)) > _VALUE_MAX:
        raise SensorError(f"a reading of {max(values, key=abs):g} {source.unit} makes no sense")
    if any(after <= before for before, after in itertools.pairwise(times_ns)):
        raise SensorError("two readings are not in the order of time")
    if source.unit == "J" and any(after < before for before, after in itertools.pairwise(values)):
        raise SensorError("the counter of joules went back")


def _own_error_j(source: EnergySource, window: EnergyWindow) -> float:
    """Sampling and resolution; the scale is the source's alone."""
    values = np.asarray(window.values, np.float64)
    steps = np.abs(np.diff(values))
    moved = steps[steps > 0]
    least = float(moved.min()) if len(moved) else 0.0
    quantum = least if isinstance(source.resolution, Unavailable) else source.resolution
    if source.unit == "J":
        renewed_s = _renewed_s(source, window, len(moved))
        return math.hypot(_TWO_UNIFORM * quantum, _TWO_UNIFORM * renewed_s * window.power_w)
    return math.hypot(_UNIFORM * quantum * window.window_s, _sampling_error_j(source, window))


def _renewed_s(source: EnergySource, window: EnergyWindow, renewals: int) -> float:
    """Of a counter: as stated, or as seen where readings repeat."""
    stated = 0.0 if isinstance(source.renewed_s, Unavailable) else source.renewed_s
    repeated = renewals < len(window.values) - 1
    return max(stated, window.window_s / max(renewals, 1) if repeated else 0.0)


def _sampling_error_j(source: EnergySource, window: EnergyWindow) -> float:
    values = np.asarray(window.values, np.float64)
    new = _independent(source, window)
    held_s = np.add.reduceat(_weights_s(window.window_s, window.times_ns), new)
    steps = np.diff(values[new])
    if len(steps) == 0:
        return 0.0
    deviation_w = math.sqrt(float(np.mean(steps**2)) / 2)
    # Neighbouring differences share a reading, so they tell as much as two thirds of their number.
    return _student(len(steps) * 2 / 3) * deviation_w * float(np.linalg.norm(held_s))


def _independent(source: EnergySource, window: EnergyWindow) -> list[int]:
    """Readings that the source took anew: those that differ, or come after it has had the time."""
    renewed_ns = math.inf if isinstance(source.renewed_s, Unavailable) else 1e9 * source.renewed_s
    found = [0]
    for index, (time_ns, value) in enumerate(zip(window.times_ns, window.values, strict=True)):
        last = found[-1]
        if value != window.values[last] or time_ns - window.times_ns[last] >= renewed_ns > 0:
            found.append(index)
    return found


def _weights_s(window_s: float, times_ns: Sequence[int]) -> Floats:
    """Seconds each reading stands for; their sum is the window."""
    seconds = np.asarray(times_ns, np.float64) / 1e9
    edges = np.concatenate([[0.0], (seconds[1:] + seconds[:-1]) / 2, [window_s]])
    return np.diff(edges)


def _student(freedom: float) -> float:
    """The quantile of Student's distribution, by its expansion about the normal one; too low below 3."""
    z = _COVERAGE
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
