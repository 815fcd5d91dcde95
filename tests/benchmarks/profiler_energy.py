"""Joules of synthetic sensors whose true energy is known: how far off, and how often within the error bar."""

from __future__ import annotations

from collections.abc import Iterator

from ferryman.runtime.contracts.energy import Energy
from tests.benchmarks.frame import Bar, Figure, Goal, Part, figure, progress
from tests.support.virtual_time import SENSORS, measured

ERROR = Goal("energy of synthetic sensors, the largest error", "<", 0.01)
WITHIN = Goal("energy of synthetic sensors, true value within the error bar", ">=", 0.95)
_SEEDS = range(1000, 1050)


def known() -> Iterator[Bar | Figure]:
    """The whole chain, thread and all, in virtual time: ten seconds idle and ten of runs, for each kind and seed."""
    errors: dict[str, list[float]] = {}
    bars: list[float] = []
    within = 0
    for kind, sensor in SENSORS.items():
        progress(f"energy of a synthetic sensor: {kind}")
        for seed in _SEEDS:
            found, bench, _ = measured(seed, **sensor)
            assert isinstance(found, Energy), found
            true_j = bench.true_gross_j
            errors.setdefault(kind, []).append(abs(found.gross_j / true_j - 1))
            bars.append(found.error_j / true_j)
            within += abs(found.gross_j - true_j) <= found.error_j
    yield ERROR.measured([max(max(values) for values in errors.values())])
    yield WITHIN.measured([within / len(bars)])
    for kind, values in errors.items():
        yield figure(f"  error of {kind}", values)
    yield figure("  error bar", bars)


PARTS = (Part((ERROR, WITHIN), known),)
