"""What a device should fetch of a package with several variants, by what devices of its kind have measured."""

from __future__ import annotations

from collections.abc import Iterable

from ferryman.runtime.contracts.rollout import Measured
from ferryman.runtime.picking import choose


def of_class(found: Iterable[tuple[Measured, ...]]) -> tuple[Measured, ...]:
    """What holds for every device of a kind that has measured: of each variant on each interpreter, the worst."""
    worst: dict[tuple[str, str], Measured] = {}
    for one in (one for measured in found for one in measured):
        key = (one.variant, one.interpreter)
        worst[key] = one if key not in worst else _worse(worst[key], one)
    return tuple(worst.values())


def _worse(one: Measured, other: Measured) -> Measured:
    return Measured(
        variant=one.variant,
        interpreter=one.interpreter,
        latency_ns=_most(one.latency_ns, other.latency_ns),
        memory_bytes=_most(one.memory_bytes, other.memory_bytes),
        sqnr_db=min(one.sqnr_db, other.sqnr_db),
        size_bytes=max(one.size_bytes, other.size_bytes),
        share=one.share,
    )


def _most(one: int | None, other: int | None) -> int | None:
    return None if one is None and other is None else max(one or 0, other or 0)


def variants_for(found: Iterable[tuple[Measured, ...]], pick: str) -> tuple[str, ...]:
    """The variants to fetch; empty: all, since the class has not measured, or none of them is within the budget."""
    best = None if pick == "first" else choose(of_class(found), pick)
    return (best.variant,) if best else ()
