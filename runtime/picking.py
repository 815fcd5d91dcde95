"""Choose among the variants of a package by what the golden vectors showed on this device."""

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


def as_measured(result: GoldenResult) -> Measured:
    """What of it a slot keeps."""
    return Measured(
        variant=result.variant,
        interpreter=result.interpreter,
        latency_ns=result.latency_ns,
        memory_bytes=result.memory_bytes,
        sqnr_db=result.sqnr_db,
        energy_j=result.energy_j,
    )


def pick_variant(slot: Slot, manifest: Manifest, results: Sequence[GoldenResult], pick: str) -> Slot:
    """A slot with what shall answer requests that name no variant, by what the golden vectors showed here.

    Raises:
        DeviceError: no variant is within the budget.
    """
    if pick == "first" or not results:
        return slot
    how = parse_pick(pick)
    sizes = {payload.path: payload.size_bytes for payload in manifest.payloads}

    def latency(result: GoldenResult) -> float:
        return result.latency_ns or math.inf

    def share(result: GoldenResult) -> float:
        found = manifest.variant(result.variant).share
        return 1.0 if found is None else found

    candidates = [result for result in results if _within(result, how)]
    if not candidates:
        said = "; ".join(map(describe_golden, results))
        unmeasured = how.energy_mj is not None and all(result.energy_j is None for result in results)
        why = ", and no energy was measured here" if unmeasured else ""
        raise DeviceError(f"no variant of {manifest.name} is within {pick} on this device{why}: {said}; allow more")
    if how.kind == "largest":
        best = max(
            candidates,
            key=lambda result: (share(result), result.sqnr_db, -latency(result)),
        )
        return replace(slot, pick=pick, variant=best.variant, interpreter=best.interpreter)
    if how.kind == "fastest":
        least = min(map(latency, candidates))
        candidates = [result for result in candidates if latency(result) <= _TIE * least]
    if how.kind == "smallest":
        best = min(candidates, key=lambda result: (sizes[manifest.variant(result.variant).payload], latency(result)))
    else:
        best = max(candidates, key=lambda result: result.sqnr_db)
    return replace(slot, pick=pick, variant=best.variant, interpreter=best.interpreter)


def _within(result: GoldenResult, how: Pick) -> bool:
    """Whether a variant keeps to a budget; what was not measured does not."""
    latency_ms = math.inf if result.latency_ns is None else result.latency_ns / 1e6
    memory_mb = math.inf if result.memory_bytes is None else result.memory_bytes / 1e6
    energy_mj = math.inf if result.energy_j is None else result.energy_j * 1e3
    budgets = ((how.latency_ms, latency_ms), (how.memory_mb, memory_mb), (how.energy_mj, energy_mj))
    return all(most is None or found <= most for most, found in budgets)


def stands(slot: Slot, manifest: Manifest) -> bool:
    """Whether what was picked is there still, and runs here."""
    if slot.variant is None:
        return True
    return any(one.name == slot.variant and slot.interpreter in usable_interpreters(one) for one in manifest.variants)
