"""Choose among a package's variants by what was measured: on this device, or for its class on another.

The device and the host go by the same rules, so that a class's choice is what each of its devices would choose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec.structs import replace

from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.manifest import Manifest
from ferryman.runtime.contracts.slot import Measured, Pick, Slot, parse_pick
from ferryman.runtime.golden import GoldenResult, usable_interpreters

_TIE = 1.1
"""Latencies so near each other are the same."""


def describe_golden(result: GoldenResult) -> str:
    """A line of it."""
    took = f", {result.latency_ns / 1e6:,.3f} ms" if result.latency_ns is not None else ""
    held = f", {result.memory_bytes / 1e6:,.1f} MB" if result.memory_bytes is not None else ""
    spent = f", {result.energy_j * 1e3:,.3f} mJ" if result.energy_j is not None else ""
    return f"{result.variant} on {result.interpreter} {result.version}: {result.sqnr_db:.1f} dB{took}{held}{spent}"


def pick_variant(slot: Slot, manifest: Manifest, results: Sequence[GoldenResult], pick: str) -> Slot:
    """A slot with what the golden vectors showed here, and what answers requests that name no variant by that.

    Raises:
        DeviceError: no variant is within the budget.
    """
    slot = replace(slot, measured=measured(manifest, results))
    if pick == "first" or not results:
        return slot
    best = choose(slot.measured, pick)
    if best is None:
        said = "; ".join(map(describe_golden, results))
        unmeasured = parse_pick(pick).energy_mj is not None and all(one.energy_j is None for one in results)
        why = ", and no energy was measured here" if unmeasured else ""
        raise DeviceError(f"no variant of {manifest.name} is within {pick} on this device{why}: {said}; allow more")
    return replace(slot, pick=pick, variant=best.variant, interpreter=best.interpreter)


def stands(slot: Slot, manifest: Manifest) -> bool:
    """Whether what was picked is there still, and runs here."""
    if slot.variant is None:
        return True
    return any(one.name == slot.variant and slot.interpreter in usable_interpreters(one) for one in manifest.variants)


def measured(manifest: Manifest, results: Sequence[GoldenResult]) -> tuple[Measured, ...]:
    """What golden vectors showed, with what else a choice goes by, in the same order."""
    sizes = {payload.path: payload.size_bytes for payload in manifest.payloads}
    return tuple(
        Measured(
            variant=one.variant,
            interpreter=one.interpreter,
            latency_ns=one.latency_ns,
            memory_bytes=one.memory_bytes,
            sqnr_db=one.sqnr_db,
            size_bytes=sizes[manifest.variant(one.variant).payload],
            share=manifest.variant(one.variant).share,
            energy_j=one.energy_j,
        )
        for one in results
    )


def choose(found: Sequence[Measured], pick: str) -> Measured | None:
    """The one that `pick` asks for; None: none is within its budget. The first, where it asks for that.

    Raises:
        CallerError: there is no such pick.
    """
    how = parse_pick(pick)
    if how.kind == "first":
        return next(iter(found), None)
    candidates = [one for one in found if within(one, how)]
    if not candidates:
        return None
    if how.kind == "largest":
        return max(candidates, key=lambda one: (_share(one), one.sqnr_db, -_latency(one)))
    if how.kind == "smallest":
        return min(candidates, key=lambda one: (one.size_bytes, _latency(one)))
    if how.kind == "fastest":
        least = min(map(_latency, candidates))
        candidates = [one for one in candidates if _latency(one) <= _TIE * least]
    return max(candidates, key=lambda one: one.sqnr_db)


def _latency(one: Measured) -> float:
    return one.latency_ns or math.inf


def _share(one: Measured) -> float:
    return 1.0 if one.share is None else one.share


def within(one: Measured, how: Pick) -> bool:
    """Whether a variant keeps to a budget; what was not measured does not."""
    latency_ms = math.inf if one.latency_ns is None else one.latency_ns / 1e6
    memory_mb = math.inf if one.memory_bytes is None else one.memory_bytes / 1e6
    energy_mj = math.inf if one.energy_j is None else one.energy_j * 1e3
    budgets = ((how.latency_ms, latency_ms), (how.memory_mb, memory_mb), (how.energy_mj, energy_mj))
    return all(most is None or value <= most for most, value in budgets)
