"""Choose among a package's variants by what was measured: on this device, or for its class on another.

The device and the host go by the same rules, so that a class's choice is what each of its devices would choose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ferryman.runtime.contracts.manifest import Manifest
from ferryman.runtime.contracts.rollout import Measured
from ferryman.runtime.contracts.slot import Pick, parse_pick
from ferryman.runtime.golden import GoldenResult

_TIE = 1.1
"""Latencies so near each other are the same."""


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
    candidates = [one for one in found if _within(one, how)]
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


def _within(one: Measured, how: Pick) -> bool:
    """Whether a variant keeps to a budget; what was not measured does not."""
    latency_ms = math.inf if one.latency_ns is None else one.latency_ns / 1e6
    memory_mb = math.inf if one.memory_bytes is None else one.memory_bytes / 1e6
    return (how.latency_ms is None or latency_ms <= how.latency_ms) and (
        how.memory_mb is None or memory_mb <= how.memory_mb
    )
