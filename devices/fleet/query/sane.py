"""Numbers that a device can have: what is beyond is taken for damage, so that it is in no sum and on no screen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record, decode
from ferryman.runtime.contracts.telemetry import LogLine, Sample

VALUE_MAX = 1e15
"""On both sides of 0: so many can be added up without losing whole units."""
TIMES_MAX = 1 << 53
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
        check("period_s", (found.period_s,), 0)
        check("latencies_ms", found.latencies_ms, 0)
        for name, value in found.values.items():
            check(name, (value,), least_of(name))
    elif isinstance(found, LogLine):
        check("times", (found.times,), 1, TIMES_MAX)
    elif isinstance(found, Status):
        check("outbox_pending", (found.outbox_pending,), 0)
        check("outbox_dropped", (found.outbox_dropped,), 0)
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
