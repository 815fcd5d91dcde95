"""Golden vectors with a meter beside them, where a pick has a budget of energy: twenty seconds a variant more."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from ferryman.profiler.energy import choose_source, measure_energy
from ferryman.profiler.samplers.base import Sampler
from ferryman.runtime.contracts.energy import Energy
from ferryman.runtime.contracts.manifest import Manifest
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.slot import Pick, parse_pick
from ferryman.runtime.golden import GoldenResult, check_golden
from ferryman.runtime.install import GoldenCheck
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.package import read_golden
from ferryman.runtime.picking import measured, within

log = logging.getLogger(__name__)
Measure = Callable[[Sampler | Unavailable, Callable[[], object]], Energy | Unavailable]


def golden_check(pick: str, meter: str | None = None, measure: Measure = measure_energy) -> GoldenCheck:
    """The golden check that a pick needs; it measures energy only where the pick asks for that.

    Args:
        pick: see `parse_pick`.
        meter: as in `ferryman profile --meter`; None: the first source that the device has.
        measure: a seam for tests.

    Raises:
        CallerError: there is no such pick.
    """
    how = parse_pick(pick)
    return check_golden if how.energy_mj is None else partial(_check, how=how, meter=meter, measure=measure)


def _check(
    directory: Path, manifest: Manifest, *, how: Pick, meter: str | None, measure: Measure
) -> tuple[GoldenResult, ...]:
    """`check_golden`, then the energy of those that keep to the pick's other budgets."""
    results = check_golden(directory, manifest)
    others = Pick(how.kind, how.latency_ms, how.memory_mb)
    fits = [within(one, others) for one in measured(manifest, results)]
    return tuple(
        replace(result, energy_j=_energy_j(directory, manifest, result, meter, measure)) if fit else result
        for result, fit in zip(results, fits, strict=True)
    )


def _energy_j(
    directory: Path, manifest: Manifest, result: GoldenResult, meter: str | None, measure: Measure
) -> float | None:
    variant = manifest.variant(result.variant)
    path = (variant.golden or manifest.golden)[0]
    inputs = [one.to_array() for one in read_golden((directory / path).read_bytes(), path).inputs]
    with IsolatedSession(
        directory / variant.payload, variant.runtime, interpreter=result.interpreter, entry=variant.entry
    ) as session:
        session.run(inputs)
        found = measure(choose_source(meter=meter), lambda: session.run(inputs))
    if isinstance(found, Unavailable):
        log.warning("the energy of %s on %s was not measured: %s", variant.name, result.interpreter, found.reason)
        return None
    return found.net_j
