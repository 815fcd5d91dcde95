"""Whether a ring did well: its failures, and how its devices found the package beside the one before."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ferryman.devices.fleet.rollout.records import FAILURES, Standing, Thresholds
from ferryman.devices.fleet.rollout.rings import allowed
from ferryman.devices.fleet.rollout.words import counted
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.rollout import Health


class RingHealth(Record):
    """Of a ring."""

    devices: int
    failures: int
    slower: float | None
    """Median over devices of latency over that of the package before; None: nobody told."""
    energy: float | None
    drift: float | None
    told: int
    """Devices that told how the package serves."""


def ring_health(standings: Sequence[Standing], healths: Sequence[Health]) -> RingHealth:
    """Put together how the devices of a ring stand, and what those told that have served the package."""
    slower = [one.latency_ns / one.before_latency_ns for one in healths if one.latency_ns and one.before_latency_ns]
    energy = [one.energy_j / one.before_energy_j for one in healths if one.energy_j and one.before_energy_j]
    drift = [one.drift for one in healths if one.drift is not None]
    return RingHealth(
        devices=len(standings),
        failures=sum(one in FAILURES for one in standings),
        slower=median(slower) if slower else None,
        energy=median(energy) if energy else None,
        drift=median(drift) if drift else None,
        told=len(healths),
    )


def complaint(health: RingHealth, bars: Thresholds, *, complete: bool) -> str | None:
    """What is past a threshold; None: nothing is.

    Failures count at once; medians only once half of the ring has told, or nobody else will.
    """
    most = allowed(bars.failures_max, health.devices)
    if health.failures > most:
        return (
            f"{health.failures} of {counted(health.devices, 'device')} failed, at most {most} may ({bars.failures_max})"
        )
    if not complete and 2 * health.told < health.devices:
        return None
    for what, found, most_of_it in (
        ("latency is {:.2f} times that of the package before, at most {:g} may be", health.slower, bars.slower_max),
        (
            "energy of a call is {:.2f} times that of the package before, at most {:g} may be",
            health.energy,
            bars.energy_max,
        ),
        ("outputs are {:.3g} from those of the package before, at most {:g} may be", health.drift, bars.drift_max),
    ):
        if found is not None and most_of_it is not None and found > most_of_it:
            return f"the median over {counted(health.told, 'device')}: {what.format(found, most_of_it)}"
    return None
