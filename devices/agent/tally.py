"""What was served in a period: counts and latencies, by package."""

from __future__ import annotations

import random
import statistics
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

from ferryman.runtime.contracts.telemetry import LATENCIES_MAX

KEPT_MAX = 1000
"""Latencies, drawn by chance of all."""


@dataclass
class Reservoir:
    """A bounded, even sample of numbers."""

    kept: list[int] = field(default_factory=list)
    count: int = 0

    def add(self, value: int) -> None:
        """Take one in."""
        self.count += 1
        if len(self.kept) < KEPT_MAX:
            self.kept.append(value)
        elif (at := random.randrange(self.count)) < KEPT_MAX:  # noqa: S311  # nothing is secret
            self.kept[at] = value

    def median(self) -> int | None:
        """None: of nothing."""
        return int(statistics.median(self.kept)) if self.kept else None


class Served(NamedTuple):
    """By one package, in one period."""

    package_sha256: str
    inferences: int
    errors: int
    median_ms: float | None
    latencies_ms: tuple[float, ...]
    """As in `Sample`: all, or evenly spaced order statistics of up to KEPT_MAX drawn of all."""


@dataclass
class _Count:
    answered: Reservoir = field(default_factory=Reservoir)
    failed: int = 0


class ServedTally:
    """Implements `ferryman.devices.agent.serving.Watch`; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, _Count] = {}

    def answered(self, package_sha256: str, latency_ns: int) -> None:
        """See `Watch`."""
        with self._lock:
            self._counts.setdefault(package_sha256, _Count()).answered.add(latency_ns)

    def failed(self, package_sha256: str) -> None:
        """See `Watch`."""
        with self._lock:
            self._counts.setdefault(package_sha256, _Count()).failed += 1

    def take(self) -> list[Served]:
        """What was served since the last call, in the order in which packages came; nothing: an empty list."""
        with self._lock:
            counts, self._counts = self._counts, {}
        return [_served(package, count) for package, count in counts.items()]


def _served(package_sha256: str, count: _Count) -> Served:
    median_ns = count.answered.median()
    return Served(
        package_sha256=package_sha256,
        inferences=count.answered.count,
        errors=count.failed,
        median_ms=None if median_ns is None else significant(median_ns / 1e6),
        latencies_ms=tuple(significant(value / 1e6) for value in order_statistics(count.answered.kept)),
    )


def order_statistics(values: list[int], most: int = LATENCIES_MAX) -> list[int]:
    """All in ascending order, or `most` of them, evenly spaced by rank, the least and the largest among them."""
    ranked = sorted(values)
    if len(ranked) <= most:
        return ranked
    return [ranked[round(at * (len(ranked) - 1) / (most - 1))] for at in range(most)]


def significant(value: float) -> float:
    """Six digits: no sensor has more, and each costs a byte."""
    return float(f"{value:.6g}")
