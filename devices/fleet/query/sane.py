"""Numbers that a device can have: what is beyond is taken for damage, so that it is in no sum and on no screen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from ferryman.runtime.contracts.record import Record, decode
from ferryman.runtime.contracts.telemetry import VALUE_MAX, Sample

COUNTED = frozenset({"inferences", "errors", "latency_ms", "outbox_records", "outbox_mb"})
"""Metrics that are never below 0."""
R = TypeVar("R", bound=Record)


def read(body: str, kind: type[R]) -> R:
    """Decode a stored body.

    Raises:
        ValueError: it is damaged, or holds a number that cannot be.
    """
    found = decode(body.encode(), kind)
    if isinstance(found, Sample):
        for name in COUNTED & found.values.keys():
            check(name, (found.values[name],), 0)
    return found


def least_of(metric: str) -> float:
    """The least value of a metric."""
    return 0 if metric in COUNTED else -VALUE_MAX


def check(name: str, values: Iterable[float], least: float = -VALUE_MAX, most: float = VALUE_MAX) -> None:
    """All are within these.

    Raises:
        ValueError: one is not, or is no number.
    """
    for value in values:
        if not least <= value <= most:
            raise ValueError(f"{name} is out of bounds ({least:g} to {most:g})")
