"""Golden vectors with a meter beside them, where a pick has a budget of energy: twenty seconds a variant more."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from ferryman.devices.agent.serving import picked
from ferryman.profiler.energy import choose_source, measure_energy
from ferryman.profiler.samplers.base import Sampler
from ferryman.runtime.contracts.energy import Energy
from ferryman.runtime.contracts.errors import FerrymanError
from ferryman.runtime.contracts.manifest import Manifest, Variant
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.slot import Pick, Slot, SlotState, parse_pick
from ferryman.runtime.golden import GoldenResult, check_golden
from ferryman.runtime.install import GoldenCheck
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.package import read_golden
from ferryman.runtime.picking import measured, within
from ferryman.runtime.slots import SlotStore

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
        replace(
            result,
            energy_j=_energy_j(
                directory, manifest, manifest.variant(result.variant), result.interpreter, meter, measure
            ),
        )
        if fit
        else result
        for result, fit in zip(results, fits, strict=True)
    )


def energy_of_both(
    store: SlotStore, state: SlotState, meter: str | None = None, measure: Measure = measure_energy
) -> tuple[float | None, float | None]:
    """Joules of a call above idle, of the package on trial and of the one before; twenty seconds each.

    None where no meter is, or nothing can be run; the log says why. What is served meanwhile disturbs both alike.
    """
    if isinstance(source := choose_source(meter=meter), Unavailable):
        return None, None
    source.close()
    return _of_slot(store, state.active, meter, measure), _of_slot(store, state.previous, meter, measure)


def _of_slot(store: SlotStore, slot: Slot | None, meter: str | None, measure: Measure) -> float | None:
    if slot is None:
        return None
    try:
        installed = store.verify(slot)
        variant, interpreter = picked(installed.manifest.variants, slot)
        return _energy_j(installed.directory, installed.manifest, variant, interpreter, meter, measure)
    except FerrymanError as error:
        log.warning("the energy of %s was not measured: %s", slot.package_name, error)
        return None


def _energy_j(
    directory: Path, manifest: Manifest, variant: Variant, interpreter: str, meter: str | None, measure: Measure
) -> float | None:
    path = (variant.golden or manifest.golden)[0]
    inputs = [one.to_array() for one in read_golden((directory / path).read_bytes(), path).inputs]
    with IsolatedSession(
        directory / variant.payload, variant.runtime, interpreter=interpreter, entry=variant.entry
    ) as session:
        session.run(inputs)
        found = measure(choose_source(meter=meter), lambda: session.run(inputs))
    if isinstance(found, Unavailable):
        log.warning("the energy of %s on %s was not measured: %s", variant.name, interpreter, found.reason)
        return None
    return found.net_j
